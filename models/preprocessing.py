"""From a picture to the model's input, the same way everywhere: training, export checks, accuracy, deployment.

Pixel for pixel what the published evaluation does, which is timm's ``create_transform`` on Pillow pictures with
torchvision's ``Resize`` and ``CenterCrop``: where a side is rounded down, where to even, is part of the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # alone it needs NumPy and Pillow: Triton's Python step ships this very file
    from fastervit_trt.models.config import Preprocessing

__all__ = ["largest_pixels", "preprocess_image"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess_image(image: Image.Image, how: Preprocessing, resolution: tuple[int, int]) -> np.ndarray:
    """PIL image of any size and mode → float32 (3, H, W), normalised, for a model of ``resolution`` (H, W).

    The published evaluation: resize so that the crop covers ``crop_pct`` of it, crop the centre, scale to [0, 1],
    subtract the mean, divide by the standard deviation. Orientation tags of cameras are ignored, as there.
    """
    image = image.convert("RGB")
    image = image.resize(_resized(image.size, how, resolution), _FILTERS[how.interpolation])
    height, width = resolution
    left, top = _offset(image.width, width), _offset(image.height, height)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    normalised = (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def largest_pixels(size: tuple[int, int], how: Preprocessing, resolution: tuple[int, int]) -> int:
    """Pixels of a picture of ``size`` (width, height) where :func:`preprocess_image` holds most: as it is, or resized.

    A very thin picture becomes enormous before its middle is cut out; strangers' pictures are judged by this first.
    """
    width, height = _resized(size, how, resolution)
    return max(size[0] * size[1], width * height)


def _resized(size: tuple[int, int], how: Preprocessing, resolution: tuple[int, int]) -> tuple[int, int]:
    """(width, height) before the crop of a picture of ``size`` (width, height)."""
    width, height = size
    target_h, target_w = (math.floor(side / how.crop_pct) for side in resolution)
    if how.crop_mode == "squash":
        return target_w, target_h
    if target_h == target_w:  # torchvision: the longer side is cut off, not rounded
        if width <= height:
            return target_w, target_w * height // width
        return target_h * width // height, target_h
    # timm: both sides are rounded. It forgets the interpolation there and takes bilinear (1.0.29); the weights were
    # trained with theirs, which therefore stands.
    ratio = min(height / target_h, width / target_w)
    return round(width / ratio), round(height / ratio)


def _offset(side: int, crop: int) -> int:
    """Where a centred crop begins, of which what lies outside is black: halves go to the even number, as published."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
