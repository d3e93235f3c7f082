"""The golden set of an export: PyTorch's own outputs, kept and compared so that what is wrong is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastervit_trt.artifacts import Manifest
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.golden import Golden
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import build_model, pretrained_source, resolve_source

GOLDEN = Golden(
    ("noise", "smooth"),
    np.zeros((2, 3, 4, 4), np.float32),
    {"logits": np.array([[1.0, 2.0], [5.0, -1.0]], np.float32), "stage0": np.ones((2, 1, 2, 2), np.float32)},
    {"logits": 0.1, "stage0": 0.5},
)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_export_holds_what_pytorch_computes(exports: Path, precision: str) -> None:
    manifest = Manifest.read(exports / precision)
    assert manifest.golden is not None
    golden = Golden.read(exports / precision, manifest.golden)
    model, _ = build_model(ModelSpec("faster_vit_digits_s"), resolve_source(pretrained_source("faster_vit_digits_s")))
    with torch.inference_mode():
        expected = model(torch.from_numpy(golden.images)).numpy()
    np.testing.assert_allclose(golden.outputs["logits"], expected, atol=1e-5)
    assert golden.kinds == ("noise", "smooth", "extreme")
    assert not np.array_equal(golden.images[0], golden.images[1])
    assert golden.budgets["logits"] == manifest.verification["budget"]


def test_the_graph_passes_and_another_does_not(exports: Path) -> None:
    manifest = Manifest.read(exports / "fp16")
    assert manifest.golden is not None
    golden = Golden.read(exports / "fp16", manifest.golden)
    with Engine.load(exports / "fp16", backend="ort-cpu") as engine:
        outputs = engine(golden.images)
    assert golden.compare(["logits"], outputs).passed
    wrong = outputs[0].copy()
    wrong[2, 7] += 2 * golden.budgets["logits"]
    found = golden.compare(["logits"], [wrong])
    assert not found.passed
    assert (found.worst_input, found.worst_output, found.worst_index) == ("extreme", "logits", (7,))
    assert found.found == pytest.approx(float(wrong[2, 7]))


def test_the_worst_share_of_a_budget_counts_not_the_largest_error() -> None:
    outputs = [GOLDEN.outputs["logits"] + 0.09, GOLDEN.outputs["stage0"] + 0.2]
    found = GOLDEN.compare(["logits", "stage0"], outputs)
    assert found.worst_output == "logits"
    assert found.share_of_budget == pytest.approx(0.9, rel=1e-3)
    assert found.passed
    assert found.top1_agreement == 1.0
    swapped = GOLDEN.compare(["stage0", "logits"], [outputs[1], GOLDEN.outputs["logits"][::-1]])
    assert not swapped.passed
    assert swapped.top1_agreement == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not_pass(value: float) -> None:
    stage = GOLDEN.outputs["stage0"].copy()
    stage[1, 0, 1, 0] = value
    found = GOLDEN.compare(["logits", "stage0"], [GOLDEN.outputs["logits"], stage])
    assert not found.passed
    assert (found.worst_output, found.worst_index, found.worst_input) == ("stage0", (0, 1, 0), "smooth")


def test_other_outputs_are_refused() -> None:
    with pytest.raises(FasterViTError, match="outputs are not those of the golden set"):
        GOLDEN.compare(["logits"], [GOLDEN.outputs["logits"]])
    with pytest.raises(FasterViTError, match="outputs are not those of the golden set"):
        GOLDEN.compare(["logits", "stage0"], [GOLDEN.outputs["logits"][:1], GOLDEN.outputs["stage0"]])


def test_of_masks_the_worst_image_is_told_with_its_share_of_pixels() -> None:
    golden = Golden(("noise", "smooth"), GOLDEN.images, {"masks": np.zeros((2, 4, 5), np.float32)}, {"masks": 0.1})
    found = np.zeros((2, 4, 5), np.float32)
    found[0, 0, 0], found[1, :3, 0] = 1, 2
    worst = golden.compare(["masks"], [found])
    assert (worst.worst_input, worst.worst_output, worst.top1_agreement) == ("smooth", "masks", None)
    assert worst.abs_error == pytest.approx(3 / 20)
    assert worst.share_of_budget == pytest.approx(1.5)
    found[1, 2, 0] = 0
    assert golden.compare(["masks"], [found]).passed


def test_detections_are_found_by_name_whatever_their_order() -> None:
    outputs = {
        "boxes": np.array([[[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.8]]], np.float32),
        "scores": np.array([[0.9, 0.8]], np.float32),
        "labels": np.array([[1, 0]], np.float32),
    }
    golden = Golden(("noise",), GOLDEN.images[:1], outputs, {"boxes": 0.05})
    names = ["labels", "boxes", "scores"]
    assert golden.compare(names, [outputs[name] for name in names]).share_of_budget == 0
    moved = {**outputs, "boxes": outputs["boxes"] + np.float32(0.1)}
    worst = golden.compare(names, [moved[name] for name in names])
    assert (worst.worst_output, worst.passed) == ("boxes", False)
    assert worst.abs_error == pytest.approx(0.1)  # a tenth of the image, of the surest there is
    moved["boxes"] = outputs["boxes"] + 5
    assert golden.compare(names, [moved[name] for name in names]).abs_error == pytest.approx(1)  # more there is not


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files, record = GOLDEN.write(tmp_path)
    assert sorted(path.name for path in files) == sorted(path.name for path in tmp_path.iterdir())
    again = Golden.read(tmp_path, json.loads(json.dumps(record)))
    assert again.kinds == GOLDEN.kinds
    assert again.budgets == GOLDEN.budgets
    np.testing.assert_array_equal(again.outputs["stage0"], GOLDEN.outputs["stage0"])


@pytest.mark.parametrize("damage", ["missing", "garbage", "pickle", "double", "short", "record"])
def test_damage_is_one_line(tmp_path: Path, damage: str) -> None:
    _, record = GOLDEN.write(tmp_path)
    path = tmp_path / "golden-logits.npy"
    match damage:
        case "missing":
            path.unlink()
        case "garbage":
            path.write_bytes(b"\x93NUMPY garbage")
        case "pickle":
            np.save(path, np.array([object()]), allow_pickle=True)
        case "double":
            np.save(path, GOLDEN.outputs["logits"].astype(np.float64))
        case "short":
            np.save(path, GOLDEN.outputs["logits"][:1])
        case "record":
            record = {"kinds": ["noise"], "images": "golden-images.npy", "outputs": ["logits"]}
    with pytest.raises(FasterViTError, match=r"golden set in .* (cannot be read|is damaged).*export the model again"):
        Golden.read(tmp_path, record)
