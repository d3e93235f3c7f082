"""A measurement is a row with its whole context; the fields of the row are the columns of the CSV file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastervit_trt.artifacts import write_csv

__all__ = ["ROWS_NAME", "BenchmarkRow", "write_rows"]

ROWS_NAME = "rows.json"
_SCHEMA = 1


@dataclass(frozen=True)
class BenchmarkRow:
    """One artifact, measured on one machine. Times are wall clock; intervals are 95 %."""

    model: str
    precision: str
    backend: str
    resolution: str  # HxW
    parameters: int  # of the deploy form
    dataset: str | None
    images: int | None
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    agreement_fp32: float | None  # share of images with the top-1 of PyTorch fp32
    non_finite_logits: int | None
    latency_batch: int
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_samples: int
    throughput_batch: int
    throughput_img_per_s: float  # at the median call
    throughput_p20_img_per_s: float  # exceeded by 80 % of the calls
    throughput_p80_img_per_s: float  # exceeded by 20 % of the calls
    throughput_samples: int
    speed_is_meaningful: bool  # False where the backend emulates the precision
    on_front: bool | None  # None where accuracy is unknown or speed means nothing
    dominated_by: str | None
    slower_because: str  # where 8 bits are not faster than the same model in 16 or 32: why
    engines_against_8_bits: str  # what stands against 8 bits in the engines of the export, which were built, not run
    note: str
    file_bytes: int
    onnx_sha256: str
    weights_sha256: str
    export: str  # folder name
    cpu: str
    threads: int
    load_before: float | None  # 1-minute load average when the run started
    os: str
    fastervit_trt: str
    python: str
    torch: str
    onnxruntime: str
    timestamp_utc: str
    schema: int = _SCHEMA

    @property
    def label(self) -> str:
        return f"{self.model} {self.precision}"


def write_rows(rows: Sequence[Any], folder: Path) -> tuple[Path, Path]:
    """``rows.csv`` and ``rows.json`` in ``folder``, of rows of one dataclass."""
    csv_path, json_path = folder / "rows.csv", folder / ROWS_NAME
    write_csv(rows, csv_path)
    json_path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return csv_path, json_path
