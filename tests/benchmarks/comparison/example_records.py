"""Records of made-up runs: true speeds in, samples that scatter around them out, as a machine gives them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_trt.benchmarks.records import CELLS, Record, write_record
from fastervit_trt.benchmarks.rows import BenchmarkRow

IMAGES = 1000


def record(
    precision: str,
    backend: str = "tensorrt",
    *,
    speed: float = 1000.0,
    run: int = 0,
    rounds: int = 8,
    noise: float = 0.01,
    right: np.ndarray | None = None,
    **changes: Any,
) -> Record:
    """One cell that makes ``speed`` images/s on average; latency is that of its batch.

    Args:
        run: another one scatters otherwise.
        noise: relative, between rounds; calls scatter by as much again.
        right: which images it got right.
    """
    batch = changes.get("batch", 8)
    random = np.random.default_rng(zlib.crc32(f"{precision} {backend} {changes.get('model')} {run}".encode()))
    times = [[batch / speed * np.exp(random.normal(0, noise, (rounds, 1)) + random.normal(0, noise, (rounds, 20)))]]
    times.append([batch / speed * np.exp(random.normal(0, noise, (rounds, 1)) + random.normal(0, noise, (rounds, 20)))])
    latency, throughput = (np.concatenate(samples) for samples in times)
    p20, p50, p80 = (batch / np.percentile(throughput, q) for q in (80, 50, 20))
    low, middle, high = (1000 * np.percentile(latency, q) for q in (20, 50, 80))
    accuracy: dict[str, Any] = {}
    if right is not None:
        accuracy = {"dataset": "digits", "dataset_sha256": "d", "images": len(right), "top1": float(right.mean())}
    row = BenchmarkRow(
        **{
            "model": "faster_vit_0_224",
            "precision": precision,
            "backend": backend,
            "resolution": "224x224",
            "batch": batch,
            "status": "ok",
            "artifact_sha256": precision,
            "device": "H100",
            "device_kind": "gpu",
            "rounds": rounds,
            "throughput_img_per_s": p50,
            "throughput_p20_img_per_s": p20,
            "throughput_p80_img_per_s": p80,
            "latency_p20_ms": low,
            "latency_p50_ms": middle,
            "latency_p80_ms": high,
            **accuracy,
            **changes,
        }
    )
    return Record(row, tuple(map(tuple, latency.tolist())), tuple(map(tuple, throughput.tolist())), right)


def lost(precision: str, backend: str = "tensorrt", *, status: str = "failed", **changes: Any) -> Record:
    """One cell without a result."""
    row = record(precision, backend, **changes).row
    empty = {name: None for name in vars(row) if name.startswith(("latency_p", "throughput_i", "throughput_p", "top1"))}
    return Record(BenchmarkRow(**{**vars(row), **empty, "status": status, "reason": "no such kernel"}))


def without_samples(kept: Record) -> Record:
    """As a rows.csv keeps it."""
    return Record(kept.row)


def correct(wrong: int, of: int = IMAGES) -> np.ndarray:
    """The first ``wrong`` images are wrong."""
    return np.arange(of) >= wrong


def save(records: list[Record], folder: Path) -> Path:
    """A result folder."""
    (folder / CELLS).mkdir(parents=True)
    for number, kept in enumerate(records):
        write_record(kept, folder / CELLS / f"{number}.json")
    return folder
