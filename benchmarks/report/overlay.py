"""A picture and what several looked into it found, in, one PNG with a panel for each out: boxes or coloured masks."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from fastervit_trt.models.annotated import Objects

__all__ = ["SURE", "Finding", "draw_panels"]

SURE = 0.5  # scores from here on are drawn
_SIDE = 360  # pixels of a panel's longer side: three of noise make 124 kB, a page carries dozens
_GAP, _LINE, _MARGIN = 10, 17, 8  # pixels between panels, of a line of text, around all of it
_PAGE, _INK, _SOFT = (255, 255, 255), (28, 36, 48), (92, 102, 117)
_NOT_ANNOTATED = (150, 150, 150)
_PAINT = 0.6  # how much a mask covers of the picture
_TURN = 0.618034  # golden ratio: hues of successive classes lie far apart, however many there are
_IN_LEGEND = 24  # classes; more are counted

Colour = tuple[int, int, int]
# An annotation, (H, W) or of objects, or the outputs of an export for this one picture.
Finding: TypeAlias = "Objects | np.ndarray | tuple[np.ndarray, ...]"


@dataclass(frozen=True)
class _Panel:
    title: str
    remark: str
    picture: Image.Image
    classes: frozenset[int] = frozenset()  # that a mask shows


def draw_panels(
    picture: Image.Image,
    task: str,
    columns: Sequence[tuple[str, Finding]],
    class_names: Sequence[str],
) -> bytes:
    """The PNG, of 200 kB at most.

    Args:
        picture: RGB, of any size.
        task: "detection" or "segmentation".
        columns: title and finding, the ground truth first; the second of three is what the last is compared with.
        class_names: in the order of the indices; numbers where there are none.
    """
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    ground = picture.resize(size, Image.Resampling.BICUBIC)
    if task == "detection":
        panels = [_with_boxes(ground, title, finding, class_names) for title, finding in columns]
    else:
        masks = [_mask(finding, size) for _, finding in columns]
        remarks = _agreement(masks)
        panels = [
            _with_mask(ground, title, remark, mask, class_names)
            for (title, _), mask, remark in zip(columns, masks, remarks, strict=True)
        ]
    return _png(_beside(panels, class_names))


def _with_boxes(
    ground: Image.Image,
    title: str,
    finding: Finding,
    class_names: Sequence[str],
) -> _Panel:
    """Boxes with class and score, the least sure first, so that the surest lie on top."""
    if isinstance(finding, tuple):
        boxes, scores, labels = finding
        whole = np.isfinite(boxes).all(axis=1) & np.isfinite(labels)
        sure = [i for i in np.argsort(scores) if whole[i] and scores[i] >= SURE]
        found = [(boxes[i], int(labels[i]), f" {scores[i]:.2f}") for i in sure]
        remark = f"{len(found)} with score ≥ {SURE:g}"
    else:
        assert not isinstance(finding, np.ndarray)
        crowd = np.asarray(finding.crowd, bool)
        found = [
            (box, int(label), " (many)" if many else "")
            for box, label, many in zip(finding.boxes, finding.labels, crowd, strict=True)
        ]
        remark = f"{len(found)} annotated"
    canvas = ground.copy()
    for box, label, more in found:
        _draw_box(canvas, box, _name(label, class_names) + more, _colour(label))
    return _Panel(title, remark, canvas)


def _draw_box(canvas: Image.Image, box: np.ndarray, text: str, colour: Colour) -> None:
    draw, font = ImageDraw.Draw(canvas), _font(11)
    width, height = canvas.size
    left, right = sorted(round(float(np.clip(x, 0, 1)) * (width - 1)) for x in (box[0], box[2]))
    top, bottom = sorted(round(float(np.clip(y, 0, 1)) * (height - 1)) for y in (box[1], box[3]))
    draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    wide, high = draw.textlength(text, font) + 5, 14
    x = min(left, width - wide)
    y = top - high if top >= high else top
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 3, y + high / 2), text, fill=_on(colour), font=font, anchor="lm")


def _mask(finding: Finding, size: tuple[int, int]) -> np.ndarray:
    """Class indices at the size (width, height) of a panel; -1 where nothing is annotated, or no number found."""
    mask = np.asarray(finding[0] if isinstance(finding, tuple) else finding, np.float32)
    whole = np.where(np.isfinite(mask), mask, -1).astype(np.int32)
    return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.NEAREST))


def _agreement(masks: Sequence[np.ndarray]) -> list[str]:
    """What stands below each title: how much of the truth was found, and how much the last is as the reference."""
    truth, *found = masks
    known = truth >= 0
    remarks = ["" if known.all() else f"{known.mean():.0%} annotated"]
    for i, mask in enumerate(found):
        right = f"{(mask == truth)[known].mean():.1%} right" if known.any() else ""
        same = f"{(mask == found[0]).mean():.2%} as fp32" if i else ""
        remarks.append(", ".join(text for text in (right, same) if text))
    return remarks


def _with_mask(ground: Image.Image, title: str, remark: str, mask: np.ndarray, class_names: Sequence[str]) -> _Panel:
    pixels = np.asarray(ground, np.float32)
    shown = frozenset(int(label) for label in np.unique(mask) if label >= 0 and not _is_ground(label, class_names))
    painted = pixels.copy()
    for label in shown:
        here, colour = mask == label, np.asarray(_colour(label), np.float32)
        painted[here] = (1 - _PAINT) * pixels[here] + _PAINT * colour
        painted[here & _edges(mask)] = colour
    unknown = (mask < 0) & ((np.add.outer(np.arange(mask.shape[0]), np.arange(mask.shape[1])) // 4) % 2 == 0)
    painted[unknown] = _NOT_ANNOTATED
    return _Panel(title, remark, Image.fromarray(painted.round().astype(np.uint8)), shown)


def _edges(mask: np.ndarray) -> np.ndarray:
    """Pixels with another class to the right, to the left, above or below."""
    edges = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        step = np.diff(mask, axis=axis) != 0
        (rows, columns), shape = np.nonzero(step), (1, 0) if axis == 0 else (0, 1)
        edges[rows, columns] = edges[rows + shape[0], columns + shape[1]] = True
    return edges


def _is_ground(label: int, class_names: Sequence[str]) -> bool:
    """The picture itself is seen where a class says that there is nothing."""
    return _name(label, class_names).casefold() == "background"


def _beside(panels: Sequence[_Panel], class_names: Sequence[str]) -> Image.Image:
    width, height = panels[0].picture.size
    width = max(width, 150)  # for the words above narrow pictures
    head = 2 * _LINE + 2
    total = len(panels) * width + (len(panels) - 1) * _GAP
    legend = _legend(sorted(frozenset().union(*(panel.classes for panel in panels))), class_names, total)
    sheet = Image.new("RGB", (total + 2 * _MARGIN, head + height + legend.height + 2 * _MARGIN), _PAGE)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        left = _MARGIN + number * (width + _GAP)
        draw.text((left, _MARGIN), panel.title, fill=_INK, font=_font(13))
        draw.text((left, _MARGIN + _LINE), panel.remark, fill=_SOFT, font=_font(11))
        sheet.paste(panel.picture, (left, _MARGIN + head))
    sheet.paste(legend, (_MARGIN, _MARGIN + head + height))
    return sheet


def _legend(classes: Sequence[int], class_names: Sequence[str], width: int) -> Image.Image:
    """Colour and name of each class, in lines as wide as the panels; no height where there are none."""
    measure, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), _font(11)
    entries: list[tuple[Colour | None, str]] = [(_colour(c), _name(c, class_names)) for c in classes[:_IN_LEGEND]]
    if len(classes) > _IN_LEGEND:
        entries.append((None, f"and {len(classes) - _IN_LEGEND} more"))
    places, x, y = [], 0.0, 8
    for colour, name in entries:
        wide = 18 + measure.textlength(name, font) + 14
        if x and x + wide > width:
            x, y = 0.0, y + _LINE
        places.append((x, y, colour, name))
        x += wide
    sheet = Image.new("RGB", (width, y + _LINE if places else 0), _PAGE)
    draw = ImageDraw.Draw(sheet)
    for x, y, colour, name in places:
        if colour is not None:
            draw.rectangle((x, y + 1, x + 12, y + 13), fill=colour)
        draw.text((x + (18 if colour else 0), y + 7), name, fill=_INK, font=font, anchor="lm")
    return sheet


def _png(sheet: Image.Image) -> bytes:
    """With a palette, as the page carries it."""
    stream = io.BytesIO()
    sheet.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _name(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else str(label)


def _colour(label: int) -> Colour:
    """The same for a class everywhere: hues a golden turn apart, in three lightnesses."""
    red, green, blue = colorsys.hls_to_rgb((0.02 + label * _TURN) % 1, (0.45, 0.6, 0.35)[label % 3], 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _on(colour: Colour) -> Colour:
    """Black or white, whichever is read more easily on ``colour``."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The one that matplotlib brings along, as in the other pictures of a report."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
