"""The whole comparison on the smallest model, with real exports and TensorRT-RTX builds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.studies import plan_kernels
from fastervit_trt.benchmarks.studies.plan_kernels import FORMS, KINDS, measure_plan
from fastervit_trt.engines.rtx import RtxTarget, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import get_float

pytestmark = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))


def test_the_export_launches_less_than_the_naive_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "kernels.csv"
    with pytest.raises(SystemExit) as stop:
        plan_kernels.main(f"--model faster_vit_digits_s --output {table}".split())
    assert stop.value.code == 0
    with table.open(newline="") as stream:
        rows = {row["form"]: row for row in csv.DictReader(stream)}
    assert list(rows) == list(FORMS)
    for row in rows.values():
        assert sum(int(row[kind.value]) for kind in KINDS) == int(row["launches"])
        assert (row["attention"], row["softmax"], row["other"]) == ("1", "2", "0")
        assert (row["precision"], row["compute_capability"], row["tensorrt_rtx"] != "") == ("fp16", "8.9", True)
    assert [row["batch"] for row in rows.values()] == ["8", "1:8:32", "8"]
    export, *naive = ({k: float(v) for k, v in row.items() if k in ("launches", "nodes")} for row in rows.values())
    # what the deploy form computes beforehand, a naive graph computes on every run: one MLP per position table
    assert all(graph["launches"] > export["launches"] and graph["nodes"] > export["nodes"] for graph in naive)
    out = capsys.readouterr().out
    assert "naive dynamic, 1:8:32" in out
    assert f"{naive[1]['launches'] / export['launches']:.2f}x" in out


def test_what_cannot_be_measured_is_refused_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match="unknown form 'fast'; choose one of export, naive dynamic, naive static"):
        measure_plan("faster_vit_digits_s", "fast", get_float("fp16"), RtxTarget.parse("8.9"))
    with pytest.raises(SystemExit) as stop:
        plan_kernels.main(f"--model faster_vit_digits_s --model nonesuch --output {tmp_path / 'k.csv'}".split())
    assert stop.value.code == 2
    assert "unknown model 'nonesuch'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
