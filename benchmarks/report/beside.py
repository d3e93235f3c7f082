"""Published figures in, points to draw beside measured ones out, with the lines that say whose they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastervit_trt.benchmarks.report.text import percent, significant

if TYPE_CHECKING:
    from fastervit_trt.benchmarks.published.scores import PublishedScore

__all__ = ["BENCHMARKS", "Beside", "besides"]

BENCHMARKS = {"top-1": "ImageNet", "mAP": "COCO", "mIoU": "ADE20K"}  # which data published figures of a metric are of


@dataclass(frozen=True)
class Beside:
    """A point of another machine."""

    label: str
    benchmark: str  # one of BENCHMARKS
    score: float  # in [0, 1]
    throughput_img_per_s: float
    brief: tuple[str, ...]


def besides(benchmarks: Iterable[str]) -> list[Beside]:
    """All published figures of these validation sets that have a throughput, too."""
    from fastervit_trt.benchmarks.published.scores import published_scores

    wanted = set(benchmarks)
    return [
        _beside(score, name, score.throughput_img_per_s)
        for metric, name in BENCHMARKS.items()
        if name in wanted
        for score in published_scores(metric)
        if score.throughput_img_per_s is not None
    ]


def _beside(score: PublishedScore, benchmark: str, speed: float) -> Beside:
    batch = "" if score.batch is None else f", batch {score.batch}"
    where = f"{_said('device', score.device)}{batch}, {_said('framework', score.framework)}"
    lines = (
        score.method,
        f"another machine's figures: {where}, precision {score.precision}",
        f"{score.metric} {percent(score.value, 1)} %, {significant(speed)} images/s",
        f"published in {score.source}",
        score.remark,
    )
    return Beside(score.model, benchmark, score.value, speed, tuple(line for line in lines if line))


def _said(what: str, value: str) -> str:
    return f"{what} not stated" if value in ("", "not stated") else value
