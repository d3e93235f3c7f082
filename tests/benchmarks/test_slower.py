"""Rows in 8 bits say why they are not faster, and only where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.slower import explain_slow_rows, products_on_cpu
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from tests.benchmarks.example_rows import row
from tests.conftest import QUICK_BENCH, Finished

MODEL = "faster_vit_digits_s"


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of the smallest digits model for TensorRT, with its engine, and for this CPU."""
    from fastervit_trt.cli import export

    root = tmp_path_factory.mktemp("int8")
    for target in ("gpu", "cpu"):
        options = f"--model {MODEL} --pretrained --precision int8 --target {target} --batch 1:4:8"
        ranges = f"--calibration-data digits --calibration-images 64 --calibration-cache {root / 'ranges.json'}"
        with pytest.raises(SystemExit) as stop:
            export.main(f"{options} {ranges} --output {root / target}".split())
        assert stop.value.code == 0
    return {target: root / target for target in ("gpu", "cpu")}


def rows_of(speeds: dict[str, float], **changes: object) -> list[BenchmarkRow]:
    return [row(MODEL, 0.97, speed, precision=precision, **changes) for precision, speed in speeds.items()]


def test_what_is_slower_says_how_much_and_why(exports: Path, int8: dict[str, Path]) -> None:
    rows = rows_of({"fp32": 100.0, "fp16": 80.0, "int8": 50.0, "int8-cpu": 90.0})
    folders = [exports / "fp32", exports / "fp16", int8["gpu"], int8["cpu"]]
    fp32, fp16, gpu, cpu = explain_slow_rows(rows, folders)
    assert (fp32, fp16) == tuple(rows[:2])
    assert gpu.slower_because.startswith("0.50 times as fast as fp32; ONNX Runtime's CPU provider runs 0 of ")
    assert "of the multiplications are not in 8 bits; this form is for TensorRT; " in gpu.slower_because
    assert cpu.slower_because.startswith("0.90 times as fast as fp32; ONNX Runtime's CPU provider runs ")
    assert "TensorRT" not in cpu.slower_because
    if rtx_unavailable_reason() is None:
        (engine,) = Manifest.read(int8["gpu"]).engines
        assert engine["against_8_bits"]
        assert gpu.engines_against_8_bits.startswith("tensorrt-rtx for 8.9: ")
        assert all(finding["reason"] in gpu.engines_against_8_bits for finding in engine["against_8_bits"])


@pytest.mark.parametrize(
    ("others", "why_not"),
    [
        ({"fp32": 100.0}, "int8 is faster"),
        ({"fp32": 200.0, "weights_sha256": "other"}, "other weights"),
        ({"fp32": 200.0, "resolution": "320x320"}, "another resolution"),
        ({"fp32": 200.0, "speed_is_meaningful": False}, "emulated"),
    ],
)
def test_what_is_not_slower_than_the_same_model_says_nothing(
    exports: Path, int8: dict[str, Path], others: dict[str, object], why_not: str
) -> None:
    speed = float(str(others.pop("fp32")))
    rows = [*rows_of({"fp32": speed}, **others), *rows_of({"int8": 150.0})]
    assert explain_slow_rows(rows, [exports / "fp32", int8["gpu"]])[1].slower_because == "", why_not


def test_products_in_8_bits_are_those_that_the_runtime_runs(exports: Path, int8: dict[str, Path]) -> None:
    blocks = Manifest.read(int8["cpu"]).graph["quantisation"]["blocks"]
    narrow, wide = products_on_cpu(int8["cpu"] / "model.onnx")
    attentions = [block for block in blocks if block.endswith(".attn.qkv")]
    assert narrow == len(blocks) + 2 * len(attentions)  # q, k and v apart
    assert wide < products_on_cpu(exports / "fp32" / "model.onnx")[1]
    assert products_on_cpu(exports / "fp32" / "model.onnx")[0] == 0


def test_the_report_shows_reasons(command: Callable[..., Finished], exports: Path, int8: dict[str, Path]) -> None:
    output = int8["gpu"].parent / "report"
    done = command("fastervit-bench", exports / "fp32", int8["gpu"], "--batch", 8, *QUICK_BENCH, "--output", output)
    assert done.code == 0, done.err
    page = (output / "report.html").read_text()
    assert "Where 8 bits do not pay, and why" in page
    if rtx_unavailable_reason() is None:
        assert "tensorrt-rtx for 8.9: " in page
