from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.artifacts import write_csv
from fastervit_trt.benchmarks.comparison.compare import compare_records
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import write_rows
from fastervit_trt.cli.bench_reports import compare_command
from fastervit_trt.console import command_app, run_command
from fastervit_trt.errors import FasterViTError
from tests.benchmarks.comparison.example_records import correct, lost, record, save, without_samples

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


def run_of(run: int, **speeds: float) -> list[Record]:
    return [record(precision, speed=speeds.get(precision, 1000.0), run=run) for precision in PRECISIONS]


def test_only_what_changed_is_reported_with_its_size() -> None:
    found = compare_records(run_of(0), run_of(1, int8=800.0, fp8=1200.0))
    assert [(d.condition.split(",")[0].split()[1], d.worse) for d in found.differences] == [
        *(("int8", True), ("int8", True), ("fp8", False), ("fp8", False))
    ]
    changes = {d.metric: d.change for d in found.differences[:2]}
    assert changes["throughput"] == pytest.approx(-0.2, abs=0.02)
    assert changes["latency"] == pytest.approx(0.25, abs=0.025)  # more is worse
    for difference in found.differences:
        assert difference.change is not None and difference.low is not None and difference.high is not None
        assert difference.low < difference.change < difference.high
        assert difference.high - difference.low < 0.08
        assert difference.p is not None and difference.p < 0.01
        assert difference.basis == "rounds"
    assert (found.pairs, found.compared, found.not_different) == (5, 10, 6)
    assert not found.not_comparable and not found.only_before and not found.only_after


def test_two_runs_of_the_same_differ_in_nothing() -> None:
    alarms = [len(compare_records(run_of(2 * k), run_of(2 * k + 1), least=0.0).differences) for k in range(60)]
    assert sum(count > 0 for count in alarms) <= 7  # each time 5 % for all ten comparisons together


def test_the_number_of_comparisons_is_paid_for() -> None:
    pair = [record("fp16", run=0, noise=0.02)], [record("fp16", run=1, noise=0.02, speed=970)]
    alone = compare_records(*pair, least=0.0).differences
    assert alone and alone[0].p is not None and 0.001 < alone[0].p < 0.05
    many = [[record(f"fp{bits}", run=run) for bits in range(100, 160)] for run in (2, 3)]
    crowded = compare_records([*pair[0], *many[0]], [*pair[1], *many[1]], least=0.0)
    assert not [d for d in crowded.differences if "fp16," in d.condition]


def test_what_is_certain_but_small_is_not_reported_unless_asked_for() -> None:
    runs = [record("fp16", noise=0.001)], [record("fp16", run=1, noise=0.001, speed=985)]
    assert not compare_records(*runs).differences
    assert len(compare_records(*runs, least=0.01).differences) == 2


def test_noise_hides_what_quiet_runs_show() -> None:
    def differences(noise: float) -> int:
        runs = [record("fp16", noise=noise)], [record("fp16", run=1, noise=noise, speed=900)]
        return len(compare_records(*runs).differences)

    assert differences(0.01) == 2
    assert differences(0.3) == 0


def test_without_samples_percentiles_must_not_overlap() -> None:
    before = [without_samples(r) for r in run_of(0)]
    found = compare_records(before, run_of(1, int8=800.0, fp16=985.0))  # one side is enough to lose the samples
    assert {d.condition.split(",")[0] for d in found.differences} == {"faster_vit_0_224 int8"}
    assert {(d.p, d.low, d.basis) for d in found.differences} == {(None, None, "20th to 80th percentiles apart")}
    loose = [without_samples(record("fp16", noise=0.1)), record("fp16", run=1, noise=0.1, speed=930)]
    assert not compare_records(loose[:1], loose[1:]).differences
    bare = replace(before[1].row, latency_p20_ms=None, throughput_p20_img_per_s=None)
    reasons = compare_records([Record(bare)], [record("fp16", speed=10)]).not_comparable
    assert reasons == {f"{name} without samples or percentiles": 1 for name in ("throughput", "latency")}


def test_a_new_failure_is_always_reported_first() -> None:
    before = [record("fp16", right=correct(10)), record("int8"), lost("fp8"), lost("bf16")]
    after = [
        record("fp16", run=1, right=correct(300)),
        lost("int8"),
        record("fp8", run=1),
        lost("bf16", status="skipped"),
    ]
    found = compare_records(before, after)
    assert [(d.metric, d.before, d.after, d.worse) for d in found.differences if d.metric == "status"] == [
        ("status", "ok", "failed", True),
        ("status", "failed", "ok", False),
    ]
    assert found.differences[0].metric == "status" and "no such kernel" in found.differences[0].note
    assert found.differences[1].metric == "top-1"
    assert found.not_comparable == {"not measured in either run": 1}


def test_accuracy_is_compared_image_by_image_where_that_was_kept() -> None:
    before, after = record("int8", right=correct(100)), record("int8", right=correct(108))
    (paired,) = compare_records([before], [after]).differences  # 8 of 1000 lost, none won
    assert paired.basis.startswith("image by image")
    assert paired.change == pytest.approx(-0.8)
    assert paired.p == pytest.approx(3 * 2 / 2**8)
    assert (paired.before, paired.after, paired.worse) == (pytest.approx(90.0), pytest.approx(89.2), True)
    assert not compare_records([without_samples(before)], [after]).differences  # two shares cannot tell so little
    (apart,) = compare_records([without_samples(before)], [record("int8", right=correct(200))]).differences
    assert apart.basis.startswith("two shares")
    assert apart.change == pytest.approx(-10)


def test_other_images_are_not_compared() -> None:
    found = compare_records(
        [record("int8", right=correct(100))], [record("int8", right=correct(300), dataset_sha256="e")]
    )
    assert not found.differences
    assert found.not_comparable == {"accuracy on other images": 1}


def test_times_of_other_devices_are_compared_on_request_only() -> None:
    before, after = [record("fp16", right=correct(10))], [record("fp16", speed=300, device="L4", right=correct(10))]
    found = compare_records(before, after)
    assert not found.differences and found.not_comparable == {"speed on another device": 1}
    assert found.compared == 1  # the accuracy
    assert found.context == ("device H100 → L4",)
    labelled = compare_records(before, after, across_devices=True).differences
    assert len(labelled) == 2 and all("other device: H100, now L4" in d.note for d in labelled)


def test_other_threads_are_another_cpu() -> None:
    before = [record("fp32", "ort-cpu", device="EPYC", device_kind="cpu", threads=2)]
    after = [record("fp32", "ort-cpu", device="EPYC", device_kind="cpu", threads=4, speed=1900)]
    assert compare_records(before, after).not_comparable == {"speed on another device": 1}


def test_each_row_meets_its_own_device_in_merged_results() -> None:
    before = [record("fp16", device="H100"), record("fp16", device="L4", speed=300)]
    after = [record("fp16", device="L4", speed=300, run=1), record("fp16", device="H100", run=1)]
    found = compare_records(before, after)
    assert (found.pairs, found.compared, len(found.differences)) == (2, 4, 0)


def test_emulated_precisions_have_no_speed_to_compare() -> None:
    before = record("bf16", speed_is_meaningful=False, right=correct(10))
    after = record("bf16", speed_is_meaningful=False, speed=10, right=correct(300))
    found = compare_records([before], [after])
    assert [d.metric for d in found.differences] == ["top-1"]
    assert found.not_comparable == {"speed of an emulated precision": 1}


def test_what_has_no_partner_is_named_and_changed_files_and_flags_are_said() -> None:
    before = [record("fp16"), record("int8", batch=1)]
    after = [
        record("fp16", speed=500, artifact_sha256="new", status="unstable", flags="thermal throttling"),
        record("int8", batch=2),
    ]
    found = compare_records(before, after)
    assert found.only_before == ("faster_vit_0_224 int8, tensorrt, 224x224, batch 1",)
    assert found.only_after == ("faster_vit_0_224 int8, tensorrt, 224x224, batch 2",)
    assert found.differences[0].note == "another file; unstable now; now: thermal throttling"


def test_a_condition_measured_twice_is_refused() -> None:
    with pytest.raises(FasterViTError, match=r"fp16, tensorrt, 224x224, batch 8 is there twice on H100.*one run"):
        compare_records([record("fp16"), record("fp16", run=1)], [record("fp16")])


def test_rows_that_hold_latency_and_throughput_apart_are_one() -> None:
    whole = record("fp16")
    no_latency = replace(whole.row, latency_p20_ms=None, latency_p50_ms=None, latency_p80_ms=None)
    halves = [
        replace(whole, row=replace(whole.row, throughput_img_per_s=None), throughput_s=()),
        replace(whole, row=no_latency, latency_s=()),
    ]
    found = compare_records(halves, [record("fp16", speed=500)])
    assert {(d.metric, d.basis) for d in found.differences} == {("latency", "rounds"), ("throughput", "rounds")}


def run_cli(*arguments: object) -> int:
    app = command_app()
    app.command("compare")(compare_command)
    app.callback()(lambda: None)
    with pytest.raises(SystemExit) as stopped:
        run_command(app, ["compare", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_command_prints_the_worst_first_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = save(run_of(0), tmp_path / "a"), save(run_of(1, int8=800.0, fp8=600.0), tmp_path / "b")
    assert run_cli(before, after, "--json", tmp_path / "out.json") == 0
    printed = capsys.readouterr().out
    assert printed.index("fp8") < printed.index("int8")
    assert "5 conditions in both, 0 in the first only, 0 in the second only; 4 differences" in printed
    assert "10 comparisons, 6 without a difference" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert [d["condition"].split()[1] for d in written["differences"]] == ["fp8,", "fp8,", "int8,", "int8,"]
    assert (written["pairs"], written["compared"], written["not_different"]) == (5, 10, 6)
    assert run_cli(before, after, "--json", tmp_path / "out.json") == 2
    assert "already exists" in capsys.readouterr().err


def test_the_command_reads_tables_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [kept.row for kept in run_of(0)]
    write_rows(rows, tmp_path)
    write_csv([kept.row for kept in run_of(1, fp16=500.0)], tmp_path / "other.csv")
    assert run_cli(tmp_path / "rows.json", tmp_path / "other.csv", "--least", "0.05") == 0
    printed = capsys.readouterr().out
    assert re.search(r"throughput +\S+ img/s +\S+ img/s +-(49|50)\.", printed)
    assert run_cli(tmp_path / "rows.json", tmp_path / "none.csv") == 2
    assert "there are no results at" in capsys.readouterr().err
    assert run_cli(tmp_path / "rows.json", tmp_path / "other.csv", "--least", "2") == 2
    assert "--least is '2'; write a share below all of it, as 5% or 0.05" in capsys.readouterr().err


def scored(score: float, half: float, **changes: Any) -> Record:
    """A detector's record: no image of it is right or wrong."""
    ends = {"score": score, "score_low": score - half, "score_high": score + half, "dataset": "scenes"}
    return record("int8", **{"task": "detection", "dataset_sha256": "5c", "images": 300, **ends, **changes})


def test_other_metrics_are_compared_by_their_intervals() -> None:
    (found,) = compare_records([scored(0.60, 0.02)], [scored(0.52, 0.02)]).differences
    assert (found.metric, found.worse, found.basis.split(",")[0]) == ("mAP", True, "two intervals")
    assert (found.before, found.after, found.change) == pytest.approx((60.0, 52.0, -8.0))
    assert found.low == pytest.approx(-8 - 100 * math.hypot(0.02, 0.02))
    assert found.p is not None and found.p < 0.001
    assert "detection" in found.condition
    assert not compare_records([scored(0.60, 0.02)], [scored(0.59, 0.02)]).differences
    unknown = compare_records([scored(0.60, 0.02)], [scored(0.5, 0.02, score_low=None)])
    assert unknown.not_comparable == {"mAP without its interval": 1}
    painted = compare_records([scored(0.60, 0.02)], [scored(0.5, 0.02, task="segmentation")])
    assert (painted.pairs, len(painted.only_before)) == (0, 1)
