"""Outputs of a detector or a segmenter in, batch by batch; how good they are out, with the uncertainty of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastervit_trt.accuracy import Drop
from fastervit_trt.bootstrap import Contributions, paired_bootstrap

if TYPE_CHECKING:
    from fastervit_trt.models.annotated.images import AnnotatedImages

__all__ = ["Score", "Scorer", "paired_difference", "scorer"]


@dataclass(frozen=True)
class Score:
    """One figure on ``images`` images, in [0, 1], with its 95 % bootstrap interval over images."""

    metric: str  # "mAP" (COCO's, over IoU 0.50 to 0.95) or "mIoU"
    images: int
    value: float
    low: float
    high: float
    further: dict[str, float]  # other figures in [0, 1], by name: "mAP@50", "pixel accuracy", "IoU of sky", …
    agreement: float | None  # with the reference's outputs, in [0, 1], as the scorer says; None without a reference
    non_finite: int  # values among the outputs that are NaN or infinite

    def __str__(self) -> str:
        interval = f"95 % interval {100 * self.low:.1f} to {100 * self.high:.1f}"
        return f"{self.metric} {100 * self.value:.2f} % ({interval}) on {self.images} images"


class Scorer(Protocol):
    """Takes an export's named outputs, in their order."""

    def add(
        self, outputs: Sequence[np.ndarray], numbers: np.ndarray, reference: Sequence[np.ndarray] | None = None
    ) -> None:
        """Score one batch.

        Args:
            outputs: of a batch of B images.
            numbers: (B,) of these images in the data.
            reference: outputs of PyTorch fp32 for the same images; for all batches or for none.
        """

    def result(self) -> Score:
        """Of all batches so far.

        Raises:
            FasterViTError: nothing is annotated on any of their images.
        """

    def per_image(self) -> Contributions:
        """What each image so far contributes to the figure."""


def scorer(data: AnnotatedImages) -> Scorer:
    """For the task of ``data``.

    Raises:
        FasterViTError: detection, and pycocotools is not installed.
    """
    if data.task == "detection":
        from fastervit_trt.detection_score import DetectionScorer

        return DetectionScorer(data)
    from fastervit_trt.segmentation_score import SegmentationScorer

    return SegmentationScorer(data)


def paired_difference(reference: Scorer, candidate: Scorer) -> Drop:
    """What ``candidate`` loses of its figure against ``reference``, both on the same images, in percentage points.

    Raises:
        ValueError: they were not given the same images.
    """
    return paired_bootstrap(reference.per_image(), candidate.per_image())
