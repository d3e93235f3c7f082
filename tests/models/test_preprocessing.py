"""Pixels are those of the published evaluation: its configuration per variant, timm's and torchvision's rounding."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastervit_trt.models import get_variant, list_models
from fastervit_trt.models.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from fastervit_trt.models.preprocessing import largest_pixels, preprocess_image

# As published with the weights: crop fraction, crop mode; all bicubic, with ImageNet's mean and deviation.
PUBLISHED = {
    "faster_vit_0_224": (0.875, "center"),
    "faster_vit_1_224": (1.0, "center"),
    "faster_vit_2_224": (1.0, "center"),
    "faster_vit_3_224": (1.0, "center"),
    "faster_vit_4_224": (1.0, "center"),
    "faster_vit_5_224": (1.0, "center"),
    "faster_vit_6_224": (1.0, "center"),
    "faster_vit_4_21k_224": (0.95, "squash"),
    "faster_vit_4_21k_384": (1.0, "squash"),
    "faster_vit_4_21k_512": (1.0, "squash"),
    "faster_vit_4_21k_768": (0.93, "squash"),
}

CENTER, SQUASH = Preprocessing(crop_pct=0.875), Preprocessing(crop_pct=0.95, crop_mode="squash")
HOWS = (CENTER, Preprocessing(), SQUASH, Preprocessing(crop_mode="squash"), Preprocessing(interpolation="bilinear"))

# (width, height): odd, portrait, landscape, already resized, tiny, slivers; where rounding is not cutting
SIZES = ((500, 375), (375, 500), (333, 500), (256, 256), (257, 391), (224, 224), (225, 301), (1, 1), (3, 2), (1, 9))
RESOLUTIONS = ((224, 224), (65, 65), (64, 96), (97, 64))


def torchvision_resize(picture: Image.Image, size: int | tuple[int, int], interpolation: str) -> Image.Image:
    """``Resize`` of a PIL image: an int is the shorter side, the longer one is truncated; a pair is (H, W)."""
    if isinstance(size, int):
        short, long = min(picture.size), max(picture.size)
        new = int(size * long / short)
        width, height = (size, new) if picture.width <= picture.height else (new, size)
    else:
        height, width = size
    return picture.resize(
        (width, height), {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    )


def torchvision_center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``CenterCrop``: pads what is too small with black, the odd pixel right and below, then crops."""
    high, wide = size
    left, top = max(0, wide - picture.width) // 2, max(0, high - picture.height) // 2
    right, bottom = (max(0, wide - picture.width) + 1) // 2, (max(0, high - picture.height) + 1) // 2
    padded = Image.new("RGB", (picture.width + left + right, picture.height + top + bottom))
    padded.paste(picture, (left, top))
    y, x = round((padded.height - high) / 2.0), round((padded.width - wide) / 2.0)  # halves to even
    return padded.crop((x, y, x + wide, y + high))


def timm_evaluation(picture: Image.Image, how: Preprocessing, resolution: tuple[int, int]) -> np.ndarray:
    """``create_transform(…, is_training=False)`` without prefetcher, then the picture through it."""
    scaled = (math.floor(resolution[0] / how.crop_pct), math.floor(resolution[1] / how.crop_pct))
    picture = picture.convert("RGB")
    if how.crop_mode == "squash":
        picture = torchvision_resize(picture, scaled, how.interpolation)
    elif scaled[0] == scaled[1]:
        picture = torchvision_resize(picture, scaled[0], how.interpolation)
    else:  # ResizeKeepRatio with longest=0
        ratio = min(picture.height / scaled[0], picture.width / scaled[1])
        both = (round(picture.height * 1.0 / ratio), round(picture.width * 1.0 / ratio))
        picture = torchvision_resize(picture, both, how.interpolation)
    cropped = torch.from_numpy(np.array(torchvision_center_crop(picture, resolution)))
    pixels = cropped.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (how.mean, how.std))
    return pixels.sub_(mean).div_(std).numpy()


def picture_of(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise: every pixel that is somewhere else is seen."""
    noise = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(noise.integers(0, 65536, size[::-1]).astype(np.uint16))
    return Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)


def test_every_variant_has_the_published_configuration() -> None:
    twins = {name: name for name in PUBLISHED}
    twins |= {name.replace("_224", "_any_res") if "21k" not in name else f"{name}_any_res": name for name in PUBLISHED}
    assert set(twins) == {name for name in list_models() if get_variant(name).shipped_weights is None}
    for name, twin in twins.items():
        crop_pct, crop_mode = PUBLISHED[twin]
        expected = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", crop_pct, crop_mode)
        how = get_variant(name).preprocessing
        assert (how.mean, how.std, how.interpolation, how.crop_pct, how.crop_mode) == expected, name


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.crop_mode} {how.crop_pct} {how.interpolation}")
def test_pixels_are_those_of_the_published_evaluation(how: Preprocessing, resolution: tuple[int, int]) -> None:
    for size in SIZES:
        picture = picture_of(size)
        np.testing.assert_array_equal(
            preprocess_image(picture, how, resolution), timm_evaluation(picture, how, resolution), str(size)
        )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("how", [CENTER, SQUASH], ids=["center", "squash"])
def test_every_mode_of_picture_is_converted_as_published(how: Preprocessing, mode: str) -> None:
    picture = picture_of((91, 67), mode)
    assert picture.mode == mode
    np.testing.assert_array_equal(preprocess_image(picture, how, (64, 64)), timm_evaluation(picture, how, (64, 64)))


@pytest.mark.parametrize("size", [(40, 30), (31, 64), (33, 70)])
def test_what_a_crop_lacks_is_black_and_the_odd_pixel_right_and_below(size: tuple[int, int]) -> None:
    how = Preprocessing(crop_pct=1.5)  # resized to less than the crop
    picture = picture_of(size)
    for resolution in ((64, 64), (67, 67), (64, 67)):  # 22 and 23 pixels are missing
        expected = timm_evaluation(picture, how, resolution)
        np.testing.assert_array_equal(preprocess_image(picture, how, resolution), expected)


def test_the_orientation_tag_of_a_camera_is_ignored_as_published() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn by 90 degrees to look at it"
    plain, tagged = io.BytesIO(), io.BytesIO()
    picture_of((80, 60)).save(plain, "jpeg")
    picture_of((80, 60)).save(tagged, "jpeg", exif=turned)
    assert Image.open(tagged).getexif()[0x0112] == 6
    first, second = (preprocess_image(Image.open(file), CENTER, (64, 64)) for file in (plain, tagged))
    np.testing.assert_array_equal(first, second)


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


@pytest.mark.parametrize(
    ("size", "how", "most"),
    [
        ((4000, 3000), CENTER, 4000 * 3000),
        ((100, 100), CENTER, 256 * 256),
        ((1, 20_000), CENTER, 256 * 20_000 * 256),
        ((20_000, 1), Preprocessing(), 224 * 20_000 * 224),
        ((1, 20_000), Preprocessing(crop_mode="squash"), 224 * 224),
    ],
)
def test_how_large_a_picture_becomes_before_its_middle_is_cut_out(
    size: tuple[int, int], how: Preprocessing, most: int
) -> None:
    assert largest_pixels(size, how, (224, 224)) == most
