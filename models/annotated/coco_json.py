"""COCO's JSON of boxes in, images, classes and objects out, each checked as it is read.

The format: https://cocodataset.org/#format-data. Boxes there are left, top, width, height in pixels.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated.images import Objects

__all__ = ["CocoImage", "CocoJson"]

_OVERHANG = 1.0  # pixels that a box may lie outside: annotations round
_LARGEST = 1e12  # of a number that describes a picture; what JSON's NaN and Infinity are not below


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``."""

    id: int
    file: str
    size: tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class _Row:
    """One object: its box as left, top, right, bottom in pixels, and its area in pixels²."""

    box: tuple[float, ...]
    label: int
    crowd: bool
    area: float


class CocoJson:
    """What a file of annotations says, checked as it is read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._content = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:  # no JSON, or no text
            raise FasterViTError(f"'{file}' is cut off or no JSON ({error}); fetch or write it again") from error
        for name in ("images", "annotations", "categories"):
            entries = self._content.get(name) if isinstance(self._content, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise FasterViTError(
                    f"'{file}' is no COCO file for detection: it has no list '{name}'; take an instances_*.json"
                )

    def categories(self) -> tuple[dict[int, int], tuple[str, ...]]:
        """Class indices by category id, and the names of the classes."""
        entries = self._content["categories"]
        if not entries:
            raise self._wrong("'categories' is empty")
        ids = [self._id(entry, "a category") for entry in entries]
        self._check_distinct(ids, "categories")
        ordered = sorted(zip(ids, entries, strict=True), key=lambda pair: pair[0])
        names = tuple(str(entry.get("name", number)) for number, entry in ordered)
        return {number: index for index, (number, _) in enumerate(ordered)}, names

    def images(self) -> list[CocoImage]:
        """In the order of their ids."""
        entries = self._content["images"]
        if not entries:
            raise self._wrong("'images' is empty")
        images = [self._image(entry) for entry in entries]
        self._check_distinct([image.id for image in images], "images")
        return sorted(images, key=lambda image: image.id)

    def objects(self, images: Sequence[CocoImage], classes: dict[int, int]) -> tuple[Objects, ...]:
        """Of each image."""
        if not self._content["annotations"]:
            raise self._wrong("'annotations' is empty: mean average precision needs objects to find")
        known = {image.id: image for image in images}
        rows: defaultdict[int, list[_Row]] = defaultdict(list)
        for entry in self._content["annotations"]:
            where = f"annotation {entry.get('id')}"
            number = entry.get("image_id")
            if not _is_id(number) or number not in known:
                raise self._wrong(f"{where} is of image {number}, which 'images' does not list")
            rows[number].append(self._row(entry, known[number], classes, where))
        return tuple(_stacked(rows[image.id], image.size) for image in images)

    def _image(self, entry: dict[str, Any]) -> CocoImage:
        number = self._id(entry, "an image")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise self._wrong(f"image {number} has no file_name")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise self._wrong(f"image {number} is '{name}', outside of the folder of images")
        sides = _numbers([entry.get("height"), entry.get("width")], 2)
        if sides is None or min(sides) < 1:
            raise self._wrong(f"image {number}, '{name}', has no height and width in pixels")
        return CocoImage(number, name, (int(sides[0]), int(sides[1])))

    def _row(self, entry: dict[str, Any], image: CocoImage, classes: dict[int, int], where: str) -> _Row:
        category = entry.get("category_id")
        if not _is_id(category) or category not in classes:
            raise self._wrong(f"{where} is of category {category}, which 'categories' does not list")
        return _Row(
            box=self._box(entry.get("bbox"), image, where),
            label=classes[category],
            crowd=bool(entry.get("iscrowd", 0)),
            area=self._area(entry, where),
        )

    def _box(self, given: object, image: CocoImage, where: str) -> tuple[float, ...]:
        """Left, top, right, bottom in pixels, cut at the edges."""
        box = _numbers(given, 4)
        if box is None:
            raise self._wrong(f"bbox of {where} is {given}, not left, top, width and height in numbers")
        left, top, width, height = box
        if width <= 0 or height <= 0:
            raise self._wrong(f"bbox of {where} is {given}: it has no area")
        rows, columns = image.size
        right, bottom = left + width, top + height
        over = max(-left, -top, right - columns, bottom - rows)
        if over > _OVERHANG or left >= columns or top >= rows or right <= 0 or bottom <= 0:
            raise self._wrong(
                f"bbox of {where} is {given}, outside of '{image.file}' of {columns}x{rows} pixels (a bbox is left, "
                "top, width, height)"
            )
        return max(left, 0.0), max(top, 0.0), min(right, columns), min(bottom, rows)

    def _area(self, entry: dict[str, Any], where: str) -> float:
        """Of the segments in pixels²; where it is not given, that of the box."""
        if "area" not in entry:
            return float(entry["bbox"][2] * entry["bbox"][3])
        area = _numbers([entry["area"]], 1)
        if area is None or area[0] < 0:
            raise self._wrong(f"area of {where} is {entry['area']}, not a number of pixels")
        return area[0]

    def _id(self, entry: dict[str, Any], what: str) -> int:
        number = entry.get("id")
        if not _is_id(number):
            raise self._wrong(f"the id of {what} is {number!r}, not a whole number")
        return number

    def _check_distinct(self, ids: Iterable[int], what: str) -> None:
        number, times = Counter(ids).most_common(1)[0]
        if times > 1:
            raise self._wrong(f"{times} {what} have the id {number}")

    def _wrong(self, reason: str) -> FasterViTError:
        return FasterViTError(f"'{self._file}': {reason}; correct the file")


def _stacked(rows: Sequence[_Row], size: tuple[int, int]) -> Objects:
    height, width = size
    return Objects(
        boxes=np.array([row.box for row in rows], np.float64).reshape(-1, 4) / (width, height, width, height),
        labels=np.array([row.label for row in rows], np.int64),
        crowd=np.array([row.crowd for row in rows], bool),
        areas=np.array([row.area for row in rows], np.float64),
    )


def _numbers(given: object, count: int) -> tuple[float, ...] | None:
    """``given``, if it is so many finite numbers."""
    if not isinstance(given, list) or len(given) != count:
        return None
    fine = all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= _LARGEST for x in given)
    return tuple(map(float, given)) if fine else None


def _is_id(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool)
