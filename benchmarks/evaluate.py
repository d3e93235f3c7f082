"""What runs an artifact and labelled images in, its accuracy out, beside the logits of its model in PyTorch fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastervit_trt.accuracy import Accuracy, AccuracyMeter
from fastervit_trt.artifacts import Manifest
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import OUTPUT
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.decoding import Unreadable

__all__ = ["Advance", "Evaluation", "check_dataset", "evaluate", "tell"]

LogitsOf = Callable[[np.ndarray], np.ndarray]  # images (B, 3, H, W) float32 → logits (B, classes)
Advance = Callable[[int], None]  # told the images done so far, of all of the data


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one artifact on what could be read of a data set."""

    accuracy: Accuracy
    right: np.ndarray  # (images,) bool: classified as labelled, in the order of the data set, unreadable ones left out
    unreadable: tuple[Unreadable, ...]
    dataset_sha256: str  # of the images that were judged


def check_dataset(manifest: Manifest, data: LabelledImages) -> None:
    """Refuse data by which this export cannot be judged, before anything is computed.

    Raises:
        FasterViTError: a backbone without classes, or data of other classes.
    """
    if [output["name"] for output in manifest.outputs] != [OUTPUT]:
        raise FasterViTError(f"the export of {manifest.model} is a backbone without classes; leave out --data")
    official = manifest.weights.get("kind") == "official"
    data.check_classes(manifest.num_classes, manifest.model, imagenet=official)


def evaluate(
    logits_of: LogitsOf,
    data: LabelledImages,
    how: Preprocessing,
    resolution: tuple[int, int],
    batch: int,
    reference: np.ndarray | None = None,
    progress: Advance | None = None,
) -> Evaluation:
    """Put all images of ``data`` to ``logits_of``.

    Args:
        resolution: (H, W) of the model.
        batch: images per call; the last may be smaller.
        reference: logits (len(data), classes) of PyTorch fp32, by number of the image, see :mod:`reference`.

    Raises:
        FasterViTError: too many unreadable images, no logits of the right shape, or a reference of other images.
    """
    meter, left_out, done = AccuracyMeter(), list[Unreadable](), 0
    for images, numbers in data.numbered_batches(batch, how, resolution, left_out):
        logits = logits_of(images)
        if logits.shape != (len(images), data.classes):
            raise FasterViTError(
                f"outputs of shape {logits.shape} are no logits of {len(images)} images and the {data.classes} classes "
                f"of '{data.name}'"
            )
        expected = None if reference is None else _expected(reference, numbers, data)
        meter.add(logits, data.labels[numbers], expected)
        done = int(numbers[-1]) + 1
        tell(progress, done)
    if done < len(data):  # the last ones cannot be read
        tell(progress, len(data))
    missing = [image.index for image in left_out]
    return Evaluation(meter.result(), meter.right, tuple(left_out), data.sha256(without=missing))


def tell(progress: Advance | None, done: int) -> None:
    """Pass on how many images are done, where anybody wants to know."""
    if progress is not None:
        progress(done)


def _expected(reference: np.ndarray, numbers: np.ndarray, data: LabelledImages) -> np.ndarray:
    """Rows of the reference for the images numbered so; every image that can be read now could be then."""
    if reference.shape != (len(data), data.classes):
        raise FasterViTError(
            f"reference logits of shape {reference.shape} are not those of the {len(data)} images and {data.classes} "
            f"classes of '{data.name}'"
        )
    rows: np.ndarray = reference[numbers]
    if (absent := np.isnan(rows).all(axis=1)).any():
        image, file = data.images[int(numbers[absent][0])], getattr(reference, "filename", "their file")
        raise FasterViTError(
            f"image '{image}' can be read now, but could not when the reference logits were computed; delete '{file}' "
            "and measure again"
        )
    return rows
