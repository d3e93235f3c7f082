"""Encoded pictures in, the model's images out, exactly as the export's preprocessing says."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fastervit_trt.deploy.serving.limits import MOST_PIXELS
from fastervit_trt.deploy.serving.refusal import RefusedError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.preprocessing import largest_pixels, preprocess_image

__all__ = ["images_of_pictures"]

_FORMATS = ("JPEG", "PNG")  # each decoder more is one more that strangers may feed


def images_of_pictures(
    pictures: Sequence[memoryview], how: Preprocessing, resolution: tuple[int, int], most_pixels: int = MOST_PIXELS
) -> np.ndarray:
    """JPEG or PNG files → float32 (B, 3, H, W).

    Raises:
        RefusedError: 400, one of them cannot be read, or has too many pixels; says which, counted from 0.
    """
    images = np.empty((len(pictures), 3, *resolution), np.float32)
    for number, content in enumerate(pictures):
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                if largest_pixels(picture.size, how, resolution) > most_pixels:  # known before anything is decoded
                    size = f"{picture.width}x{picture.height}"
                    raise RefusedError(
                        400, f"picture {number} of {size} has more than {most_pixels} pixels, as it is or enlarged"
                    )
                images[number] = preprocess_image(picture, how, resolution)
        except (RefusedError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise RefusedError(400, f"picture {number} has more than {most_pixels} pixels") from error
        except Exception as error:  # damaged bytes make decoders raise anything: SyntaxError, struct.error, …
            raise RefusedError(400, f"picture {number} cannot be read as JPEG or PNG") from error
    return images
