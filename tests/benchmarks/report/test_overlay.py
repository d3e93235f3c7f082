"""Examples show what was found where it was found: boxes with class and score, masks in the colours of the legend."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.benchmarks.report import overlay
from fastervit_trt.benchmarks.report.overlay import draw_panels
from fastervit_trt.models.annotated import Objects

NAMES = ("background", "wall", "door")
GREY = Image.new("RGB", (60, 30), (128, 128, 128))
SIDE = 360  # of a panel, six times the picture's
PANEL = (8, 8 + 36)  # where the first one begins: margin, two lines of words
NEXT = SIDE + 10


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def at(sheet: np.ndarray, panel: int, x: float, y: float) -> np.ndarray:
    """The colour at a place of a panel, in shares of its width and height."""
    pixel: np.ndarray = sheet[PANEL[1] + round(y * (SIDE // 2 - 1)), PANEL[0] + panel * NEXT + round(x * (SIDE - 1))]
    return pixel


def alike(one: np.ndarray, other: tuple[int, ...], within: int = 14) -> bool:
    """But for the palette."""
    return bool(np.abs(one - np.asarray(other)).max() <= within)


def test_masks_are_painted_where_they_are_and_background_is_not() -> None:
    truth = np.zeros((30, 60), np.int64)
    truth[:, 30:] = 2
    truth[20:, :10] = -1
    found = np.zeros((15, 30), np.float32)  # of a model of half the size
    found[:, 15:] = 1
    found[0, 0] = np.nan
    columns = [("ground truth", truth), ("PyTorch fp32", (truth.clip(0),)), ("int8", (found,))]
    sheet = pixels(draw_panels(GREY, "segmentation", columns, NAMES))
    wall, door = (tuple(0.4 * 128 + 0.6 * np.array(overlay._colour(label))) for label in (1, 2))
    assert alike(at(sheet, 0, 0.2, 0.3), (128, 128, 128))
    assert alike(at(sheet, 0, 0.8, 0.5), door)
    assert alike(at(sheet, 1, 0.8, 0.5), door)
    assert alike(at(sheet, 2, 0.8, 0.5), wall)
    corner = sheet[PANEL[1] + 130 : PANEL[1] + 170, PANEL[0] + 5 : PANEL[0] + 50].reshape(-1, 3)
    assert len(np.unique(corner, axis=0)) == 2  # hatched: nothing is annotated there
    below = sheet[PANEL[1] + SIDE // 2 :]
    for label in (1, 2):
        assert (np.abs(below - np.array(overlay._colour(label))).max(axis=2) <= 14).sum() > 100  # in the legend


def test_agreement_is_of_annotated_pixels_and_with_the_second_panel() -> None:
    truth = np.array([[0, 1, -1, -1]])
    theirs, found = np.array([[0, 1, 2, 2]]), np.array([[0, 2, 2, 2]])
    assert overlay._agreement([truth, theirs, found]) == [
        "50% annotated",
        "100.0% right",
        "50.0% right, 75.00% as fp32",
    ]


def test_boxes_from_a_score_of_a_half_are_drawn() -> None:
    truth = Objects(np.array([[0.1, 0.2, 0.4, 0.8]]), np.array([1]), np.array([False]), np.array([1.0]))
    boxes = np.array([[0.5, 0.2, 0.9, 0.8], [0.05, 0.1, 0.3, 0.9], [-0.5, -1, 2, 3]], np.float32)
    found = (boxes, np.array([0.9, 0.49, 0.5], np.float32), np.array([2, 1, 0], np.float32))
    sheet = pixels(draw_panels(GREY, "detection", [("ground truth", truth), ("fp16", found)], NAMES))
    for panel, x, label in ((0, 0.1, 1), (0, 0.4, 1), (1, 0.5, 2), (1, 0.9, 2), (1, 0.0, 0), (1, 1.0, 0)):
        assert alike(at(sheet, panel, x, 0.5), overlay._colour(label)), (panel, x)
    assert alike(at(sheet, 1, 0.05, 0.5), (128, 128, 128))  # not sure enough
    assert alike(at(sheet, 0, 0.25, 0.5), (128, 128, 128))  # within a box the picture is seen


@pytest.mark.parametrize("size", [(40, 400), (900, 900), (3, 2)])
def test_pictures_of_any_shape_become_small_files(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    mask = np.random.default_rng(1).integers(0, 150, (size[1], size[0]))
    columns = [("ground truth", mask), ("PyTorch fp32", (mask,)), ("fp16", (mask,))]
    png = draw_panels(Image.fromarray(noise), "segmentation", columns, ())
    assert len(png) <= 200_000
    assert pixels(png).shape[1] >= 3 * 150


def test_nothing_found_is_a_picture_with_nothing_on_it() -> None:
    none = Objects(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
    found = (np.array([[0, 0, 1, 1], [0, 0, 1, np.nan]]), np.array([np.nan, 0.9]), np.array([0.0, 1.0]))
    sheet = pixels(draw_panels(GREY, "detection", [("ground truth", none), ("fp16", found)], ()))
    inside = sheet[PANEL[1] : PANEL[1] + SIDE // 2, PANEL[0] : PANEL[0] + SIDE]
    assert alike(inside.reshape(-1, 3).max(axis=0), (128, 128, 128))
