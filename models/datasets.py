"""Images to measure a classifier's accuracy on, or to calibrate any model with: what ships here, or a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.class_folders import (
    SUFFIXES,
    image_files,
    is_imagenet_1k,
    is_wordnet,
    read_class_folders,
)
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.decoding import Picture, Unreadable
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.picture_set import LEFT_OUT, numbered_batches, set_sha256, spread
from fastervit_trt.models.scenes.data import scene

__all__ = ["CalibrationImages", "LabelledImages", "open_calibration_images", "open_dataset"]


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
    max_unreadable: float = LEFT_OUT  # share of images that may be unreadable and are then left out

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
        share, data = self.max_unreadable, f"dataset '{self.name}'"
        yield from numbered_batches(self.images, size, how, resolution, share=share, data=data, left_out=missing)

    def sha256(self, without: Collection[int] = ()) -> str:
        """What this data set is, but for the images numbered ``without``
        (:func:`~fastervit_trt.models.picture_set.set_sha256`)."""
        return set_sha256(
            self.images, self.root, f"{self.classes} classes", lambda i, _: str(int(self.labels[i])), without
        )

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
        data = f"calibration data '{self.name}'"
        for pictures, _ in numbered_batches(self.images, size, how, resolution, share=0.0, data=data, left_out=[]):
            yield pictures

    def sha256(self) -> str:
        """Of the contents, in order: files as they are on disk, pictures by size and pixels."""
        digest = hashlib.sha256()
        for image in self.images:
            content = image.read_bytes() if isinstance(image, Path) else f"{image.size}".encode() + image.tobytes()
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


def open_dataset(spec: str, max_unreadable: float = LEFT_OUT) -> LabelledImages:
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
    if spec == "scenes":
        raise FasterViTError("'scenes' have boxes and masks, the model classifies: take 'digits' or a folder")
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
    """``count`` images: ``"digits"`` (of the two thirds to train on), ``"scenes"`` (to train on), or of a folder.

    They are spread evenly over what there is, in folders at any depth.

    Raises:
        FasterViTError: no such folder, or no images in it.
    """
    if spec == "digits":
        pictures, _ = load_digits_split("train")
        return CalibrationImages("digits, training part", spread(pictures, count))
    if spec == "scenes":
        return CalibrationImages("scenes, training part", tuple(scene(i, "train").picture for i in range(count)))
    root = Path(spec)
    if not root.is_dir():
        raise FasterViTError(f"calibration data '{spec}' is neither 'digits' nor a folder nor 'scenes'")
    paths = image_files(root)
    if not paths:
        raise FasterViTError(f"calibration folder '{spec}' has no images ({', '.join(sorted(SUFFIXES))})")
    return CalibrationImages(root.name, spread(paths, count))
