"""Detections of a model and of its reference on the same images in, how much they agree out."""

from __future__ import annotations

import numpy as np

from fastervit_trt.detections import Detections, box_overlaps

__all__ = ["Agreement"]

_CONFIDENT = 0.5  # score from which on a detection is one that a user would see
_SAME_BOX = 0.9  # intersection over union
_SAME_SCORE = 0.1


class Agreement:
    """F1 of what either side is confident of and the other side found, too.

    Confident are detections with a score of 0.5 or more; on an image without any, the surest. One is found where the
    other side has a detection of the same label, with an IoU of at least 0.9 and a score that differs by at most 0.1,
    confident or not, so that a score of 0.499 beside one of 0.501 is no disagreement. F1 is the harmonic mean of two
    shares over all images: of the reference's confident detections that the model found, and of the model's that the
    reference found.
    """

    def __init__(self) -> None:
        self._sides = np.zeros((2, 2), np.int64)  # found and confident, of the reference's and of the model's

    def add(self, reference: Detections, ours: Detections) -> None:
        """One image."""
        self._sides += [_found(reference, ours), _found(ours, reference)]

    def share(self) -> float:
        """In [0, 1]; 1 where neither side detected anything at all."""
        if not self._sides[:, 1].any():
            return 1.0
        recall, precision = (found / confident if confident else 0.0 for found, confident in self._sides)
        return float(2 * recall * precision / (recall + precision)) if recall + precision else 0.0


def _found(wanted: Detections, among: Detections) -> tuple[int, int]:
    """How many of the confident detections in ``wanted`` are ``among`` others, and how many there are."""
    confident = np.flatnonzero(wanted.scores >= _CONFIDENT)
    if not len(confident) and len(wanted.scores):
        confident = wanted.scores.argmax(axis=0, keepdims=True)
    same = wanted.labels[confident][:, None] == among.labels
    same &= np.abs(wanted.scores[confident][:, None] - among.scores) <= _SAME_SCORE
    same &= box_overlaps(wanted.boxes[confident], among.boxes) >= _SAME_BOX
    return int(same.any(axis=1).sum()), len(confident)
