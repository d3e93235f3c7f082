"""``fastervit-bench`` on real exports: rows, picture, page, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Finished

Command = Callable[..., Finished]


@pytest.fixture(scope="module")
def report(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastervit_trt.cli import bench

    output = tmp_path_factory.mktemp("bench") / "report"
    folders = [str(exports / precision) for precision in ("fp32", "fp16", "bf16")]
    with pytest.raises(SystemExit) as stop:
        bench.main([*folders, "--data", "digits", "--batch", "8", "--seconds", "0.3", "--output", str(output)])
    assert stop.value.code == 0
    return output


def test_rows_agree_between_csv_and_json_and_carry_their_context(report: Path, exports: Path) -> None:
    rows = json.loads((report / "rows.json").read_text())
    with (report / "rows.csv").open(newline="") as stream:
        flat = list(csv.DictReader(stream))
    assert [r["precision"] for r in rows] == [r["precision"] for r in flat] == ["fp32", "fp16", "bf16"]
    assert list(flat[0]) == list(rows[0])
    for row in rows:
        manifest = json.loads((exports / row["precision"] / "manifest.json").read_text())
        assert row["onnx_sha256"] == manifest["files"]["model.onnx"]["sha256"]
        assert row["weights_sha256"] == manifest["weights"]["sha256"]
        assert row["cpu"]
        assert row["threads"] >= 1
        assert row["resolution"] == "224x224"


def test_accuracy_is_the_one_of_the_trained_model(report: Path) -> None:
    rows = {r["precision"]: r for r in json.loads((report / "rows.json").read_text())}
    assert rows["fp32"]["agreement_fp32"] == 1.0
    assert rows["fp16"]["agreement_fp32"] >= 0.99
    assert rows["bf16"]["agreement_fp32"] >= 0.95
    for row in rows.values():
        assert row["images"] == 599
        assert row["top1_low"] < row["top1"] < row["top1_high"]
        assert row["top1"] == pytest.approx(rows["fp32"]["top1"], abs=0.02)
        assert row["non_finite_logits"] == 0


def test_timings_are_ordered_and_consistent(report: Path) -> None:
    for row in json.loads((report / "rows.json").read_text()):
        assert 0 < row["latency_p50_ms"] <= row["latency_p90_ms"] <= row["latency_p99_ms"]
        assert row["throughput_p20_img_per_s"] <= row["throughput_img_per_s"] <= row["throughput_p80_img_per_s"]
        assert (row["latency_batch"], row["throughput_batch"]) == (1, 8)


def test_emulated_speed_takes_no_part_in_the_front(report: Path) -> None:
    rows = {r["precision"]: r for r in json.loads((report / "rows.json").read_text())}
    assert rows["bf16"]["on_front"] is None
    assert "exact rounding" in rows["bf16"]["note"]
    assert any(rows[p]["on_front"] for p in ("fp32", "fp16"))


def test_report_is_one_self_contained_page(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert page.count("<svg") == 1
    for outside in ("src=", "<link", "@import", "url(http", "<script"):
        assert outside not in page
    for text in ("faster_vit_digits_s fp16", "95 % Wilson interval", "ONNX Runtime", "on the front"):
        assert text in page
    with Image.open(report / "pareto.png") as picture:
        assert picture.size[0] > 1000
    assert sorted(p.name for p in report.iterdir()) == ["pareto.png", "report.html", "rows.csv", "rows.json"]


def test_speed_only_without_data(command: Command, exports: Path, tmp_path: Path) -> None:
    done = command("fastervit-bench", exports / "fp32", "--batch", 2, "--seconds", 0.1, "--output", tmp_path / "r")
    assert done.code == 0, done.err
    (row,) = json.loads((tmp_path / "r" / "rows.json").read_text())
    assert (row["top1"], row["on_front"], row["dataset"]) == (None, None, None)
    assert not (tmp_path / "r" / "pareto.png").exists()
    assert "report.html" in done.out


def test_a_folder_of_pictures(command: Command, exports: Path, tmp_path: Path) -> None:
    from fastervit_trt.models.digits.data import load_digits_split

    images, labels = load_digits_split("held_out")
    for i in range(60):
        (tmp_path / "data" / f"digit{labels[i]}").mkdir(parents=True, exist_ok=True)
        images[i].save(tmp_path / "data" / f"digit{labels[i]}" / f"{i}.png")
    done = command(
        "fastervit-bench", exports / "fp16", "--data", tmp_path / "data", "--seconds", 0.1, "--output", tmp_path / "r"
    )
    assert done.code == 0, done.err
    (row,) = json.loads((tmp_path / "r" / "rows.json").read_text())
    assert row["images"] == 60
    assert row["top1"] > 0.85


def test_without_the_checkpoint_agreement_is_missing_and_says_why(
    command: Command, exports: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exports / "fp32", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["weights"] = {"kind": "checkpoint", "path": str(tmp_path / "gone.pth"), "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = command("fastervit-bench", folder, "--data", "digits", "--seconds", 0.1, "--output", tmp_path / "r")
    assert done.code == 0, done.err
    (row,) = json.loads((tmp_path / "r" / "rows.json").read_text())
    assert row["agreement_fp32"] is None
    assert "gone.pth' does not exist" in row["note"]


def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tampered = tmp_path / "tampered"
    shutil.copytree(exports / "fp32", tampered)
    with (tampered / "model.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\x00\xff")
    for name in ("empty", "pictures/a", "pictures/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / name / "i.png")
    (tmp_path / "empty" / "i.png").unlink()
    fine = exports / "fp32"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("nowhere",), "'nowhere' is no export: it has no manifest.json"),
        ((tampered,), "is not the file the manifest describes"),
        ((fine, "--data", "empty"), "dataset folder 'empty' has no images"),
        ((fine, "--data", "missing"), "is neither 'digits' nor a folder"),
        ((fine, "--data", "pictures"), "has 2 classes"),
        ((fine, "--batch", 64), "serves batch 1:4:8, not 64"),
        ((fine, "--output", tampered), "already exists"),
        ((fine, "--output", tampered, "--overwrite"), "holds no rows.json, so it is not replaced"),
        ((), "Missing argument"),
    ]
    before = sorted(p for p in tmp_path.rglob("*"))
    for arguments, message in cases:
        finished = command("fastervit-bench", *arguments)
        assert finished.code == 2
        assert message in finished.error
        assert sorted(p for p in tmp_path.rglob("*")) == before
