"""Images to measure accuracy on or to calibrate with: the shipped digits, or a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.class_folders import (
    SUFFIXES,
    image_files,
    is_imagenet_1k,
    is_wordnet,
    read_class_folders,
)
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.decoding import Picture, Unreadable, decoded, readable
from fastervit_trt.models.digits.data import load_digits_split

__all__ = ["CalibrationImages", "LabelledImages", "open_calibration_images", "open_dataset"]

_Item = TypeVar("_Item")

_LEFT_OUT = 0.01  # share of unreadable images that accuracy survives: less than its interval on 10 000 images is wide
_HASHED = 256  # images whose contents are part of a data set's identity; 50 000 would take minutes from a disk


@dataclass(frozen=True)
class LabelledImages:
    """Images (in memory, or paths opened when needed) with their class indices (N,)."""

    name: str
    images: tuple[Picture, ...]
    labels: np.ndarray
    classes: int
    class_names: tuple[str, ...] = ()  # in the order of the indices, where they have names
    mapping: Path | None = None  # the file that numbers the classes; None: the order of their names does
    root: Path | None = None  # folder of the images
    max_unreadable: float = _LEFT_OUT  # share of images that may be unreadable and are then left out

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, size: int, how: Preprocessing, resolution: tuple[int, int], left_out: list[Unreadable] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(images (B, 3, H, W) float32, labels (B,)) in order; the last batch may be smaller.

        Args:
            left_out: gets the images that cannot be read.

        Raises:
            FasterViTError: more than ``max_unreadable`` of the images cannot be read, or all of one.
        """
        for pictures, numbers in self.numbered_batches(size, how, resolution, left_out):
            yield pictures, self.labels[numbers]

    def numbered_batches(
        self, size: int, how: Preprocessing, resolution: tuple[int, int], left_out: list[Unreadable] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As :meth:`batches`, with the numbers (B,) of the images in the data set instead of their labels."""
        missing = [] if left_out is None else left_out
        share, name = self.max_unreadable, f"dataset '{self.name}'"
        yield from _batches(self.images, size, how, resolution, share, name, missing)

    def sha256(self, without: Collection[int] = ()) -> str:
        """What this data set is, but for the images numbered ``without``.

        Every image counts with its path below the folder, its size in bytes and its label; the contents of 256 evenly
        spread ones count, too, so that the same pictures compressed anew are another data set. One file of tens of
        thousands that was replaced by another of the same size goes unnoticed.
        """
        missing = set(without)
        kept = [i for i in range(len(self)) if i not in missing]
        hashed = set(_spread(kept, _HASHED))
        digest = hashlib.sha256(f"{self.classes} classes, {len(kept)} images".encode())
        for i in kept:
            digest.update(f"\n{int(self.labels[i])} {self._identity(i)}".encode())
            if i in hashed:
                digest.update(_contents(self.images[i]))
        return digest.hexdigest()

    def check_classes(self, classes: int, model: str, *, imagenet: bool = False) -> None:
        """Labels mean something only where data and model have the same classes in the same order.

        Args:
            classes: of the model.
            model: its name in a message.
            imagenet: the model is known to be one of ImageNet-1k, so that no file can number them otherwise.

        Raises:
            FasterViTError: they have not.
        """
        wordnet = bool(self.class_names) and is_wordnet(self.class_names)
        if self.classes != classes:
            advice = "; a part of them needs all names, one a line, in classes.txt beside the folders" * wordnet
            raise FasterViTError(
                f"data '{self.name}' has {self.classes} classes, {model} {classes}; they must be the same classes in "
                f"the same order{advice}"
            )
        certain = self.mapping is None or imagenet
        if wordnet and classes == 1000 and certain and not is_imagenet_1k(self.class_names):
            where = "its sub-folders" if self.mapping is None else f"'{self.mapping}'"
            otherwise = " (if the model has others, name them in its order in classes.txt)" * (not imagenet)
            raise FasterViTError(
                f"data '{self.name}' has 1000 WordNet ids, but {where} are not those of ImageNet-1k in sorted order, "
                f"the classes of {model}{otherwise}"
            )

    def _identity(self, index: int) -> str:
        image = self.images[index]
        if isinstance(image, Image.Image):
            return f"{image.mode} {image.size}"
        path = image.relative_to(self.root).as_posix() if self.root is not None else image.name
        return f"{path} {image.stat().st_size}"


@dataclass(frozen=True)
class CalibrationImages:
    """Images without labels, in memory, or paths opened when needed."""

    name: str
    images: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, how: Preprocessing, resolution: tuple[int, int]) -> Iterator[np.ndarray]:
        """(B, 3, H, W) float32 in order; the last batch may be smaller.

        Raises:
            FasterViTError: an image cannot be read: ranges say how many and which images they are of.
        """
        for pictures, _ in _batches(self.images, size, how, resolution, 0.0, f"calibration data '{self.name}'", []):
            yield pictures

    def sha256(self) -> str:
        """Of the contents, in order: files as they are on disk, pictures by size and pixels."""
        digest = hashlib.sha256()
        for image in self.images:
            content = image.read_bytes() if isinstance(image, Path) else f"{image.size}".encode() + image.tobytes()
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


def open_dataset(spec: str, max_unreadable: float = _LEFT_OUT) -> LabelledImages:
    """``"digits"`` (the held-out third) or the path of a folder with one sub-folder of images per class.

    Class indices follow ``classes.txt`` or ``class_to_idx.json`` in the folder, else the sorted names of the
    sub-folders, as in ImageNet's published evaluation (:mod:`fastervit_trt.models.class_folders`).

    Args:
        max_unreadable: share of images that may be unreadable and are then left out; one always may unless it is 0.

    Raises:
        FasterViTError: no such folder, no images in it, or sub-folders that cannot be numbered with certainty.
    """
    if spec == "digits":
        pictures, labels = load_digits_split("held_out")
        return LabelledImages("digits, held-out third", tuple(pictures), labels, classes=10)
    root = Path(spec)
    if not root.is_dir():
        raise FasterViTError(f"dataset '{spec}' is neither 'digits' nor a folder")
    found = read_class_folders(root)
    return LabelledImages(
        name=root.resolve().name,
        images=found.files,
        labels=np.array(found.labels, dtype=np.int64),
        classes=len(found.names),
        class_names=found.names,
        mapping=found.mapping,
        root=found.root,
        max_unreadable=max_unreadable,
    )


def open_calibration_images(spec: str, count: int) -> CalibrationImages:
    """``"digits"`` (the two thirds to train on) or a folder of images, at any depth; ``count`` of them, evenly spread.

    Raises:
        FasterViTError: no such folder, or no images in it.
    """
    if spec == "digits":
        pictures, _ = load_digits_split("train")
        return CalibrationImages("digits, training part", _spread(pictures, count))
    root = Path(spec)
    if not root.is_dir():
        raise FasterViTError(f"calibration data '{spec}' is neither 'digits' nor a folder")
    paths = image_files(root)
    if not paths:
        raise FasterViTError(f"calibration folder '{spec}' has no images ({', '.join(sorted(SUFFIXES))})")
    return CalibrationImages(root.name, _spread(paths, count))


def _spread(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    """Evenly over all: files come sorted by class, and the first few hundred would be one class alone."""
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def _batches(
    images: Sequence[Picture],
    size: int,
    how: Preprocessing,
    resolution: tuple[int, int],
    share: float,
    data: str,
    left_out: list[Unreadable],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of what can be read, with the numbers of the images."""
    with closing(decoded(images, how, resolution, ahead=size + usable_cpus())) as items:
        kept = readable(items, len(images), share, data, left_out)
        while batch := list(islice(kept, size)):
            numbers, pictures = zip(*batch, strict=True)
            yield np.stack(pictures), np.array(numbers)


def _contents(image: Picture) -> bytes:
    content = image.tobytes() if isinstance(image, Image.Image) else image.read_bytes()
    return hashlib.sha256(content).digest()
