"""A picture's mask in, from a file or memory; the class index of every pixel out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.decoding import why_unreadable

__all__ = ["NOT_ANNOTATED", "MaskFile", "class_indices", "mask_identity"]

NOT_ANNOTATED = -1  # class index of a pixel that nobody judged: it counts neither for nor against a model

_ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})  # Pillow's modes whose values are classes


@dataclass(frozen=True)
class MaskFile:
    """A picture whose values are classes: greyscale or palette, of 1 to 32 bits."""

    path: Path
    first: int  # value that means class 0; the following are classes 1, 2, …
    ignored: int  # value of pixels that nobody annotated

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, from the file's head.

        Raises:
            FasterViTError: it cannot be read, or has several channels.
        """
        try:
            with Image.open(self.path) as mask:
                mode, (width, height) = mask.mode, mask.size
        except Exception as error:  # damaged bytes make decoders raise anything
            raise self._unreadable(error) from error
        if mode not in _ONE_CHANNEL:
            raise FasterViTError(
                f"mask '{self.path}' is in colours ({mode}); the values of its pixels must be classes: write it as a "
                "greyscale or palette PNG"
            )
        return height, width

    def read(self, classes: int) -> np.ndarray:
        """(H, W) int64 in [0, classes), :data:`NOT_ANNOTATED` where nobody annotated.

        Raises:
            FasterViTError: it cannot be read, or holds a value that is no class.
        """
        try:
            with Image.open(self.path) as mask:
                values = np.asarray(mask).astype(np.int64)
        except Exception as error:  # as above
            raise self._unreadable(error) from error
        known = (values >= self.first) & (values < self.first + classes)
        if (wrong := ~known & (values != self.ignored)).any():
            raise FasterViTError(
                f"mask '{self.path}' holds the value {values[wrong][0]}, but {classes} classes are {self.first} to "
                f"{self.first + classes - 1}, and {self.ignored} is what nobody annotated; correct it, or name all "
                "classes in classes.txt"
            )
        return np.where(values == self.ignored, NOT_ANNOTATED, values - self.first)

    def _unreadable(self, error: Exception) -> FasterViTError:
        return FasterViTError(
            f"mask '{self.path}' cannot be read ({why_unreadable(self.path, error)}); replace it, or remove it "
            "together with its image"
        )


def class_indices(mask: MaskFile | np.ndarray, classes: int) -> np.ndarray:
    """(H, W) int64 of a mask that may be in memory, as class indices of any integer type.

    Raises:
        FasterViTError: the file cannot be read, or holds a value that is no class.
    """
    return mask.read(classes) if isinstance(mask, MaskFile) else mask.astype(np.int64)


def mask_identity(mask: MaskFile | np.ndarray, whole: bool) -> str:
    """What tells a mask from others: for files their size, and their contents where ``whole``."""
    if isinstance(mask, np.ndarray):
        return hashlib.sha256(mask.tobytes()).hexdigest()
    return f"{mask.path.stat().st_size}" + (hashlib.sha256(mask.path.read_bytes()).hexdigest() if whole else "")
