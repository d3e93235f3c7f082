"""A metric in, what others published in it out: ImageNet from ``points.csv``, COCO and ADE20K from ``tasks.csv``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastervit_trt.benchmarks.published.points import PublishedPoint, load_published
from fastervit_trt.benchmarks.published.values import number, whole

__all__ = ["PublishedScore", "load_scores", "published_scores"]

_TABLE = Path(__file__).with_name("tasks.csv")
_TOP1 = "top-1"


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One published score, on the author's machine. None: not stated.

    Attributes:
        model: the backbone, in the words of the paper that introduced it.
        task: "classification", "detection" or "segmentation".
        method: what stands on the backbone, and how long it was trained; "" for classifiers.
        metric: in the words of this project's own rows: "top-1", "mAP" (of boxes, IoU 0.50 to 0.95), "mIoU" (of one
            scale); besides "mAP@50", "mAP@75", the same of masks with "mask " before, and "mIoU, multi-scale".
        value: in [0, 1].
        device: "" where no speed was published, "not stated" where the source names none.
        batch: images per batch.
        resolution: side of the square input.
        throughput_img_per_s: published with that score.
        params_m: millions of parameters of the backbone.
        gflops: what the source calls FLOPs: multiply-adds of one image through backbone and head, in 10⁹.
        remark: what makes the figure doubtful or hard to compare.
    """

    model: str
    family: str
    task: str
    dataset: str
    method: str
    metric: str
    value: float
    device: str
    batch: int | None
    precision: str
    framework: str
    resolution: int | None
    throughput_img_per_s: float | None
    params_m: float | None
    gflops: float | None
    source: str
    url: str
    remark: str


def load_scores() -> list[PublishedScore]:
    """Every published score: classifiers first, then detection and segmentation in the order of the table."""
    return list(_scores())


def published_scores(metric: str) -> list[PublishedScore]:
    """The published scores in one ``metric``, as rows name it; empty where nobody published any.

    One metric is one data set here: "top-1" is of ImageNet-1K, "mAP" of COCO, "mIoU" of ADE20K.
    """
    return [score for score in _scores() if score.metric == metric]


@lru_cache(maxsize=1)
def _scores() -> tuple[PublishedScore, ...]:
    classifiers = [_of_classifier(point, point.top1) for point in load_published() if point.top1 is not None]
    with _TABLE.open(newline="") as stream:
        return (*classifiers, *(_score(entry) for entry in csv.DictReader(stream)))


def _of_classifier(point: PublishedPoint, top1: float) -> PublishedScore:
    return PublishedScore(
        model=point.model,
        family=point.family,
        task="classification",
        dataset="ImageNet-1K validation",
        method="",
        metric=_TOP1,
        value=top1,
        device=point.device,
        batch=point.batch,
        precision=point.precision,
        framework=point.framework,
        resolution=point.resolution,
        throughput_img_per_s=point.throughput_img_per_s,
        params_m=point.params_m,
        gflops=point.gflops,
        source=point.source,
        url=point.url,
        remark=point.remark,
    )


def _score(entry: Mapping[str, str]) -> PublishedScore:
    return PublishedScore(
        model=entry["model"],
        family=entry["family"],
        task=entry["task"],
        dataset=entry["dataset"],
        method=entry["method"],
        metric=entry["metric"],
        value=float(entry["value_percent"]) / 100,
        device=entry["device"],
        batch=whole(entry["batch"]),
        precision=entry["precision"],
        framework=entry["framework"],
        resolution=whole(entry["resolution"]),
        throughput_img_per_s=number(entry["throughput_img_per_s"]),
        params_m=number(entry["params_m"]),
        gflops=number(entry["gflops"]),
        source=entry["source"],
        url=entry["url"],
        remark=entry["remark"],
    )
