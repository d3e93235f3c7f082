"""Small data sets on disk in the layouts of COCO and ADE20K, with real pictures, for the tests of data and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((40, 60), (48, 32), (64, 64), (30, 90))  # (height, width)
CATEGORIES = {7: "bird", 3: "car", 90: "toothbrush"}  # listed out of order, ids with holes, as in COCO

Json = dict[str, Any]


def picture(path: Path, size: tuple[int, int], level: int = 100) -> Path:
    """An even grey picture of ``size`` (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (level, level, level)).save(path)
    return path


def coco_content() -> Json:
    """Four images, listed out of order; the last has nothing on it, the second a crowd."""
    images = [
        {"id": 10 * (i + 1), "file_name": f"{i}.jpg", "height": height, "width": width}
        for i, (height, width) in enumerate(SIZES)
    ]
    objects = [
        (10, 3, [5, 4, 20, 30], 400.5, 0),
        (10, 90, [30.5, 10, 29.9, 12.25], 300, 0),
        (20, 3, [0, 0, 32, 24], 700, 1),
        (20, 7, [2, 20, 10, 20], 150, 0),
        (30, 7, [8, 8, 48, 48], 2000, 0),
        (30, 7, [20, 30, 8, 8], 60, 0),
    ]
    annotations = [
        {"id": 100 + i, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
        for i, (image, category, box, area, crowd) in enumerate(objects)
    ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": images[::-1], "annotations": annotations, "categories": categories}


def coco(root: Path, content: Json | None = None, name: str = "val2017") -> Path:
    """A folder in COCO's layout; pictures as in :func:`coco_content`."""
    for i, size in enumerate(SIZES):
        picture(root / name / f"{i}.jpg", size, 20 * i)
    (root / "annotations").mkdir(exist_ok=True)
    file = root / "annotations" / f"instances_{name}.json"
    file.write_text(json.dumps(content or coco_content()))
    return root


def mask_values(number: int, size: tuple[int, int], values: int) -> np.ndarray:
    """(H, W) uint8 below ``values``: blocks of 5 pixels, which differ from mask to mask."""
    rng = np.random.default_rng(number)
    height, width = size
    blocks = rng.integers(0, values, (-(-height // 5), -(-width // 5)), dtype=np.uint8)
    return blocks.repeat(5, 0).repeat(5, 1)[:height, :width]


def masks(images: Path, folder: Path, values: int, mode: str = "L") -> None:
    """A picture and a PNG of :func:`mask_values` for each of :data:`SIZES`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(SIZES):
        picture(images / f"{i}.jpg", size, 20 * i)
        mask = Image.fromarray(mask_values(i, size, values))
        if mode == "P":
            mask.putpalette([255 - i // 3 for i in range(768)])
        mask.save(folder / f"{i}.png")


def ade20k(root: Path) -> Path:
    """A folder in ADE20K's layout: values from 0, which is nothing, to 150."""
    masks(root / "images/validation", root / "annotations/validation", 151)
    return root


def mask_folder(root: Path, names: tuple[str, ...] = ("road", "sky", "tree"), mode: str = "L") -> Path:
    """``images``, ``masks`` and ``classes.txt``."""
    masks(root / "images", root / "masks", len(names), mode)
    (root / "classes.txt").write_text("\n".join(names))
    return root
