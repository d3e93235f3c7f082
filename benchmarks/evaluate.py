"""What runs an artifact and annotated images in, its accuracy out, beside what its model yields in PyTorch fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from fastervit_trt.accuracy import Accuracy, AccuracyMeter
from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends.runner import Outputs
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages, open_dataset
from fastervit_trt.models.decoding import Unreadable
from fastervit_trt.models.tasks.heads import OUTPUTS, get_task

if TYPE_CHECKING:
    from fastervit_trt.models.annotated import AnnotatedImages
    from fastervit_trt.scoring import Score

__all__ = [
    "Advance",
    "Data",
    "Evaluation",
    "Reference",
    "check_dataset",
    "evaluate",
    "images_at_once",
    "numbered_batches",
    "open_data",
    "tell",
]

Data: TypeAlias = "LabelledImages | AnnotatedImages"
OutputsOf = Callable[[np.ndarray], Outputs]  # images (B, 3, H, W) float32 → outputs (B, …), in the order of the export
Advance = Callable[[int], None]  # told the images done so far, of all of the data

_MOST_AT_ONCE = 32
_PIXELS_AT_ONCE = _MOST_AT_ONCE * 224 * 224  # activations of more take memory and give no speed


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

    accuracy: Accuracy | Score
    right: np.ndarray | None  # (images,) bool: classified as labelled, unreadable ones left out; None: no classifier
    unreadable: tuple[Unreadable, ...]
    dataset_sha256: str  # of the images that were judged


class _Meter(Protocol):
    def add(self, outputs: Outputs, numbers: np.ndarray, reference: Outputs | None) -> None: ...

    def result(self) -> Accuracy | Score: ...


class _Classes:
    """Logits against labels."""

    def __init__(self, data: LabelledImages) -> None:
        self._data, self.meter = data, AccuracyMeter()

    def add(self, outputs: Outputs, numbers: np.ndarray, reference: Outputs | None) -> None:
        logits, data = outputs[0], self._data
        if logits.shape != (len(numbers), data.classes):
            raise FasterViTError(
                f"outputs of shape {logits.shape} are no logits of {len(numbers)} images and the {data.classes} "
                f"classes of '{data.name}'"
            )
        self.meter.add(logits, data.labels[numbers], None if reference is None else reference[0])

    def result(self) -> Accuracy:
        return self.meter.result()


def open_data(task: str, spec: str, max_unreadable: float) -> Data:
    """What ``--data`` names, for exports of ``task``.

    Raises:
        FasterViTError: no such data, or data of another task.
    """
    if task == "classification":
        return open_dataset(spec, max_unreadable)
    from fastervit_trt.models.annotated import open_annotated

    return open_annotated(get_task(task), spec, max_unreadable)


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


def images_at_once(resolution: tuple[int, int]) -> int:
    """How many images of this size (H, W) accuracy is taken on in one call, at most 32."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (resolution[0] * resolution[1])))


def numbered_batches(
    data: Data, size: int, how: Preprocessing, resolution: tuple[int, int], left_out: list[Unreadable] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (B, 3, H, W) float32, their numbers (B,)) of either kind of data; ``left_out`` gets the unreadable."""
    batches = data.numbered_batches if isinstance(data, LabelledImages) else data.batches
    return batches(size, how, resolution, left_out)


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
    meter = _meter(data)
    left_out, done = list[Unreadable](), 0
    if reference is not None:
        _check_reference(reference, data)
    for images, numbers in numbered_batches(data, batch, how, resolution, left_out):
        outputs = outputs_of(images)
        meter.add(outputs, numbers, None if reference is None else _expected(reference, numbers, data))
        done = int(numbers[-1]) + 1
        tell(progress, done)
    if done < len(data):  # the last ones cannot be read
        tell(progress, len(data))
    missing = [image.index for image in left_out]
    right = meter.meter.right if isinstance(meter, _Classes) else None
    return Evaluation(meter.result(), right, tuple(left_out), data.sha256(without=missing))


def tell(progress: Advance | None, done: int) -> None:
    """Pass on how many images are done, where anybody wants to know."""
    if progress is not None:
        progress(done)


def _meter(data: Data) -> _Meter:
    if isinstance(data, LabelledImages):
        return _Classes(data)
    from fastervit_trt.scoring import scorer  # with what COCO's metric needs

    return scorer(data)


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
