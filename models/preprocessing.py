"""From a picture to the model's input, the same way everywhere: training, export checks, accuracy, deployment."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fastervit_trt.models.config import Preprocessing

__all__ = ["preprocess_image"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess_image(image: Image.Image, how: Preprocessing, resolution: tuple[int, int]) -> np.ndarray:
    """PIL image of any size and mode → float32 (3, H, W), normalised, for a model of ``resolution`` (H, W).

    The published evaluation: resize so that the crop covers ``crop_pct`` of it, crop the centre, scale to [0, 1],
    subtract the mean, divide by the standard deviation.
    """
    height, width = resolution
    target_h, target_w = math.floor(height / how.crop_pct), math.floor(width / how.crop_pct)
    image = image.convert("RGB")
    if how.crop_mode == "squash":
        size = (target_w, target_h)
    else:
        scale = max(target_w / image.width, target_h / image.height)
        size = (max(target_w, round(image.width * scale)), max(target_h, round(image.height * scale)))
    image = image.resize(size, _FILTERS[how.interpolation])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    normalised = (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)
