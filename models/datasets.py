"""Images to measure accuracy on or to calibrate with: the shipped digits, or a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.preprocessing import preprocess_image

__all__ = ["CalibrationImages", "LabelledImages", "open_calibration_images", "open_dataset"]

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
        for start, pictures in zip(range(0, len(self), size), _stacks(self.images, size, how, resolution), strict=True):
            yield pictures, self.labels[start : start + size]


@dataclass(frozen=True)
class CalibrationImages:
    """Images without labels, in memory, or paths opened when needed."""

    name: str
    images: tuple[Image.Image | Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, how: Preprocessing, resolution: tuple[int, int]) -> Iterator[np.ndarray]:
        """(B, 3, H, W) float32 in order; the last batch may be smaller."""
        return _stacks(self.images, size, how, resolution)

    def sha256(self) -> str:
        """Of the contents, in order: files as they are on disk, pictures by size and pixels."""
        digest = hashlib.sha256()
        for image in self.images:
            content = image.read_bytes() if isinstance(image, Path) else f"{image.size}".encode() + image.tobytes()
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


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
    found = [(path, i) for i, folder in enumerate(folders) for path in _image_files(folder)]
    if not found:
        raise FasterViTError(f"dataset folder '{spec}' has no images; it needs one sub-folder of images per class")
    paths, indices = zip(*found, strict=True)
    return LabelledImages(root.name, tuple(paths), np.array(indices, dtype=np.int64), classes=len(folders))


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
    paths = _image_files(root)
    if not paths:
        raise FasterViTError(f"calibration folder '{spec}' has no images ({', '.join(sorted(_SUFFIXES))})")
    return CalibrationImages(root.name, _spread(paths, count))


def _spread(items: Sequence[Image.Image | Path], count: int) -> tuple[Image.Image | Path, ...]:
    """Evenly over all: files come sorted by class, and the first few hundred would be one class alone."""
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def _image_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES]


def _stacks(
    images: Sequence[Image.Image | Path], size: int, how: Preprocessing, resolution: tuple[int, int]
) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield np.stack([preprocess_image(_opened(i), how, resolution) for i in images[start : start + size]])


def _opened(image: Image.Image | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    try:
        with Image.open(image) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise FasterViTError(f"image '{image}' cannot be read ({error}); remove or replace it") from error
