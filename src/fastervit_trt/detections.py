"""A detector's outputs for a batch in, the detections of one image out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Detections", "box_overlaps", "detections"]


@dataclass(frozen=True)
class Detections:
    """Of one image: boxes (N, 4) float64 as left, top, right, bottom, scores (N,) float64, labels (N,) int64."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def detections(outputs: Sequence[np.ndarray], place: int) -> Detections:
    """Of image ``place`` of a batch, in their order; what has a value that is not finite is none.

    Args:
        outputs: boxes (B, Q, 4), scores (B, Q), labels (B, Q).
    """
    boxes, scores, labels = (values[place].astype(np.float64) for values in outputs)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & np.isfinite(labels)
    return Detections(boxes[finite], scores[finite], labels[finite].astype(np.int64))


def box_overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4) as left, top, right, bottom; 0 of empty ones."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    both = np.maximum(high - low, 0).prod(axis=2)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (some, others)]
    union = areas[0][:, None] + areas[1][None, :] - both
    overlaps: np.ndarray = both / np.where(union > 0, union, 1)
    return overlaps
