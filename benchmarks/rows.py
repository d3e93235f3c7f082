"""A measurement is a row with its whole context; the fields of the row are the columns of the CSV file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastervit_trt.artifacts import write_csv

__all__ = [
    "METRICS",
    "ROWS_NAME",
    "SCHEMA",
    "BenchmarkRow",
    "Condition",
    "Status",
    "Variant",
    "several_exports",
    "several_sizes",
    "write_rows",
]

ROWS_NAME = "rows.json"
SCHEMA = 2

# "unstable": measured, but the two halves of the time differed in two fresh processes. "skipped": cannot run here.
Status = Literal["ok", "unstable", "failed", "skipped"]
Condition = tuple[str, str, str, str, str, int, int, bool, bool]
Variant = tuple[str, str, str]  # model, precision, resolution

# What accuracy means, by task. mAP is COCO's: the mean over classes and over IoU from 0.50 to 0.95.
METRICS = {"classification": "top-1", "segmentation": "mIoU", "detection": "mAP"}


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One artifact on one backend of one machine. Intervals are 95 %; None: not measured; "": nothing to say."""

    # what was asked for
    model: str
    precision: str
    backend: str
    resolution: str  # HxW
    task: str = "classification"
    batch: int
    streams: int = 1  # batches under way at the same time while throughput is measured
    transfers: bool = False  # copies to and from the GPU are within what is timed
    cold_cache: bool = False  # the GPU's L2 cache is emptied before each batch
    status: Status
    reason: str = ""  # why it failed, was skipped or is unstable

    # the artifact
    export: str = ""  # folder name, with as much of its path as tells it from the others
    artifact: str = ""  # the file that ran: model.onnx, an engine; "weights" where PyTorch ran the model itself
    artifact_sha256: str = ""
    weights_sha256: str = ""
    file_bytes: int | None = None
    parameters: int | None = None
    audit: str = ""  # what it is made of, as its own build or the graph shows it

    # accuracy of that artifact on that backend
    dataset: str | None = None
    dataset_sha256: str = ""
    images: int | None = None
    unreadable_images: int | None = None  # left out
    metric: str = ""  # what ``score`` is, one of METRICS
    score: float | None = None  # in [0, 1]
    score_low: float | None = None
    score_high: float | None = None
    figures: str = ""  # further ones, as JSON: {"mAP@50": 0.91}
    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    top5: float | None = None
    top5_low: float | None = None
    top5_high: float | None = None
    agreement_fp32: float | None = None  # share of images with the top-1 of PyTorch fp32; else as scoring.py defines it
    sqnr_db: float | None = None  # of the logits against PyTorch fp32
    non_finite_logits: int | None = None  # or other outputs

    # its time; percentiles are over calls, so the 80th of throughput is exceeded by 20 % of them
    clock: str = ""  # "host" or "CUDA events"
    latency_p20_ms: float | None = None  # one batch handed in, the next when it is done
    latency_p50_ms: float | None = None
    latency_p80_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_samples: int = 0
    latency_drift: float | None = None  # median of the second half of the time over that of the first, minus 1
    throughput_img_per_s: float | None = None  # at the median call
    throughput_p20_img_per_s: float | None = None
    throughput_p80_img_per_s: float | None = None
    throughput_samples: int = 0
    throughput_drift: float | None = None
    rounds: int = 0  # slices in which it took turns with the others
    warm_up_seconds: float | None = None
    attempts: int = 1  # fresh processes that it took
    speed_is_meaningful: bool = True  # False where the backend emulates the precision
    note: str = ""
    slower_because: str = ""  # where 8 bits are not faster than the same model in 16 or 32: why
    engines_against_8_bits: str = ""  # what stands against 8 bits in the engines of the export

    # the machine
    machine: str = ""  # a name the user gave it
    device: str = ""  # the processor or GPU that ran it
    device_kind: str = ""  # "cpu" or "gpu"
    compute_capability: str = ""
    driver: str = ""
    cuda: str = ""
    cpu: str = ""
    threads: int | None = None
    affinity: str = ""  # logical CPUs it may use, as in "0-3,8"
    load_before: float | None = None  # 1-minute load average
    other_load: float | None = None  # cores that other processes used meanwhile, mean
    sm_clock_mhz: float | None = None  # median while timed, as the following
    sm_clock_low_mhz: float | None = None  # lowest
    memory_clock_mhz: float | None = None
    power_w: float | None = None  # mean
    temperature_c: float | None = None  # highest
    throttle: str = ""  # reasons seen while timed
    energy_mj_per_image: float | None = None
    flags: str = ""  # what casts doubt on the time, "; " between
    peak_rss_mib: int | None = None  # of the cell's process, with PyTorch's where it took the accuracy
    gpu_memory_mib: int | None = None

    # versions
    os: str = ""
    fastervit_trt: str = ""
    python: str = ""
    torch: str = ""
    onnxruntime: str = ""
    tensorrt: str = ""
    openvino: str = ""
    timestamp_utc: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """A classifier's score is its top-1, also in rows that were written when there was no other metric."""
        own: dict[str, Any] = {"metric": self.metric or METRICS.get(self.task, "score")}
        if self.task == "classification":
            own |= {"metric": "top-1", "score": self.top1, "score_low": self.top1_low, "score_high": self.top1_high}
        for name, value in own.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def further(self) -> dict[str, float]:
        """``figures`` as numbers."""
        return {name: float(value) for name, value in json.loads(self.figures or "{}").items()}

    @property
    def label(self) -> str:
        return f"{self.model} {self.precision}"

    @property
    def variant(self) -> Variant:
        return self.model, self.precision, self.resolution

    @property
    def condition(self) -> Condition:
        """What two rows must share to be the same measurement of two runs."""
        how = (self.batch, self.streams, self.transfers, self.cold_cache)
        return (self.model, self.precision, self.backend, self.resolution, self.task, *how)

    @property
    def measured(self) -> bool:
        return self.status in ("ok", "unstable")


def several_sizes(rows: Sequence[BenchmarkRow]) -> tuple[tuple[str, str], ...]:
    """Model and resolution, of the models that are there at several resolutions."""
    found = sorted({(row.model, row.resolution) for row in rows if row.resolution})
    return tuple((model, size) for model, size in found if sum(other == model for other, _ in found) > 1)


def several_exports(rows: Iterable[BenchmarkRow]) -> frozenset[Variant]:
    """Variants of which there are several exports, as int8 with and without the head: their folders tell them apart."""
    found: dict[Variant, set[str]] = defaultdict(set)
    for row in rows:
        if row.export:
            found[row.variant].add(row.export)
    return frozenset(variant for variant, exports in found.items() if len(exports) > 1)


def write_rows(rows: Sequence[Any], folder: Path) -> tuple[Path, Path]:
    """``rows.csv`` and ``rows.json`` in ``folder``, of rows of one dataclass."""
    csv_path, json_path = folder / "rows.csv", folder / ROWS_NAME
    write_csv(rows, csv_path)
    json_path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return csv_path, json_path
