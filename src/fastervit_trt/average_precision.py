"""pycocotools' matches of every image in, mean average precision of any resample of the images out.

``COCOeval.accumulate`` sorts and sums all detections anew for every resample. Here they are sorted once, and a resample
is a weight per image. Precision is only needed where a detection is right: recall rises there alone, and the precision
of any other place is below that of the right one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["AveragePrecision"]

_CELLS = 4_000_000  # numbers of one array that are worked on at once: some tens of MB


@dataclass(frozen=True)
class _Class:
    """Detections (D,) of one class on all images, from the surest on, and what they are by each IoU threshold."""

    images: np.ndarray  # (D,) place of the image each is on
    right: tuple[np.ndarray, ...]  # per threshold, places of those that match an object
    ignored: tuple[np.ndarray, ...]  # per threshold, places of those that count for nothing: on a crowd
    objects: np.ndarray  # (N,) how many there are to find on each image


@dataclass(frozen=True)
class AveragePrecision:
    """Contributions of N images to COCO's mAP."""

    numbers: np.ndarray  # (N,)
    recalls: np.ndarray  # (101,) at which precision is read
    classes: tuple[_Class, ...]

    @classmethod
    def of(cls, evaluated: Any, numbers: np.ndarray) -> AveragePrecision:
        """From a ``COCOeval`` that has evaluated the images ``numbers`` (N,), for objects of all sizes."""
        images, ranges = len(numbers), len(evaluated.params.areaRng)
        starts = range(0, len(evaluated.evalImgs), images * ranges)  # the first range of areas is "all"
        classes = [_class(evaluated.evalImgs[start : start + images]) for start in starts]
        return cls(numbers, evaluated.params.recThrs, tuple(c for c in classes if c is not None))

    def values(self, weights: np.ndarray) -> np.ndarray:
        """mAP (R,) if image n had occurred ``weights[r, n]`` times; NaN where there is no object then."""
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        for of in self.classes:
            rows = max(1, _CELLS // max(1, len(of.images)))
            parts = [weights[start : start + rows] for start in range(0, len(weights), rows)]
            total += np.concatenate([self._precision(of, part) for part in parts])
            classes += weights @ of.objects > 0
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = np.where(classes > 0, total / classes, np.nan)
        return mean

    def _precision(self, of: _Class, weights: np.ndarray) -> np.ndarray:
        """Average precision (R,) of one class, over thresholds; 0 where it has no object."""
        there = weights @ of.objects
        needed = _needed(self.recalls, there)
        each = weights[:, of.images]
        counted = each.cumsum(axis=1)
        total = np.zeros(len(weights))
        for right, ignored in zip(of.right, of.ignored, strict=True):
            if len(right):
                found = each[:, right].cumsum(axis=1)
                before = _cumulated(each[:, ignored])[:, np.searchsorted(ignored, right)]
                total += _interpolated(found, counted[:, right] - before, needed)
        average: np.ndarray = np.where(there > 0, total / len(of.right), 0)
        return average


def _class(entries: list[dict[str, Any] | None]) -> _Class | None:
    """From ``COCOeval``'s entries for one class, one per image, None where it is neither there nor detected."""
    known = [(place, entry) for place, entry in enumerate(entries) if entry is not None]
    objects = np.zeros(len(entries), np.int64)
    for place, entry in known:
        objects[place] = (entry["gtIgnore"] == 0).sum()
    if not objects.any():
        return None
    scores = np.concatenate([entry["dtScores"] for _, entry in known])
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools: of equal scores, that on the earlier image first
    images = np.repeat([place for place, _ in known], [len(entry["dtScores"]) for _, entry in known])[order]
    matched, ignored = (
        np.concatenate([entry[name] for _, entry in known], axis=1)[:, order].astype(bool)
        for name in ("dtMatches", "dtIgnore")
    )
    right = tuple(map(np.flatnonzero, matched & ~ignored))
    return _Class(images, right, tuple(map(np.flatnonzero, ignored)), objects)


def _needed(recalls: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(R, 101) objects that must be found for each recall, if ``there`` (R,) are: the fewest whose share reaches it."""
    some = np.maximum(there, 1)[:, None]
    needed = np.floor(recalls * some).astype(np.int64)
    needed += needed / some < recalls  # one more, where the product was rounded down
    return needed


def _interpolated(found: np.ndarray, counted: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Mean (R,) over recalls of the best precision at that recall or above; 0 where it is never reached.

    Args:
        found: (R, P) right detections up to each right one.
        counted: (R, P) detections up to there that count.
        needed: (R, 101) right detections for each recall.
    """
    precision = found / (counted + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    resamples, places = found.shape
    # One search for all rows: each is moved beyond the one before. Counts are whole, so nothing is lost.
    step = int(max(found[:, -1].max(), needed.max())) + 1
    moved = step * np.arange(resamples)[:, None]
    at = np.searchsorted((found + moved).ravel(), (needed + moved).ravel()).reshape(needed.shape)
    at -= places * np.arange(resamples)[:, None]
    read = np.take_along_axis(best, np.minimum(at, places - 1), axis=1)
    mean: np.ndarray = np.where(at < places, read, 0).mean(axis=1)
    return mean


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """(R, I + 1): sums of the first 0, 1, … of ``weights`` (R, I)."""
    return np.concatenate([np.zeros((len(weights), 1), weights.dtype), weights.cumsum(axis=1)], axis=1)
