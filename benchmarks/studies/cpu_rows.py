"""What timing in turns gave, as rows with their whole context: one per path, one per matrix size of the floor."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from fastervit_trt import __version__
from fastervit_trt.benchmarks.studies.cpu_runners import SETTINGS
from fastervit_trt.benchmarks.studies.cpu_turns import PERCENTILES, PathResult, ratio
from fastervit_trt.benchmarks.studies.gemm_peak import Floor
from fastervit_trt.host import cpu_name, versions

__all__ = [
    "CpuPathRow",
    "FloorRow",
    "TimedRow",
    "Turns",
    "context_columns",
    "floor_rows",
    "path_rows",
    "timed_columns",
]


@dataclass(frozen=True)
class Turns:
    """Paths of one model, timed in turns with the floor under them."""

    model: str
    batch: int
    resolution: tuple[int, int]
    threads: int
    load_before: float | None  # 1-minute load average
    paths: Sequence[PathResult]
    floor: Floor
    floors: Sequence[float]  # seconds of the floor in each round

    @property
    def export(self) -> PathResult:
        return next(path for path in self.paths if path.name == "export")


@dataclass(frozen=True)
class TimedRow:
    """One model on one path. Times are wall clock, p20 and p80 over calls."""

    model: str
    path: str
    setting: str
    status: str
    note: str
    batch: int
    resolution: str  # HxW
    threads: int
    latency_ms: float | None
    latency_p20_ms: float | None
    latency_p80_ms: float | None
    throughput_img_per_s: float | None  # at the median call

    @property
    def timed(self) -> bool:
        return self.latency_ms is not None


@dataclass(frozen=True)
class CpuPathRow(TimedRow):
    """A path beside the others and above the floor. p20 and p80 of ratios are over rounds."""

    time_over_export: float | None
    time_over_export_p20: float | None
    time_over_export_p80: float | None
    share_of_floor: float | None  # floor / fastest call of a round; 1: nothing but matrix products, at their best
    share_of_floor_p20: float | None
    share_of_floor_p80: float | None
    gflop: float  # matrix arithmetic of one batch
    gflops: float | None
    share_of_peak: float | None
    floor_ms: float
    peak_gflops: float  # of a large square product
    max_error: float | None  # of the logits, relative to the largest of PyTorch float32
    rounds: int
    samples: int
    cpu: str
    load_before: float | None
    os: str
    fastervit_trt: str
    python: str
    torch: str
    onnxruntime: str
    openvino: str | None
    timestamp_utc: str


@dataclass(frozen=True)
class FloorRow:
    """One matrix size of one model."""

    model: str
    kind: str
    m: int
    n: int
    k: int
    batch: int
    nodes: int  # 0: the large square product, for context
    flop_share_percent: float
    time_share_percent: float  # of the floor
    implementation: str
    gflops: float
    ms: float  # of one node


def path_rows(turns: Turns) -> list[CpuPathRow]:
    """A row per path, timed or not."""
    return [_path_row(path, turns) for path in turns.paths]


def floor_rows(turns: Turns) -> list[FloorRow]:
    """A row per size, the one that needs most time first."""
    floor = turns.floor
    total = sum(item.nodes * item.ms for item in floor.items)
    rows = [
        FloorRow(
            model=turns.model,
            kind=item.size.kind if item.nodes else "peak",
            m=item.size.m,
            n=item.size.n,
            k=item.size.k,
            batch=item.size.batch,
            nodes=item.nodes,
            flop_share_percent=round(100 * item.nodes * item.size.flop / floor.flop, 2),
            time_share_percent=round(100 * item.nodes * item.ms / total, 2),
            implementation=item.implementation,
            gflops=round(item.gflops, 1),
            ms=round(item.ms, 4),
        )
        for item in floor.items
    ]
    return sorted(rows, key=lambda row: -row.time_share_percent)


def timed_columns(
    path: PathResult, setting: str, model: str, batch: int, resolution: tuple[int, int], threads: int
) -> dict[str, Any]:
    """What every :class:`TimedRow` has."""
    latency = [path.timer.latency_ms(p) if path.timer else None for p in PERCENTILES]
    row = TimedRow(
        model=model,
        path=path.name,
        setting=setting,
        status=path.status,
        note=path.note,
        batch=batch,
        resolution="x".join(str(side) for side in resolution),
        threads=threads,
        latency_ms=latency[0],
        latency_p20_ms=latency[1],
        latency_p80_ms=latency[2],
        throughput_img_per_s=path.timer.images_per_second() if path.timer else None,
    )
    return asdict(row)


def context_columns(path: PathResult, load_before: float | None) -> dict[str, Any]:
    """How often was timed, and what with."""
    installed = versions()
    return {
        "rounds": len(path.rounds),
        "samples": len(path.timer.samples) if path.timer else 0,
        "cpu": cpu_name(),
        "load_before": load_before,
        "os": platform.platform(),
        "fastervit_trt": __version__,
        "python": installed["python"],
        "torch": installed["torch"],
        "onnxruntime": installed.get("onnxruntime", installed.get("onnxruntime-gpu", "")),
        "openvino": installed.get("openvino"),
        "timestamp_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _path_row(path: PathResult, turns: Turns) -> CpuPathRow:
    timed = timed_columns(path, SETTINGS[path.name], turns.model, turns.batch, turns.resolution, turns.threads)
    over_export, of_floor = ratio(path.rounds, turns.export.rounds), ratio(turns.floors, path.fastest)
    gflop, peak = turns.floor.flop / 1e9, turns.floor.peak_gflops
    gflops = gflop / timed["latency_ms"] * 1e3 if timed["latency_ms"] else None
    return CpuPathRow(
        **timed,
        time_over_export=over_export[0],
        time_over_export_p20=over_export[1],
        time_over_export_p80=over_export[2],
        share_of_floor=of_floor[0],
        share_of_floor_p20=of_floor[1],
        share_of_floor_p80=of_floor[2],
        gflop=gflop,
        gflops=gflops,
        share_of_peak=gflops / peak if gflops else None,
        floor_ms=float(np.median(turns.floors)) * 1e3,
        peak_gflops=peak,
        max_error=path.error,
        **context_columns(path, turns.load_before),
    )
