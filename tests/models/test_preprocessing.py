from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.models.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from fastervit_trt.models.preprocessing import preprocess_image


def test_white_is_normalised_per_channel() -> None:
    x = preprocess_image(Image.new("L", (40, 30), 255), Preprocessing(), (224, 160))
    assert x.shape == (3, 224, 160)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[:, 5, 5], (1 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD), rtol=1e-6)


@pytest.mark.parametrize(("mode", "left_visible"), [("center", False), ("squash", True)])
def test_center_crops_the_long_side_and_squash_keeps_it(mode: str, left_visible: bool) -> None:
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, :50] = 255  # a white bar at the left edge of a wide picture
    how = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop_mode=mode)  # type: ignore[arg-type]
    x = preprocess_image(Image.fromarray(pixels), how, (64, 64))
    assert (x[:, :, 0].mean() > 0.9) == left_visible


def test_crop_fraction_cuts_the_border() -> None:
    pixels = np.zeros((256, 256, 3), dtype=np.uint8)
    pixels[16:-16, 16:-16] = 255  # exactly the 87.5 % that a crop of 224 in 256 keeps
    how = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop_pct=0.875)
    assert preprocess_image(Image.fromarray(pixels), how, (224, 224)).min() == 1.0
