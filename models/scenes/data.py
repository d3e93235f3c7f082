"""Scenes of handwritten digits on textured backgrounds: a part and a number in, a picture with boxes and mask out.

The digits are scikit-learn's (:mod:`fastervit_trt.models.digits.data`): training scenes show training digits only,
validation scenes held-out digits only. Everything is drawn from raw bits and computed in whole numbers, so a scene is
the same pixels on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.digits.data import load_digits_split

__all__ = ["SCENE_CLASSES", "SCENE_SIZE", "VALIDATION_SCENES", "Part", "Scene", "scene"]

Part = Literal["train", "validation"]

VALIDATION_SCENES = 300  # numbers 0…299 of the part "validation"
SCENE_SIZE = (128, 128)  # (H, W) in pixels
SCENE_CLASSES = tuple(str(digit) for digit in range(10))

_CELLS = 8  # of a digit, per side
_FIXED = 16  # bits behind the point of coordinates
_INK = 96  # of 255: where a digit covers a pixel at least so much, the pixel is the digit's
_MOST_DIGITS = 5
_MOST_OVERLAP = 0.1  # of the smaller box of two digits
_TRIES = 8  # places that are tried for a digit before it is left out
_LUMINANCE = np.array([77, 150, 29])  # of red, green and blue, in 256ths (ITU-R BT.601)


_Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; ends exclusive


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it."""

    picture: Image.Image  # RGB
    boxes: np.ndarray  # (N, 4) int64: left, top, right, bottom in pixels, tight around the visible ink; ends exclusive
    labels: np.ndarray  # (N,) int64: the digits
    mask: np.ndarray  # (H, W) int64: 0 background, d + 1 ink of digit d


class _Draws:
    """Whole numbers from the raw bits of PCG64, whose stream NumPy promises to keep, unlike ``Generator``'s."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def between(self, low: int, high: int) -> int:
        """``low`` to ``high``, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.between(0, 99) < percent

    def noise(self, height: int, width: int) -> np.ndarray:
        """(H, W) int64 in [-128, 127]."""
        words = self._bits.random_raw(-(-height * width // 8)).astype("<u8")
        return words.view(np.uint8)[: height * width].reshape(height, width).astype(np.int64) - 128


def scene(index: int, part: Part, size: tuple[int, int] = SCENE_SIZE) -> Scene:
    """Scene number ``index`` of ``part``; the same one whenever and wherever it is asked for.

    Args:
        index: from 0 on; the validation split is the first :data:`VALIDATION_SCENES`, training has no end.
        part: whose digits are shown.
        size: (H, W) in pixels, at least 32 each; digits grow with the shorter side.

    Raises:
        FasterViTError: a negative number, an unknown part, a side below 32, or scikit-learn is not installed.
    """
    height, width = size
    if index < 0 or part not in get_args(Part) or min(size) < 32:
        raise FasterViTError(
            f"there is no scene {index} of part '{part}' in {height}x{width} pixels: numbers start at 0, parts are "
            f"{' and '.join(get_args(Part))}, and both sides have at least 32 pixels"
        )
    draws = _Draws(get_args(Part).index(part), index)
    canvas = _background(draws, height, width)
    if draws.chance(40):
        for _ in range(draws.between(1, 3)):
            _distract(draws, canvas)
    owner, labels = _write_digits(draws, canvas, _glyphs(part))
    seen = [number for number in range(len(labels)) if (owner == number).any()]
    boxes = np.array([_bounds(owner == number) for number in seen], np.int64).reshape(-1, 4)
    mask = np.append(np.array(labels, np.int64) + 1, 0)[owner]  # owner -1, the background, is the last entry
    return Scene(Image.fromarray(canvas.astype(np.uint8)), boxes, np.array(labels, np.int64)[seen], mask)


@lru_cache(maxsize=2)
def _glyphs(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Digits (N, 12, 12) with an empty margin of 2 cells, values 0…255, and their labels (N,)."""
    images, labels = load_digits_split("train" if part == "train" else "held_out")
    return np.pad(np.stack([np.asarray(image, np.int64) for image in images]), ((0, 0), (2, 2), (2, 2))), labels


def _background(draws: _Draws, height: int, width: int) -> np.ndarray:
    """(H, W, 3) int64 in [0, 255]: a gradient between two colours, noise of several scales, perhaps stripes, grain."""
    y, x = np.mgrid[:height, :width]
    start, end = (np.array([draws.between(30, 225) for _ in range(3)]) for _ in range(2))
    a, b = draws.between(0, 8), draws.between(0, 8)
    share = (a * x + b * y) * 256 // max(a * (width - 1) + b * (height - 1), 1)
    canvas = start + share[:, :, None] * (end - start) >> 9  # half of the way: one picture, one mood
    unit = min(height, width)
    for scale in (2, 4, 8, 16, 32):
        if draws.chance(50):
            field = _smooth(draws, height, width, max(unit // scale, 1))
            canvas += field[:, :, None] * _colour_shift(draws, 44) >> 7
    if draws.chance(35):
        period = draws.between(unit // 16 + 2, unit // 4)
        phase = (draws.between(-8, 8) * x + draws.between(-8, 8) * y) // 8 % (2 * period)
        canvas += (np.abs(phase - period) * 256 // period - 128)[:, :, None] * _colour_shift(draws, 28) >> 7
    canvas += draws.noise(height, width)[:, :, None] * draws.between(0, 14) >> 7
    return canvas.clip(0, 255)


def _smooth(draws: _Draws, height: int, width: int, cell: int) -> np.ndarray:
    """(H, W) noise in [-128, 127] that bends every ``cell`` pixels: random corners, straight in between."""
    rows, columns = (_between_corners(side, cell) for side in (height, width))
    corners = draws.noise(rows.shape[1], columns.shape[1])
    # Whole numbers below 2^53 are exact in float64, in whatever order BLAS adds them.
    return (rows @ corners @ columns.T).astype(np.int64) // cell**2


@lru_cache(maxsize=64)
def _between_corners(side: int, cell: int) -> np.ndarray:
    """(side, corners) float64: how much of each corner is in each pixel, in ``cell``-ths."""
    pixel = np.arange(side)
    weights = np.zeros((side, side // cell + 2))
    weights[pixel, pixel // cell] = cell - pixel % cell
    weights[pixel, pixel // cell + 1] = pixel % cell
    return weights


def _colour_shift(draws: _Draws, most: int) -> np.ndarray:
    """A direction in colour: mostly light to dark, a little hue."""
    return draws.between(8, most) + np.array([draws.between(-most // 3, most // 3) for _ in range(3)])


def _distract(draws: _Draws, canvas: np.ndarray) -> None:
    """Draw a long stroke or a filled blob, which no digit is."""
    height, width, _ = canvas.shape
    unit = min(height, width)
    y, x = np.mgrid[:height, :width]
    cx, cy = draws.between(0, width - 1), draws.between(0, height - 1)
    if draws.chance(50):
        a, b = draws.between(-64, 64), draws.between(1, 64)
        inside = np.abs(a * (x - cx) + b * (y - cy)) * 64 <= math.isqrt(a * a + b * b) * unit // 2
    else:
        rx, ry = draws.between(unit // 16, unit // 5), draws.between(unit // 16, unit // 5)
        inside = ((x - cx) * ry) ** 2 + ((y - cy) * rx) ** 2 <= (rx * ry) ** 2
    if inside.any():
        canvas[inside] = _contrasting(draws, canvas[inside])


def _contrasting(draws: _Draws, there: np.ndarray) -> np.ndarray:
    """A colour (3,) clearly lighter or darker than the pixels (N, 3)."""
    around = int((there @ _LUMINANCE).mean()) // 256
    contrast = draws.between(70, 130)
    lighter = around + contrast <= 250 and (around - contrast < 5 or draws.chance(50))
    target = around + contrast if lighter else around - contrast
    hue = np.array([draws.between(-50, 50) for _ in range(3)])
    return (target + hue - int(hue @ _LUMINANCE) // 256).clip(0, 255)


def _write_digits(
    draws: _Draws, canvas: np.ndarray, glyphs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, list[int]]:
    """Write up to five digits on ``canvas``, later ones over earlier ones.

    Returns the number (H, W) of the digit whose ink each pixel is, -1 for none, and which digits they are.
    """
    height, width, _ = canvas.shape
    pixels, digits = glyphs
    owner = np.full((height, width), -1)
    labels: list[int] = []
    taken: list[_Box] = []
    wanted = 0 if draws.chance(4) else draws.between(1, _MOST_DIGITS)
    for _ in range(wanted):
        chosen = draws.between(0, len(digits) - 1)
        cover = _turned(draws, pixels[chosen], min(height, width))
        box = _place(draws, cover.shape, (height, width), taken)
        if box is None:
            continue
        left, top, right, bottom = box
        patch, ink = canvas[top:bottom, left:right], cover >= _INK
        colour = _contrasting(draws, patch.reshape(-1, 3))
        patch += cover[:, :, None] * (colour - patch) // 255
        owner[top:bottom, left:right][ink] = len(labels)
        labels.append(int(digits[chosen]))
        taken.append(box)
    return owner, labels


def _turned(draws: _Draws, glyph: np.ndarray, unit: int) -> np.ndarray:
    """How much (0…255) a digit of random size, width and slant covers of each pixel, cut to its ink: (h, w).

    Every pixel looks up its place among the cells in fixed point, and mixes the four around it.
    """
    tall = draws.between(unit * 7 // 32, unit * 15 // 32)
    wide = tall * draws.between(85, 115) // 100
    angle = math.radians(draws.between(-150, 150) / 10)
    cos, sin = round(math.cos(angle) * 65536), round(math.sin(angle) * 65536)
    side = max(tall, wide) * 5 // 4
    halves = 2 * np.arange(side) - (side - 1)  # half pixels from the centre
    x, y = halves[None, :], halves[:, None]
    middle = ((_CELLS + 3) << _FIXED) // 2  # of 12 cells
    u = middle + (cos * x + sin * y) * _CELLS // (2 * wide)
    v = middle + (cos * y - sin * x) * _CELLS // (2 * tall)
    last = _CELLS + 2 << _FIXED
    u, v = u.clip(0, last), v.clip(0, last)
    column, row, du, dv = u >> _FIXED, v >> _FIXED, u >> 8 & 255, v >> 8 & 255
    upper = glyph[row, column] * (256 - du) + glyph[row, column + 1] * du
    lower = glyph[row + 1, column] * (256 - du) + glyph[row + 1, column + 1] * du
    cover = np.minimum((upper * (256 - dv) + lower * dv >> 16) * 2, 255)
    left, top, right, bottom = _bounds(cover >= _INK)
    return cover[top:bottom, left:right]


def _place(draws: _Draws, shape: tuple[int, ...], size: tuple[int, int], taken: list[_Box]) -> _Box | None:
    """A box of ``shape`` (h, w) in a picture of ``size`` (H, W) that hardly overlaps those that are taken."""
    h, w = shape
    for _ in range(_TRIES):
        left, top = draws.between(0, size[1] - w), draws.between(0, size[0] - h)
        box = (left, top, left + w, top + h)
        if all(_shared(box, other) <= _MOST_OVERLAP * min(w * h, _area(other)) for other in taken):
            return box
    return None


def _shared(one: _Box, other: _Box) -> int:
    """Pixels that lie in both boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _area(box: _Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _bounds(there: np.ndarray) -> _Box:
    """Left, top, right, bottom of what is true in (H, W); ends exclusive."""
    rows, columns = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
