from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.benchmarks.comparison.guard import Limits, Verdict, check_records
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import write_rows
from fastervit_trt.cli.bench_reports import check_command, parse_points, parse_share
from fastervit_trt.console import command_app, run_command
from fastervit_trt.errors import FasterViTError
from tests.benchmarks.comparison.example_records import correct, lost, record, save, without_samples

FIVE = Limits(0.05)


def run_of(run: int, *, machine: float = 1.0, pytorch: bool = True, **speeds: float) -> list[Record]:
    """FasterViT in three precisions, beside PyTorch, on a machine of some speed."""
    records = [record(p, speed=machine * speeds.get(p, 1000.0), run=run) for p in ("fp32", "fp16", "int8")]
    beside = [record(p, "torch", speed=machine * speeds.get("torch", 300.0), run=run) for p in ("fp32", "fp16")]
    return records + (beside if pytorch else [])


def falls(now: list[Record], baseline: list[Record], **options: Any) -> list[str]:
    """Precision and metric of what fell."""
    verdict = check_records(now, baseline, FIVE, **options)
    return [f"{line.split()[1].rstrip(',')} {line.split(': ')[1].split()[0]}" for line in verdict.falls]


def test_a_slower_row_falls_in_both_speeds_and_the_line_says_by_how_much() -> None:
    verdict = check_records(run_of(1, int8=800.0), run_of(0), FIVE)
    throughput, latency = verdict.falls
    assert throughput.startswith("faster_vit_0_224 int8, tensorrt, 224x224, batch 8: throughput fell by ")
    numbers = re.search(r"by (\S+) % \((\S+) to (\S+)\): (\S+) times as fast as torch fp32 then, (\S+) now", throughput)
    assert numbers is not None
    fell, low, high, then, now = map(float, numbers.groups())
    assert low < fell < high and fell == pytest.approx(20, abs=2)
    assert then == pytest.approx(1000 / 300, rel=0.02)
    assert now == pytest.approx(800 / 300, rel=0.02)
    assert "latency worsened by" in latency
    assert verdict.checked == 6  # three rows, two speeds; PyTorch is what they are judged by


def test_nothing_falls_on_a_machine_that_is_slower_altogether() -> None:
    assert falls(run_of(1, machine=0.6), run_of(0)) == []
    assert falls(run_of(1, machine=0.6, pytorch=False), run_of(0, pytorch=False)) == []
    verdict = check_records(run_of(1, machine=0.6), run_of(0), FIVE)
    assert "does not see a slowdown of everything alike (speeds themselves moved by -40" in verdict.summary


def test_absolute_sees_what_ratios_do_not() -> None:
    fallen = falls(run_of(1, machine=0.6), run_of(0), absolute=True)
    assert len(fallen) == 10  # PyTorch, too
    assert falls(run_of(1), run_of(0), absolute=True) == []


def test_a_fall_counts_beyond_the_limit_and_beyond_noise_only() -> None:
    within = check_records(run_of(1, int8=970.0), run_of(0), FIVE)
    assert (within.falls, within.doubtful) == ((), ())
    noisy = [
        [record("int8", speed=speed, noise=0.15, run=run), record("int8", "torch", run=run)]
        for run, speed in ((0, 1000), (1, 950))
    ]
    verdict = check_records(noisy[1], noisy[0], FIVE)
    assert verdict.falls == ()
    assert len(verdict.doubtful) == 2  # told, though not failed


def test_an_unchanged_program_hardly_ever_fails() -> None:
    assert sum(len(falls(run_of(2 * k + 1), run_of(2 * k))) for k in range(40)) == 0


def test_what_a_minute_did_to_all_rows_of_a_run_is_taken_out() -> None:
    """Rows take turns in rounds, so a drifting machine drifts for all alike."""

    def drifting(run: int, speed: float) -> list[Record]:
        rows = [record("int8", speed=speed, run=run, noise=0.003), record("int8", "torch", run=run, noise=0.003)]
        drift = [1 + 0.1 * k for k in range(8)]  # up to 70 % slower in the course of the run
        return [
            replace(
                kept,
                latency_s=tuple(
                    tuple(f * s for s in samples) for f, samples in zip(drift, kept.latency_s, strict=True)
                ),
                throughput_s=tuple(
                    tuple(f * s for s in samples) for f, samples in zip(drift, kept.throughput_s, strict=True)
                ),
            )
            for kept in rows
        ]

    assert falls(drifting(1, 900), drifting(0, 1000)) == ["int8 throughput", "int8 latency"]
    assert falls(drifting(1, 900), drifting(0, 1000), absolute=True) == []  # hidden by the drift


def test_without_samples_percentiles_must_be_apart_too() -> None:
    baseline = [without_samples(r) for r in run_of(0)]
    assert falls(run_of(1, int8=800.0), baseline) == ["int8 throughput", "int8 latency"]
    assert falls(run_of(1, machine=2.0, int8=800.0), baseline) == ["int8 throughput", "int8 latency"]
    wide = [without_samples(record("int8", noise=0.1)), *baseline[-2:]]
    verdict = check_records([record("int8", speed=920, run=1, noise=0.1), *run_of(1)[-2:]], wide, FIVE)
    assert not verdict.falls and verdict.doubtful


def test_the_reference_has_the_same_precision_where_there_is_one() -> None:
    baseline, now = run_of(0), run_of(1)
    now[-1] = record("fp16", "torch", speed=200, run=1)  # PyTorch in fp16 became slower
    now[1] = record("fp16", speed=667, run=1)  # and so did fp16 of ours
    assert falls(now, baseline) == []
    now[0] = record("fp32", speed=667, run=1)  # which PyTorch in fp32 did not
    assert falls(now, baseline) == ["fp32 throughput", "fp32 latency"]


def test_without_pytorch_the_median_of_the_rows_is_the_reference() -> None:
    baseline = run_of(0, pytorch=False)
    verdict = check_records(run_of(1, pytorch=False, int8=800.0), baseline, FIVE)
    assert len(verdict.falls) == 2
    assert "against the median of 3 rows" in verdict.falls[0]
    assert falls(run_of(1, pytorch=False, int8=2000.0), baseline) == []  # a gain of one is no fall of the others
    assert falls(run_of(1, int8=800.0, torch=600.0), run_of(0), relative_to="median")[:1] == ["int8 throughput"]
    with pytest.raises(
        FasterViTError, match=r"neither a reference row beside it nor 3 rows.*'torch', too, or use --abs"
    ):
        check_records(baseline[:2], baseline[:2], FIVE)


def test_a_reference_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(FasterViTError, match=r"fp32, tensorrt, 224x224, batch 8 has no row of backend 'ort-cuda'"):
        check_records(run_of(1), run_of(0), FIVE, relative_to="ort-cuda")
    now = [*run_of(1), record("int8", "openvino", run=1, speed=500.0)]
    baseline = [*run_of(0), record("int8", "openvino", speed=1000.0)]
    assert falls(now, baseline, relative_to="tensorrt") == ["int8 throughput", "int8 latency"]


def test_rows_of_other_devices_are_no_reference() -> None:
    baseline = [record("int8"), record("int8", "torch", device="EPYC", device_kind="cpu", threads=2)]
    with pytest.raises(FasterViTError, match="neither a reference row"):
        check_records(baseline, baseline, FIVE)


def test_another_device_is_a_caution_for_ratios_and_an_error_for_speeds() -> None:
    now = [replace(kept, row=replace(kept.row, device="L4")) for kept in run_of(1)]
    (caution,) = check_records(now, run_of(0), FIVE).cautions
    assert "the baseline is of H100, this run of L4" in caution
    with pytest.raises(FasterViTError, match="is of H100 in the baseline and of L4 now"):
        check_records(now, run_of(0), FIVE, absolute=True)


def test_what_is_gone_is_a_failure_unless_allowed() -> None:
    baseline = [*run_of(0), record("fp8"), lost("bf16")]
    now = [*run_of(1), lost("fp8"), lost("bf16")]  # bf16 never worked
    verdict = check_records(now, baseline, FIVE)
    assert verdict.missing == ("faster_vit_0_224 fp8, tensorrt, 224x224, batch 8: failed now: no such kernel",)
    assert check_records(run_of(1), baseline, FIVE).missing == (
        "faster_vit_0_224 fp8, tensorrt, 224x224, batch 8: missing",
    )
    allowed = check_records(now, baseline, FIVE, allow_missing=True)
    assert not allowed.missing and "1 of the baseline are missing, which was allowed" in allowed.cautions[0]


def test_nothing_to_judge_is_no_success() -> None:
    with pytest.raises(FasterViTError, match="no condition in common"):
        check_records([record("fp16")], [record("int8")], FIVE)
    emulated = [record(p, speed_is_meaningful=False) for p in ("bf16", "fp8", "int8")]
    with pytest.raises(FasterViTError, match="nothing to judge"):
        check_records(emulated, emulated, FIVE)
    with pytest.raises(FasterViTError, match="nothing to judge"):
        check_records([lost("fp16")], [record("fp16")], FIVE, allow_missing=True)
    assert check_records([lost("fp16")], [record("fp16")], FIVE).missing


def accuracy(now: Record, then: Record, points: float) -> Verdict:
    return check_records([now], [then], Limits(0.05, points))


def test_accuracy_is_judged_on_the_same_images_even_if_emulated() -> None:
    then = record("bf16", speed_is_meaningful=False, right=correct(100))
    assert not accuracy(then, then, 0).falls
    worse = record("bf16", speed_is_meaningful=False, right=correct(105))
    assert not accuracy(worse, then, 0.5).falls
    (line,) = accuracy(worse, then, 0.4).falls
    assert line.endswith("top-1 fell by 0.50 points: 90.00 % then, 89.50 % now")
    gone = replace(worse, row=replace(worse.row, top1=None))
    assert accuracy(gone, then, 0.5).missing[0].endswith("its accuracy is no longer measured")
    with pytest.raises(FasterViTError, match="was judged on other images"):
        accuracy(replace(worse, row=replace(worse.row, dataset_sha256="other")), then, 0.5)


def test_doubt_about_a_row_is_told() -> None:
    now = run_of(1)
    now[0] = replace(now[0], row=replace(now[0].row, status="unstable", reason="halves 9 % apart", flags="power cap"))
    (caution,) = check_records(now, run_of(0), FIVE).cautions
    assert caution.endswith("halves 9 % apart; power cap")


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), (" 12.5 %", 0.125), ("0", 0.0)])
def test_shares_are_read(text: str, value: float) -> None:
    assert parse_share(text, "--max-regression") == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "100%", "-1%", "nan", "inf%", "five", "", "%", "5%%"])
def test_nonsense_is_one_line(text: str) -> None:
    with pytest.raises(FasterViTError, match=r"--max-regression is '.*'; write a share"):
        parse_share(text, "--max-regression")
    if text != "5":
        with pytest.raises(FasterViTError, match="percentage points"):
            parse_points(text, "--max-accuracy-drop")


def run_cli(*arguments: object) -> int:
    app = command_app()
    app.command("check")(check_command)
    app.callback()(lambda: None)
    with pytest.raises(SystemExit) as stopped:
        run_command(app, ["check", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_command_says_it_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, good = save(run_of(0), tmp_path / "baseline"), save(run_of(1), tmp_path / "good")
    bad = save(run_of(1, int8=900.0), tmp_path / "bad")
    assert run_cli(good, "--baseline", baseline) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("passed: 6 speeds, relative to torch, torch fp32") and shown.out.count("\n") == 1
    assert run_cli(bad, "--baseline", baseline, "--max-regression", "5%") == 1
    lines = capsys.readouterr().out.splitlines()
    assert ["int8" in line for line in lines[:2]] == [True, True] and lines[2].startswith("2 failed; judged: 6 speeds")
    assert run_cli(bad, "--baseline", baseline, "--max-regression", "0.2") == 0


def test_bad_input_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(run_of(1), tmp_path / "good")
    newer = tmp_path / "newer.json"
    write_rows([replace(kept.row, schema=99) for kept in run_of(0)], tmp_path)
    (tmp_path / "rows.json").rename(newer)
    for arguments, said in (
        ((good, "--baseline", newer), "has rows of schema 99"),
        ((good, "--baseline", tmp_path / "none"), "there are no results at"),
        ((good, "--baseline", good, "--max-regression", "lots"), "--max-regression is 'lots'"),
        ((good, "--baseline", good, "--relative-to", "abacus"), "no row of backend 'abacus'"),
        ((good, "--baseline", good, "--relative-to", "torch", "--absolute"), "exclude each other"),
    ):
        assert run_cli(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_accuracy_of_other_tasks_is_judged_by_their_metric() -> None:
    what = {"task": "segmentation", "dataset": "scenes", "images": 300}
    then, now = (record("int8", score=score, **what) for score in (0.83, 0.82))
    assert not check_records([now], [then], Limits(0.05, 1.01), absolute=True).falls
    (line,) = check_records([now], [then], Limits(0.05, 0.9), absolute=True).falls
    assert line.endswith("mIoU fell by 1.00 points: 83.00 % then, 82.00 % now")
