"""Labelled or annotated images in, what a model's outputs for them are worth out: one meter for every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastervit_trt.accuracy import Accuracy, AccuracyMeter, Drop, paired_drop
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages, open_dataset
from fastervit_trt.models.decoding import Unreadable
from fastervit_trt.models.picture_set import LEFT_OUT
from fastervit_trt.models.tasks.heads import get_task

if TYPE_CHECKING:
    from fastervit_trt.models.annotated import AnnotatedImages
    from fastervit_trt.scoring import Score, Scorer

__all__ = ["ClassMeter", "Data", "Figure", "Meter", "images_at_once", "lost", "meter", "numbered_batches", "open_data"]

Data: TypeAlias = "LabelledImages | AnnotatedImages"
Figure: TypeAlias = "Accuracy | Score"
Meter: TypeAlias = "ClassMeter | Scorer"

_MOST_AT_ONCE = 32
_PIXELS_AT_ONCE = _MOST_AT_ONCE * 224 * 224  # activations of more take memory and give no speed


class ClassMeter:
    """Logits against labels: what :class:`Scorer` is to boxes and masks."""

    def __init__(self, data: LabelledImages) -> None:
        self._data, self._meter = data, AccuracyMeter()

    @property
    def right(self) -> np.ndarray:
        """Which images (N,) were classified as labelled, in the order in which they came."""
        return self._meter.right

    def add(
        self, outputs: Sequence[np.ndarray], numbers: np.ndarray, reference: Sequence[np.ndarray] | None = None
    ) -> None:
        """Score one batch.

        Args:
            outputs: logits (B, classes) alone.
            numbers: (B,) of these images in the data.
            reference: those of PyTorch fp32 for the same images; for all batches or for none.

        Raises:
            FasterViTError: outputs that are no logits of these classes.
        """
        logits, data = outputs[0], self._data
        if logits.shape != (len(numbers), data.classes):
            raise FasterViTError(
                f"outputs of shape {logits.shape} are no logits of {len(numbers)} images and the {data.classes} "
                f"classes of '{data.name}'"
            )
        self._meter.add(logits, data.labels[numbers], None if reference is None else reference[0])

    def result(self) -> Accuracy:
        """Of all batches so far, at least one image."""
        return self._meter.result()


def open_data(task: str, spec: str, max_unreadable: float = LEFT_OUT) -> Data:
    """What ``--data`` or ``--validation-data`` names, for models of ``task``.

    Raises:
        FasterViTError: no such data, or data of another task.
    """
    if task == "classification":
        return open_dataset(spec, max_unreadable)
    from fastervit_trt.models.annotated import open_annotated

    return open_annotated(get_task(task), spec, max_unreadable)


def images_at_once(resolution: tuple[int, int]) -> int:
    """How many images of this size (H, W) accuracy is taken on in one call, at most 32."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (resolution[0] * resolution[1])))


def numbered_batches(
    data: Data, size: int, how: Preprocessing, resolution: tuple[int, int], left_out: list[Unreadable] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (B, 3, H, W) float32, their numbers (B,)) of either kind of data; ``left_out`` gets the unreadable."""
    batches = data.numbered_batches if isinstance(data, LabelledImages) else data.batches
    return batches(size, how, resolution, left_out)


def meter(data: Data) -> Meter:
    """For the task of ``data``.

    Raises:
        FasterViTError: detection, and pycocotools is not installed.
    """
    if isinstance(data, LabelledImages):
        return ClassMeter(data)
    from fastervit_trt.scoring import scorer  # with what COCO's metric needs

    return scorer(data)


def lost(reference: Meter, candidate: Meter) -> Drop:
    """What ``candidate`` loses of its figure against ``reference``, both on the same images, in percentage points.

    Raises:
        ValueError: they are not of one task, or were not given the same images.
    """
    if isinstance(reference, ClassMeter) and isinstance(candidate, ClassMeter):
        return paired_drop(reference.right, candidate.right)
    from fastervit_trt.scoring import paired_difference

    if isinstance(reference, ClassMeter) or isinstance(candidate, ClassMeter):
        raise ValueError("a paired comparison needs results of one task")
    return paired_difference(reference, candidate)
