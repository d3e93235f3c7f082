"""The table ``points.csv`` in, typed points out; README.md beside it says where each figure is from and how it came."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastervit_trt.benchmarks.published.values import number, share, whole

__all__ = ["PublishedPoint", "load_published"]

_TABLE = Path(__file__).with_name("points.csv")


@dataclass(frozen=True, kw_only=True)
class PublishedPoint:
    """One published measurement, on the author's machine. None: not stated.

    Attributes:
        model: in the words of the paper that introduced it.
        device: "" where no speed was published.
        batch: images per batch.
        precision: "not stated" where the source does not say.
        throughput_img_per_s: as published; never derived from a latency.
        latency_ms: of one batch.
        top1: share of ImageNet-1K's validation images, in [0, 1], published with that speed; None where what was timed
            is not what was judged.
        top1_of_weights: likewise, of the weights that what was timed was made from.
        params_m: millions of parameters.
        gflops: what the source calls FLOPs of one image: multiply-adds, in thousands of millions.
        resolution: side of the square input.
        remark: what makes the figure doubtful or hard to compare.
    """

    model: str
    family: str
    device: str
    batch: int | None
    precision: str
    framework: str
    resolution: int
    throughput_img_per_s: float | None
    latency_ms: float | None
    top1: float | None
    top5: float | None
    top1_of_weights: float | None
    params_m: float | None
    gflops: float | None
    source: str
    url: str
    remark: str


@lru_cache(maxsize=1)
def _points() -> tuple[PublishedPoint, ...]:
    with _TABLE.open(newline="") as stream:
        return tuple(_point(entry) for entry in csv.DictReader(stream))


def load_published() -> list[PublishedPoint]:
    """All published points, in the order of the table: FasterViT first, then those its authors measured beside it."""
    return list(_points())


def _point(entry: Mapping[str, str]) -> PublishedPoint:
    return PublishedPoint(
        model=entry["model"],
        family=entry["family"],
        device=entry["device"],
        batch=whole(entry["batch"]),
        precision=entry["precision"],
        framework=entry["framework"],
        resolution=int(entry["resolution"]),
        throughput_img_per_s=number(entry["throughput_img_per_s"]),
        latency_ms=number(entry["latency_ms"]),
        top1=share(entry["top1_percent"]),
        top5=share(entry["top5_percent"]),
        top1_of_weights=share(entry["top1_of_weights_percent"]),
        params_m=number(entry["params_m"]),
        gflops=number(entry["gflops"]),
        source=entry["source"],
        url=entry["url"],
        remark=entry["remark"],
    )
