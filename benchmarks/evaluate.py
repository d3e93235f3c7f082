"""What runs an artifact and annotated images in, its accuracy out, beside what its model yields in PyTorch fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastervit_trt.artifacts import Manifest
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import Outputs
from fastervit_trt.metering import ClassMeter, Data, Figure, meter, numbered_batches
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.decoding import Unreadable
from fastervit_trt.models.tasks.heads import OUTPUTS, get_task

__all__ = [
    "Advance",
    "Evaluation",
    "Reference",
    "check_dataset",
    "evaluate",
    "tell",
]

OutputsOf = Callable[[np.ndarray], Outputs]  # images (B, 3, H, W) float32 → outputs (B, …), in the order of the export
Advance = Callable[[int], None]  # told the images done so far, of all of the data


@dataclass(frozen=True)
class Reference:
    """Outputs of PyTorch fp32, by number of the image.

    Attributes:
        outputs: (len(data), …) each, in the order of the export; of images that are not ``known`` anything.
        known: (len(data),) bool; the others could not be read.
        files: where they are kept.
    """

    outputs: Outputs
    known: np.ndarray
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one artifact on what could be read of a data set."""

    accuracy: Figure
    right: np.ndarray | None  # (images,) bool: classified as labelled, unreadable ones left out; None: no classifier
    unreadable: tuple[Unreadable, ...]
    dataset_sha256: str  # of the images that were judged


def check_dataset(manifest: Manifest, data: Data) -> None:
    """Refuse data by which this export cannot be judged, before anything is computed.

    Raises:
        FasterViTError: a backbone without classes, or data of another task or of other classes.
    """
    if tuple(output["name"] for output in manifest.outputs) != OUTPUTS[get_task(manifest.task)]:
        raise FasterViTError(f"the export of {manifest.model} is a backbone without classes; leave out --data")
    if isinstance(data, LabelledImages):
        official = manifest.weights.get("kind") == "official"
        data.check_classes(manifest.num_classes, manifest.model, imagenet=official)
    else:
        data.check_classes(manifest.num_classes, manifest.model)


def evaluate(
    outputs_of: OutputsOf,
    data: Data,
    how: Preprocessing,
    resolution: tuple[int, int],
    batch: int,
    reference: Reference | None = None,
    progress: Advance | None = None,
) -> Evaluation:
    """Put all images of ``data`` to ``outputs_of``.

    Args:
        resolution: (H, W) of the model.
        batch: images per call; the last may be smaller.
        reference: what PyTorch fp32 yields, see :mod:`reference`.

    Raises:
        FasterViTError: too many unreadable images, outputs of a wrong shape, or a reference of other images.
    """
    judge = meter(data)
    left_out, done = list[Unreadable](), 0
    if reference is not None:
        _check_reference(reference, data)
    for images, numbers in numbered_batches(data, batch, how, resolution, left_out):
        outputs = outputs_of(images)
        judge.add(outputs, numbers, None if reference is None else _expected(reference, numbers, data))
        done = int(numbers[-1]) + 1
        tell(progress, done)
    if done < len(data):  # the last ones cannot be read
        tell(progress, len(data))
    missing = [image.index for image in left_out]
    right = judge.right if isinstance(judge, ClassMeter) else None
    return Evaluation(judge.result(), right, tuple(left_out), data.sha256(without=missing))


def tell(progress: Advance | None, done: int) -> None:
    """Pass on how many images are done, where anybody wants to know."""
    if progress is not None:
        progress(done)


def _check_reference(reference: Reference, data: Data) -> None:
    shapes = [output.shape for output in reference.outputs]
    wrong = [shape for shape in shapes if shape[0] != len(data)]
    if isinstance(data, LabelledImages) and shapes != [(len(data), data.classes)]:
        wrong = shapes
    if wrong:
        raise FasterViTError(
            f"reference outputs of shape {', '.join(map(str, wrong))} are not those of the {len(data)} images and "
            f"{data.classes} classes of '{data.name}'"
        )


def _expected(reference: Reference, numbers: np.ndarray, data: Data) -> Outputs:
    """Of the images numbered so; every image that can be read now could be then."""
    if not (known := reference.known[numbers]).all():
        image = data.images[int(numbers[~known][0])]
        files = " and ".join(f"'{file}'" for file in reference.files) or "their file"
        raise FasterViTError(
            f"image '{image}' can be read now, but could not when the reference outputs were computed; delete {files} "
            "and measure again"
        )
    return tuple(output[numbers].astype(np.float32) for output in reference.outputs)
