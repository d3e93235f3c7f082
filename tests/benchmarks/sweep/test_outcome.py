"""What came of a cell as a row: stable or not, failed, and what is written beside the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.sweep.cell import cell_of
from fastervit_trt.benchmarks.sweep.group import Measurement
from fastervit_trt.benchmarks.sweep.outcome import accuracy_of, record_of, unmeasured
from fastervit_trt.benchmarks.sweep.plan import Options

OPTIONS = Options(rounds=4, threads=2, machine="bench-1", transfers=True)
FACTS = {
    "artifact": "model.onnx",
    "artifact_sha256": "ab" * 32,
    "device": "a CPU",
    "device_kind": "cpu",
    "clock": "host",
    "note": "fp16 pays on GPUs",
    "flags": "",
}
ACCURACY = {
    "columns": {"images": 4, "top1": 0.75, "top1_low": 0.3, "top1_high": 0.95, "dataset": "digits"},
    "right": [1, 0, 1, 1],
    "note": "no agreement with PyTorch: gone",
}


@pytest.fixture(scope="module")
def manifest(exports: Path) -> Manifest:
    return Manifest.read(exports / "fp16")


def measured(
    manifest: Manifest, exports: Path, latency: list[float], throughput: list[float], **more: Any
) -> Measurement:
    """Medians of four rounds."""
    cell = cell_of(exports / "fp16", manifest, "ort-cpu", 8, 1, OPTIONS, "")
    samples = ([[value] * 3 for value in times] for times in (latency, throughput))
    return Measurement(cell, "", FACTS, ACCURACY, *samples, **more)


def test_a_steady_cell_is_ok_and_has_its_context(manifest: Manifest, exports: Path) -> None:
    record = record_of(measured(manifest, exports, [0.01, 0.01, 0.0102, 0.01], [0.004] * 4), manifest, OPTIONS)
    row = record.row
    assert (row.status, row.reason, row.attempts) == ("ok", "", 1)
    assert (row.model, row.precision, row.batch, row.threads) == ("faster_vit_digits_s", "fp16", 8, 2)
    assert (row.machine, row.transfers, row.rounds, row.export) == ("bench-1", True, 4, "fp16")
    assert row.latency_p50_ms == pytest.approx(10)
    assert row.throughput_img_per_s == pytest.approx(2000)
    assert (row.latency_samples, row.throughput_samples) == (12, 12)
    assert row.note == "fp16 pays on GPUs; no agreement with PyTorch: gone"
    assert "fused: " in row.audit
    assert row.weights_sha256 == manifest.weights["sha256"]
    assert record.latency_s[2] == (0.0102,) * 3
    again = accuracy_of(record)
    assert again is not None
    assert (again["columns"]["top1"], again["columns"]["dataset"]) == (0.75, "digits")
    assert np.array_equal(again["right"], [True, False, True, True])


@pytest.mark.parametrize(
    ("latency", "throughput", "moved"),
    [
        ([0.01, 0.01, 0.011, 0.011], [0.004] * 4, "latency by +10.0%"),
        ([0.01] * 4, [0.004, 0.004, 0.003, 0.003], "throughput by -25.0%"),
    ],
)
def test_halves_that_differ_make_a_row_unstable_and_say_by_how_much(
    manifest: Manifest, exports: Path, latency: list[float], throughput: list[float], moved: str
) -> None:
    row = record_of(measured(manifest, exports, latency, throughput, attempts=2), manifest, OPTIONS).row
    assert (row.status, row.attempts) == ("unstable", 2)
    assert f"by more than 5% ({moved}) in 2 fresh processes" in row.reason


def test_what_failed_has_its_reason_and_no_figures(manifest: Manifest, exports: Path) -> None:
    failed = measured(manifest, exports, [], [])
    failed.failure = "its process was ended by SIGKILL"
    record = record_of(failed, manifest, OPTIONS)
    assert (record.row.status, record.row.reason) == ("failed", "its process was ended by SIGKILL")
    assert (record.row.throughput_img_per_s, record.row.top1, record.latency_s) == (None, None, ())
    assert accuracy_of(record) is None
    skipped = unmeasured(failed.cell, OPTIONS, "skipped", "no GPU", manifest)
    assert (skipped.row.status, skipped.row.backend, skipped.row.parameters) == ("skipped", "ort-cpu", 27582)
