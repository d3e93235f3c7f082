"""Labelled images to measure accuracy on: the shipped digits, or an ImageNet-style folder with one folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.preprocessing import preprocess_image

__all__ = ["LabelledImages", "open_dataset"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class LabelledImages:
    """Images (in memory, or paths opened when needed) with their class indices (N,)."""

    name: str
    images: tuple[Image.Image | Path, ...]
    labels: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, size: int, how: Preprocessing, resolution: tuple[int, int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(images (B, 3, H, W) float32, labels (B,)) in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            pictures = [preprocess_image(_opened(i), how, resolution) for i in self.images[start : start + size]]
            yield np.stack(pictures), self.labels[start : start + size]


def open_dataset(spec: str) -> LabelledImages:
    """``"digits"`` (the held-out third) or the path of a folder with one sub-folder of images per class.

    Class indices follow the sorted names of the sub-folders, as in ImageNet's published evaluation.

    Raises:
        FasterViTError: no such folder, or no images in it.
    """
    if spec == "digits":
        pictures, labels = load_digits_split("held_out")
        return LabelledImages("digits, held-out third", tuple(pictures), labels, classes=10)
    root = Path(spec)
    if not root.is_dir():
        raise FasterViTError(f"dataset '{spec}' is neither 'digits' nor a folder")
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    found = [
        (path, i) for i, f in enumerate(folders) for path in sorted(f.rglob("*")) if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise FasterViTError(f"dataset folder '{spec}' has no images; it needs one sub-folder of images per class")
    paths, indices = zip(*found, strict=True)
    return LabelledImages(root.name, tuple(paths), np.array(indices, dtype=np.int64), classes=len(folders))


def _opened(image: Image.Image | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    try:
        with Image.open(image) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise FasterViTError(f"image '{image}' cannot be read ({error}); remove or replace it") from error
