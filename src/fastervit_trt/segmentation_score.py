"""Predicted masks in, mean intersection over union out, compared at the size of the annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastervit_trt.bootstrap import bootstrap_interval
from fastervit_trt.errors import FasterViTError
from fastervit_trt.scoring import Score

if TYPE_CHECKING:
    from fastervit_trt.models.annotated.images import AnnotatedImages

__all__ = ["SegmentationScorer"]

_NO_CLASS = -1  # of a pixel whose predicted class is no number, or none of the data's


class SegmentationScorer:
    """mIoU: the mean, over the classes that are annotated anywhere, of intersection over union of all pixels together.

    Pixels that nobody annotated count for nothing, wherever they are predicted. A predicted class that is annotated
    nowhere costs the classes it stands in place of, as in COCO's mAP. Agreement is the share of annotated pixels whose
    class is the reference's.
    """

    def __init__(self, data: AnnotatedImages) -> None:
        self._data = data
        self._areas: dict[int, np.ndarray] = {}  # by image: (3, C) pixels right, annotated, predicted, per class
        self._agreeing: int | None = None
        self._non_finite = 0

    def add(
        self, outputs: Sequence[np.ndarray], numbers: np.ndarray, reference: Sequence[np.ndarray] | None = None
    ) -> None:
        """Score one batch.

        Args:
            outputs: masks (B, h, w), class indices in float32, of any size: the nearest one counts for a pixel.
            numbers: (B,) of these images in the data.
            reference: masks of PyTorch fp32 for the same images; for all batches or for none.
        """
        (masks,) = outputs
        if self._areas and (reference is None) != (self._agreeing is None):
            raise ValueError("reference masks are needed for all batches or for none")
        self._non_finite += int((~np.isfinite(masks)).sum())
        for place, number in enumerate(map(int, numbers)):
            if number in self._areas:
                raise ValueError(f"image {number} was scored already")
            truth = self._data.annotation(number)
            assert isinstance(truth, np.ndarray)
            judged = truth >= 0
            ours = self._classes(masks[place], truth.shape)[judged]
            self._areas[number] = _areas(ours, truth[judged], self._data.classes)
            if reference is not None:
                theirs = self._classes(reference[0][place], truth.shape)[judged]
                same = (ours == theirs) & (ours != _NO_CLASS)
                self._agreeing = (self._agreeing or 0) + int(same.sum())

    def result(self) -> Score:
        """Of all batches so far.

        Raises:
            FasterViTError: not a pixel of their images is annotated.
        """
        images = self.per_image()
        right, annotated, predicted = images.areas.sum(axis=0)
        if not annotated.any():
            raise FasterViTError(f"no pixel of the {len(self._areas)} images of '{self._data.name}' is annotated")
        low, high = bootstrap_interval(images)
        seen = np.flatnonzero(annotated)
        overlap = right[seen] / (annotated + predicted - right)[seen]
        further = {
            "pixel accuracy": right.sum() / annotated.sum(),
            "mean class accuracy": (right[seen] / annotated[seen]).mean(),
            **{f"IoU of {self._name(int(index))}": iou for index, iou in zip(seen, overlap, strict=True)},
        }
        return Score(
            metric="mIoU",
            images=len(self._areas),
            value=float(overlap.mean()),
            low=low,
            high=high,
            further={name: float(value) for name, value in further.items()},
            agreement=None if self._agreeing is None else self._agreeing / int(annotated.sum()),
            non_finite=self._non_finite,
        )

    def per_image(self) -> _PerImage:
        """What each image so far contributes to the mIoU."""
        numbers = sorted(self._areas)
        areas = np.array([self._areas[number] for number in numbers], np.int64)
        return _PerImage(np.array(numbers), areas.reshape(-1, 3, self._data.classes))

    def _classes(self, mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """(H, W) int64 at ``size``: each pixel is the one whose area its centre lies in."""
        rows, columns = (_nearest(old, new) for old, new in zip(mask.shape, size, strict=True))
        values = mask[rows[:, None], columns]
        known = (values >= 0) & (values < self._data.classes)  # NaN is neither
        return np.where(known, values, _NO_CLASS).astype(np.int64)

    def _name(self, index: int) -> str:
        names = self._data.class_names
        return names[index] if len(set(names)) == self._data.classes else f"class {index}"


@dataclass(frozen=True)
class _PerImage:
    """Contributions to the mIoU."""

    numbers: np.ndarray  # (N,)
    areas: np.ndarray  # (N, 3, C) pixels right, annotated, predicted

    def values(self, weights: np.ndarray) -> np.ndarray:
        """mIoU (R,); NaN where nothing is annotated."""
        flat = self.areas.reshape(len(self.areas), -1)
        # Pixel counts are exact in float64, which BLAS multiplies and int64 it does not.
        sums = (weights.astype(np.float64) @ flat.astype(np.float64)).reshape(len(weights), *self.areas.shape[1:])
        right, annotated, predicted = sums.transpose(1, 0, 2)
        seen = annotated > 0
        overlap = right / np.where(seen, annotated + predicted - right, 1)
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = np.where(seen, overlap, 0).sum(axis=1) / seen.sum(axis=1)
        return mean


def _areas(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(3, C) int64 of pixels (P,): right, annotated, predicted, per class."""
    right = truth[predicted == truth]
    known = predicted[predicted != _NO_CLASS]
    return np.stack([np.bincount(pixels, minlength=classes) for pixels in (right, truth, known)])


def _nearest(old: int, new: int) -> np.ndarray:
    """(new,): for each of ``new`` equal parts of a side, which of ``old`` parts its centre lies in."""
    return (2 * np.arange(new) + 1) * old // (2 * new)
