from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.benchmarks.gpu import report as gpu_report
from fastervit_trt.benchmarks.gpu.goals import gain, outcomes
from fastervit_trt.benchmarks.gpu.report import line_of, print_report
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, STOPPED, Context, GpuRow, Result, RowFolder

CONTEXT = Context(**{field.name: f"some {field.name}" for field in fields(Context)})
CORE, BLOCK, FIRST = "faster_vit_0_224 stage 3 window", "faster_vit_0_224 stage 3 block", "faster_vit_0_224"


def row(stage: str, case: str, peer: str, ratio: float | None = None, **values: Any) -> GpuRow:
    values = {"status": OK, "batch": 128, "time_us": 10.0 * (ratio or 1), "time_over_ours": ratio, **values}
    return GpuRow.of(Result(stage=stage, case=case, peer=peer, **values), CONTEXT, "2026-11-21T00:00:00+00:00")


def measured(rows: list[GpuRow]) -> dict[str, tuple[float, bool, str]]:
    return {o.goal: (o.measured, o.met, o.where) for o in outcomes(rows) if o.measured is not None}


def test_nothing_is_met_where_nothing_was_measured() -> None:
    assert not measured([])
    assert not any(outcome.met for outcome in outcomes([]))


def test_the_share_of_bandwidth_is_of_our_fastest_kernel_in_fp16() -> None:
    rows = [
        row("core", CORE, "ours", 1, share_of_copy=0.6),
        row("core", CORE, "ours streamed", 0.8, share_of_copy=0.75),
        row("core", CORE, "ours int8", 0.5, share_of_copy=0.9, dtype="int8"),
        row("core", CORE, "triton", 0.5, share_of_copy=0.95),
        row("core", CORE, "ours", 1, share_of_copy=0.99, batch=8),
    ]
    assert measured(rows)["attention core, batch 128: share of copy bandwidth"] == (0.75, True, "ours streamed")


def test_gains_are_over_the_fastest_peer_of_a_kind_by_our_fastest() -> None:
    rows = [
        row("core", CORE, "ours", 1.0),
        row("core", CORE, "ours resident", 0.5),
        row("core", CORE, "sdpa efficient", 1.4),
        row("core", CORE, "sdpa copies", 2.0),
        row("core", CORE, "sdpa flash", None, status=FAILED, time_us=None),
        row("core", CORE, "triton", 0.45),
    ]
    found = measured(rows)
    assert found["attention core, batch 128: over SDPA with copies"][:2] == (4, True)
    assert found["attention core, batch 128: over the fastest SDPA"][:2] == (2.8, False)
    assert found["attention core: over any peer"] == (0.9, False, f"triton, {CORE}, batch 128")


def test_goals_of_blocks_and_models() -> None:
    rows = [
        row("block", BLOCK, "ours", 1.0),
        row("block", BLOCK, "compile", 1.6),
        row("block", BLOCK, "compile deploy", 1.1),
        row("models", FIRST, "ours", 1.0),
        row("models", FIRST, "ours compiled", 0.8),
        row("models", FIRST, "compile", 1.2),
        row("models", FIRST, "compile planes", 1.1),
        row("models", FIRST, "eager", 3.0),
        row("models", FIRST, "ours", 1.0, batch=1, latency_us=300.0),
        row("models", FIRST, "eager captured", 1.5, batch=1, latency_us=270.0),
    ]
    found = measured(rows)
    assert found["HAT block, batch 128: over torch.compile"][0] == 1.6
    assert found["FasterViT-0, batch 128: over torch.compile"] == (
        pytest.approx(1.1 / 0.8),
        True,
        f"compile planes, {FIRST}, batch 128",
    )
    assert found["models: over any peer at any batch"][0] == pytest.approx(1.1 / 0.8)
    assert found["models, batch 1: latency over any peer"][:2] == (0.9, False)
    assert "FasterViT-1, batch 128: over torch.compile" not in found


def test_gain_needs_turns_taken_together() -> None:
    alone = row("core", CORE, "eager", None)
    assert gain(alone, [alone]) is None


def test_lines_of_rows() -> None:
    timed = row("core", CORE, "triton", 2.0, time_p20_us=19.0, time_p80_us=21.0, share_of_floor=0.5)
    assert line_of(timed) == f"core {CORE} batch 128 triton: 20.00 us (19.00..21.00), x2.00 of ours, 50 % of floor"
    stopped = Result(stage="models", case="", peer="", status=STOPPED, note="the run's time was up")
    assert line_of(stopped) == "models: stopped, the run's time was up"
    fact = Result(stage="facts", case="tools", peer="nvcc", status=OK, note="/usr/bin/nvcc")
    assert line_of(fact) == "facts tools nvcc: /usr/bin/nvcc"
    build = Result(stage="build", case="library", peer="so", status=OK, value=74.25, unit="s")
    assert line_of(build) == "build library so: 74.25 s"


def many_rows() -> list[GpuRow]:
    rows = [
        row("core", f"case {i}", peer, ratio, share_of_floor=0.7, share_of_copy=0.65)
        for i in range(30)
        for peer, ratio in (("ours", 1.0), ("a", 2.0), ("b", 3.0), ("c", 4.0), ("d", 5.0), ("e", 6.0))
    ]
    rows += [row("kernels", "tests", f"test {i}", status=FAILED, time_us=None, note="x" * 400) for i in range(60)]
    return [*rows, row("environment", "device-to-device copy", "", time_us=1.0, value=4300.0, unit="GB/s")]


def test_the_report_is_short_however_many_rows_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(many_rows())
    out = capsys.readouterr().out
    assert len(out) < 10_000
    assert re.search(r"case 0 +128 +10\.0 +70 % +65 % +a 2\.00, b 3\.00, c 4\.00, d 5\.00, 1 more", out)
    assert "and 18 more cases" in out
    assert "and 40 more in rows.json" in out
    assert out.splitlines()[-1].startswith("some gpu, driver some driver")


def test_a_folder_is_reported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RowFolder.open(tmp_path).add(many_rows())
    with pytest.raises(SystemExit) as stop:
        gpu_report.main([str(tmp_path)])
    assert stop.value.code == 0
    assert "attention core, batch 128: share of copy bandwidth" in capsys.readouterr().out
