"""Small exports of segmenters and detectors whose answers are known, and data in which these are right.

Their graphs are made by hand: the class of a pixel is its level of red in quarters, and boxes are the same for every
picture. So what a sweep makes of them is known to the last digit. Their manifests name a real model with random
weights, which PyTorch can build.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fastervit_trt.artifacts import Manifest, file_entry
from fastervit_trt.models.factory import ModelSpec

CLASSES = ("ground", "wall", "door", "roof")
SIDES = (32, 64)  # of the pictures: height, width
DOOR = (0.25, 0.25, 0.5, 0.75)  # left, top, right, bottom in shares: where every picture has its object
_ELSEWHERE = (0.6, 0.1, 0.9, 0.4)
_STEP = 63  # between the levels of red of two classes; 4 of them make 252


def mask_folder(root: Path, count: int = 6) -> Path:
    """Pictures of upright stripes, each of one class, with their masks; the door is in every other picture."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for number in range(count):
        mask = np.repeat([0, 1, 3, 2 if number % 2 else 0], SIDES[1] // 4)[None].repeat(SIDES[0], 0).astype(np.uint8)
        picture = np.zeros((*SIDES, 3), np.uint8)
        picture[..., 0] = _STEP * mask
        Image.fromarray(picture).save(root / "images" / f"{number:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:02}.png")
    return root


def coco_folder(root: Path, count: int = 4) -> Path:
    """Pictures with one object of the second category each, all at the same place."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    left, top, right, bottom = (share * side for share, side in zip(DOOR, (SIDES[1], SIDES[0]) * 2, strict=True))
    box = [left, top, right - left, bottom - top]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIDES[0], "width": SIDES[1]} for i in range(count)]
    for image in images:
        picture = np.full((*SIDES, 3), 40 * int(str(image["id"])), np.uint8)
        Image.fromarray(picture).save(root / "val2017" / str(image["file_name"]))
    found = [
        {"id": 10 + i, "image_id": i, "category_id": 7, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i in range(count)
    ]
    categories = [{"id": 3, "name": "wall"}, {"id": 7, "name": "door"}]
    content = {"images": images, "annotations": found, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def segmenter(folder: Path, resolution: tuple[int, int] = SIDES, *, blind: bool = False, name: str = "fp32") -> Path:
    """An export that finds every class; a blind one takes roofs for walls."""
    red = helper.make_node("Slice", ["images", "first", "second", "axis"], ["red"])
    scaled = helper.make_node("Mul", ["red", "quarters"], ["scaled"])
    whole = helper.make_node("Round", ["scaled"], ["whole"])
    squeezed = helper.make_node("Squeeze", ["whole", "axis"], ["seen" if blind else "masks"])
    nodes = [red, scaled, whole, squeezed]
    if blind:
        nodes += [
            helper.make_node("Greater", ["seen", "two"], ["roof"]),
            helper.make_node("Where", ["roof", "one", "seen"], ["masks"]),
        ]
    constants = {"first": [0], "second": [1], "axis": [1], "quarters": 255 / _STEP, "one": 1.0, "two": 2.5}
    outputs = {"masks": ["batch", *resolution]}
    return _export(folder, "segmentation", resolution, nodes, constants, outputs, len(CLASSES), name)


def detector(folder: Path, resolution: tuple[int, int] = (128, 128), *, name: str = "fp32", score: float = 0.9) -> Path:
    """An export that finds the object of every picture, and beside it one that is not there, with less certainty."""
    zero = helper.make_node("Mul", ["images", "nothing"], ["zeros"])
    mean = helper.make_node("ReduceMean", ["zeros", "axes"], ["each"], keepdims=0)
    nodes = [zero, mean]
    nodes += [
        helper.make_node("Unsqueeze", ["each", "last"], ["column"]),
        helper.make_node("Unsqueeze", ["column", "last_two"], ["matrix"]),
        helper.make_node("Add", ["matrix", "places"], ["boxes"]),
        helper.make_node("Add", ["column", "certainty"], ["scores"]),
        helper.make_node("Add", ["column", "kinds"], ["labels"]),
    ]
    constants: dict[str, Any] = {
        "nothing": 0.0,
        "axes": [1, 2, 3],
        "last": [1],
        "last_two": [2],
        "places": np.array([[DOOR, _ELSEWHERE]], np.float32),
        "certainty": np.array([[score, 0.3]], np.float32),
        "kinds": np.array([[1, 0]], np.float32),
    }
    outputs = {"boxes": ["batch", 2, 4], "scores": ["batch", 2], "labels": ["batch", 2]}
    return _export(folder, "detection", resolution, nodes, constants, outputs, 2, name)


def _export(
    folder: Path,
    task: str,
    resolution: tuple[int, int],
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    outputs: dict[str, list[Any]],
    classes: int,
    precision: str,
) -> Path:
    folder.mkdir(parents=True)
    shape = ["batch", 3, *resolution]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [_constant(name, value) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    spec = ModelSpec("faster_vit_digits_s", resolution=resolution, num_classes=classes, task=task)
    Manifest(
        model=spec.name,
        spec=spec.record(),
        num_classes=classes,
        resolution=resolution,
        precision=precision,
        batch="1:4:8",
        input={"name": "images", "dtype": "float32", "shape": shape},
        outputs=[{"name": name, "dtype": "float32", "shape": dims} for name, dims in outputs.items()],
        preprocessing={
            "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"
        },
        weights={"kind": "random", "seed": 0},
        graph={
            "deploy": {"parameters_after": 1000},
            "fusion": {"operators": {}, "nodes": len(nodes), "flat_nodes": len(nodes), "unserved": {}},
            "quantisation": None,
        },
        verification={},
        engines=[],
        engines_skipped="not asked for",
        files={"model.onnx": file_entry(folder / "model.onnx")},
        versions={},
        created_utc="2026-01-02T03:04:05+00:00",
        task=task,
    ).write(folder)  # fmt: skip
    return folder


def _constant(name: str, value: Any) -> onnx.TensorProto:
    kind = np.int64 if isinstance(value, list) else np.float32
    return numpy_helper.from_array(np.asarray(value, kind), name)
