"""Two exports of one model, precision and size that differ, as int8 with and without the head, are told apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.bench import merge_reports
from fastervit_trt.benchmarks.comparison.compare import compare_records
from fastervit_trt.benchmarks.examples import Example
from fastervit_trt.benchmarks.pareto import standings
from fastervit_trt.benchmarks.records import Record, read_records
from fastervit_trt.benchmarks.report import write_report
from fastervit_trt.benchmarks.report.cells import cells_of
from fastervit_trt.benchmarks.report.look import Looks
from fastervit_trt.benchmarks.report.page import render_page
from fastervit_trt.benchmarks.report.text import verdict
from fastervit_trt.benchmarks.rows import BenchmarkRow, several_exports
from fastervit_trt.cli import bench
from fastervit_trt.cli.printing import print_rows
from tests.benchmarks.example_rows import judged, row
from tests.benchmarks.task_exports import mask_folder, segmenter
from tests.conftest import QUICK_BENCH

MODEL = "faster_vit_digits_m"


def twins() -> list[BenchmarkRow]:
    """Two exports in int8, and one in fp16 that has none beside it."""
    return [
        judged(MODEL, 900, precision="int8", export=f"{MODEL}-int8"),
        judged(MODEL, 700, wrong_more=3, precision="int8", export=f"{MODEL}-int8-heads", note="so it is"),
        judged(MODEL, 500, precision="fp16", export=f"{MODEL}-fp16"),
    ]


def test_only_what_has_a_twin_is_named_by_its_export() -> None:
    rows = twins()
    looks = Looks.of(rows)
    assert [looks.label(one) for one in rows] == ["digits_m int8 (int8)", "digits_m int8 (int8-heads)", "digits_m fp16"]
    assert [Looks.of(rows[:1]).label(rows[0]), Looks.of(rows[1:]).label(rows[1])] == ["digits_m int8"] * 2
    assert verdict(standings(rows)[1], "throughput", looks.exports).startswith(
        f"Clearly dominated by throughput by digits_m int8 ({MODEL}-int8) on ort-cpu"
    )
    other = Looks.of([rows[0], replace(rows[1], export="elsewhere")])
    assert other.label(replace(rows[1], export="elsewhere")) == "digits_m int8 (elsewhere)"


@pytest.mark.parametrize("what", ["precision", "resolution", "model"])
def test_what_differs_otherwise_needs_no_name(what: str) -> None:
    one, other, _ = twins()
    assert several_exports([one, other])
    assert not several_exports([one, replace(other, **{what: "another"})])
    assert several_exports([one, replace(other, batch=1, backend="torch")])  # or nobody would know which of the two
    assert not several_exports([one, replace(other, export="")])  # rows of an earlier version do not say


def test_the_table_has_a_column_for_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastervit_trt.cli.printing.console.width", 200)
    rows = twins()
    print_rows([rows[0], replace(rows[1], flags="hot"), rows[2]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["model", "precision", "export", "backend"]
    assert sorted(line.split()[2] for line in lines[1:4]) == [f"{MODEL}-{x}" for x in ("fp16", "int8", "int8-heads")]
    assert f"{MODEL} int8 ({MODEL}-int8-heads) on ort-cpu at batch 8: hot" in lines
    print_rows(rows[1:])
    assert "export" not in capsys.readouterr().out


def test_summary_and_page_name_it(tmp_path: Path) -> None:
    failed = row(MODEL, None, 1.0, precision="int8", export=f"{MODEL}-int8", batch=1, status="failed", reason="gone")
    files = write_report([*map(Record, twins()), Record(failed)], tmp_path)
    summary, page = files.summary.read_text(), files.page.read_text()
    assert "| model | precision | export | backend |" in summary
    assert f"| int8 | {MODEL}-int8-heads | ort-cpu |" in summary
    assert f"- {MODEL} int8 ({MODEL}-int8) on ort-cpu, batch 1: failed: gone" in summary
    assert page.count('<th scope="col" data-kind="text" aria-sort="none" class="left">export</th>') == 3
    for name in ("int8", "int8-heads"):
        assert f'"label":"digits_m int8 ({name})"' in page
        assert f"digits_m int8 ({MODEL}-{name}) on ort-cpu" in page
        assert f'<td class="left">{MODEL}-{name}</td>' in page
    alone = write_report(list(map(Record, twins()[1:])), tmp_path)
    assert "| model | precision | backend |" in alone.summary.read_text()
    assert ">export</th>" not in alone.page.read_text()


def test_examples_of_twins_stand_under_titles_of_their_own() -> None:
    def example(export: str) -> Example:
        return Example(f"{export}.png", "1.png", "scenes", export, MODEL, "detection", "int8", "ort-cpu", "224x224")

    shown = [(example(one.export), b"") for one in twins()[:2]]
    page = render_page([], Looks.of(twins()), [], title="", picture=None, examples=shown)
    assert page.count('<details class="examples"') == 0  # nothing was measured
    page = render_page(
        cells_of(list(map(Record, twins()))), Looks.of(twins()), [], title="", picture=None, examples=shown
    )
    for name in ("int8", "int8-heads"):
        assert f"<summary>digits_m int8 ({MODEL}-{name}), 224x224, on ort-cpu</summary>" in page


def test_runs_with_twins_are_compared_export_by_export_and_merged_whole(tmp_path: Path) -> None:
    before = list(map(Record, twins()))
    after = [Record(replace(before[1].row, throughput_img_per_s=70.0, throughput_p20_img_per_s=66.0,
                            throughput_p80_img_per_s=74.0)), before[0], before[2]]  # fmt: skip
    found = compare_records(before, after)
    assert found.pairs == 3
    (fallen,) = found.differences
    assert fallen.condition == f"{MODEL} int8, export {MODEL}-int8-heads, ort-cpu, 224x224, batch 8"
    lost = compare_records(before, before[1:])
    assert lost.only_before == (f"{MODEL} int8, export {MODEL}-int8, ort-cpu, 224x224, batch 8",)
    # One of the two, measured again under another name, is still the same condition.
    renamed = compare_records(before[2:], [Record(replace(before[2].row, export="renamed"))])
    assert (renamed.pairs, renamed.only_before) == (1, ())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exports in folders of one name; PyTorch's part has tests of its own."""
    root = tmp_path_factory.mktemp("twins")
    exports = [segmenter(root / "whole" / "fp32"), segmenter(root / "blind" / "fp32", blind=True)]
    for folder in exports:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["weights"] = {"kind": "checkpoint", "path": "gone.pth"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    data, output = mask_folder(root / "streets"), root / "report"
    options = ["--backend", "ort-cpu", "--batch", 4, "--data", data, *QUICK_BENCH, "--output", output]
    with pytest.raises(SystemExit) as stop:
        bench.main([str(argument) for argument in (*exports, *options)])
    assert stop.value.code == 0
    return output


def test_folders_of_one_name_are_told_apart_by_their_path(sweep: Path, tmp_path: Path) -> None:
    rows = {record.row.export: record.row for record in read_records(sweep)}
    assert set(rows) == {"whole/fp32", "blind/fp32"}
    assert rows["blind/fp32"].score < rows["whole/fp32"].score == 1.0  # type: ignore[operator]
    merged = merge_reports([sweep], tmp_path / "merged")
    assert sorted(record.row.export for record in merged) == ["blind/fp32", "whole/fp32"]


def test_a_twin_that_is_left_out_later_keeps_its_row(sweep: Path, tmp_path: Path) -> None:
    output = tmp_path / "resumed"
    shutil.copytree(sweep, output)
    options = ["--backend", "ort-cpu", "--batch", 4, "--data", sweep.parent / "streets", *QUICK_BENCH]
    with pytest.raises(SystemExit) as stop:
        bench.main([str(x) for x in (sweep.parent / "whole" / "fp32", *options, "--resume", "--output", output)])
    assert stop.value.code == 0
    rows = json.loads((output / "rows.json").read_text())
    assert sorted(row["export"] for row in rows) == ["blind/fp32", "whole/fp32"]


def test_cells_of_twins_have_names_of_their_own(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sweep.parent
    exports = [root / "whole" / "fp32", root / "blind" / "fp32"]
    for given, named in ((exports, True), (exports[:1], False)):
        with pytest.raises(SystemExit):
            bench.main(
                [*map(str, given), "--backend", "ort-cpu", "--batch", "4", "--dry-run", "--output", str(root / "x")]
            )
        out = " ".join(capsys.readouterr().out.split())
        assert ("faster_vit_digits_s fp32 (whole/fp32) ort-cpu batch 4" in out) is named
        assert ("faster_vit_digits_s fp32 ort-cpu batch 4" in out) is not named
