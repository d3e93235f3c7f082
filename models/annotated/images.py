"""Pictures with the boxes or the mask of each: the counterpart of ``LabelledImages`` for detection and segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated.masks import MaskFile, class_indices, mask_identity
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.decoding import Picture, Unreadable
from fastervit_trt.models.picture_set import LEFT_OUT, numbered_batches, set_sha256
from fastervit_trt.models.tasks.heads import Task

__all__ = ["AnnotatedImages", "Objects", "picture_size"]


@dataclass(frozen=True, eq=False)
class Objects:
    """What is on one picture, for detection; N may be 0."""

    boxes: np.ndarray  # (N, 4) float64: left, top, right, bottom in shares [0, 1] of the original's width and height
    labels: np.ndarray  # (N,) int64 class indices
    crowd: np.ndarray  # (N,) bool: regions of many objects, which are ignored where found (COCO's iscrowd)
    areas: np.ndarray  # (N,) float64 in pixels² of the original; of the object's segments where those are known

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class AnnotatedImages:
    """Images (in memory, or paths opened when needed), each with its :class:`Objects` or its mask."""

    task: Task
    name: str
    images: tuple[Picture, ...]
    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels of the originals
    annotations: tuple[Objects, ...] | tuple[MaskFile | np.ndarray, ...]
    classes: int
    class_names: tuple[str, ...]  # in the order of the indices; empty where classes have no names
    root: Path | None = None  # folder of the images
    max_unreadable: float = LEFT_OUT  # share of images that may be unreadable and are then left out

    def __len__(self) -> int:
        return len(self.images)

    def annotation(self, index: int) -> Objects | np.ndarray:
        """Of image ``index``: its objects, or its mask (H, W) int64 with -1 where nothing is annotated.

        Raises:
            FasterViTError: the mask's file cannot be read, or holds a value that is no class.
        """
        found = self.annotations[index]
        return found if isinstance(found, Objects) else class_indices(found, self.classes)

    def batches(
        self, size: int, how: Preprocessing, resolution: tuple[int, int], left_out: list[Unreadable] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(images (B, 3, H, W) float32, their numbers (B,)) in order; the last batch may be smaller.

        Args:
            left_out: gets the images that cannot be read.

        Raises:
            FasterViTError: more than ``max_unreadable`` of the images cannot be read, or all of one.
        """
        missing = [] if left_out is None else left_out
        share, data = self.max_unreadable, f"data '{self.name}'"
        yield from numbered_batches(self.images, size, how, resolution, share=share, data=data, left_out=missing)

    def sha256(self, without: Collection[int] = ()) -> str:
        """What this data set is, but for the images numbered ``without``; annotations are part of it.

        See :func:`~fastervit_trt.models.picture_set.set_sha256`.
        """
        head = f"{self.task}, {self.classes} classes"
        return set_sha256(self.images, self.root, head, self._note, without)

    def check_classes(self, classes: int, model: str) -> None:
        """Annotations mean something only where data and model have the same classes in the same order.

        Raises:
            FasterViTError: ``classes``, those of the model, are not as many as the data's.
        """
        if self.classes != classes:
            raise FasterViTError(
                f"data '{self.name}' has {self.classes} classes, {model} {classes}; they must be the same classes in "
                "the same order"
            )

    def _note(self, index: int, whole: bool) -> str:
        found = self.annotations[index]
        if not isinstance(found, Objects):
            return mask_identity(found, whole)
        parts = (found.boxes, found.labels, found.crowd, found.areas)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def picture_size(path: Path) -> tuple[int, int] | None:
    """(height, width) in pixels from the head of a file; None where it has none: such a picture is left out later.

    Orientation tags of cameras are ignored, as everywhere.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception:  # damaged bytes make decoders raise anything
        return None
