"""scikit-learn's bundled handwritten digits as pictures: 1797 of 8x8 pixels, two thirds to train on, one held out.

Source of the data: the test part of the UCI "Optical Recognition of Handwritten Digits" set, as shipped by
scikit-learn (``sklearn.datasets.load_digits``). The held-out third is fixed in ``split.json``, so that accuracy means
the same whichever library version draws it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fastervit_trt.errors import FasterViTError

__all__ = ["DIGITS_FOLDER", "load_digits_split"]

DIGITS_FOLDER = Path(__file__).parent


def load_digits_split(part: Literal["train", "held_out"]) -> tuple[list[Image.Image], np.ndarray]:
    """Greyscale 8x8 images and their labels (N,), in the order of the data set.

    Raises:
        FasterViTError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FasterViTError("the digits need scikit-learn: pip install 'fastervit-trt[demo]'") from error
    data = load_digits()
    held_out = np.zeros(len(data.target), dtype=bool)
    held_out[json.loads((DIGITS_FOLDER / "split.json").read_text())["held_out"]] = True
    chosen = np.flatnonzero(held_out if part == "held_out" else ~held_out)
    pixels = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)  # values are 0…16
    return [Image.fromarray(p) for p in pixels], data.target[chosen].astype(np.int64)
