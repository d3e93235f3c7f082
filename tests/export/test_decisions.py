"""Decisions are held to what they follow from: one that is slightly wrong anywhere is refused, one in doubt is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export import verify
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.decisions import Decisions, check_decisions, decide_golden, decided
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import INPUT, save_onnx
from fastervit_trt.export.precision import Fp16, Fp32
from fastervit_trt.export.quantisation.plan import PrecisionPlan
from fastervit_trt.export.typed_model import typed_model
from fastervit_trt.models.tasks.deciding import decide_boxes, decide_masks
from fastervit_trt.models.tasks.heads import Task
from fastervit_trt.models.tasks.model import TaskModel
from tests.export.task_models import SIZE, small_model

Arrays = dict[str, np.ndarray]
IMAGES = np.zeros((2, 3, 8, 12), np.float32)


def written(folder: Path, raw: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Path:
    """A graph that gives ``outputs``, whatever the images, and hides ``raw``."""
    images = ir.val(INPUT, ir.DataType.FLOAT, list(IMAGES.shape))
    graph = ir.Graph([images], [], nodes=[], opset_imports={"": 20}, name="constant")
    for name, array in {**outputs, **raw}.items():
        constant = ir.Value(name=f"{name}_constant", const_value=ir.tensor(np.asarray(array, np.float32)))
        graph.register_initializer(constant)
        node = ir.node("Identity", [constant])
        value = node.outputs[0]
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(array.shape)
        graph.append(node)
        if name in outputs:
            graph.outputs.append(value)
    model = ir.Model(graph, ir_version=10)
    model.metadata_props["fastervit.raw"] = json.dumps(list(raw))
    return save_onnx(model, folder)[0]


@pytest.fixture
def detections() -> tuple[Arrays, Arrays]:
    """Of 6 queries and 3 classes: what they are decided from, and what follows."""
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 6, 3), torch.rand(2, 6, 4)
    raw = {"logits": logits.numpy(), "query_boxes": boxes.numpy(), "position_scores": np.zeros((2, 9), np.float32)}
    decided = zip(("boxes", "scores", "labels"), decide_boxes(logits, boxes), strict=True)
    return raw, {name: output.numpy().copy() for name, output in decided}


@pytest.fixture
def masks() -> tuple[Arrays, Arrays]:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 2, 3)
    return {"logits": logits.numpy()}, {"masks": decide_masks(logits, (8, 12)).numpy().copy()}


DETECTION_ERRORS = {
    "a box is moved": ("boxes", (1, 3, 2), lambda x: x + 2e-3),
    "a score is lower": ("scores", (0, 5), lambda x: x - 2e-3),
    "another class": ("labels", (1, 0), lambda x: (x + 1) % 3),
    "a box is no number": ("boxes", (0, 0, 0), lambda x: np.nan),
    "a score is no number": ("scores", (0, 5), lambda x: np.nan),
}


@pytest.mark.parametrize("kind", DETECTION_ERRORS)
def test_one_wrong_detection_is_found(tmp_path: Path, detections: tuple[Arrays, Arrays], kind: str) -> None:
    raw, outputs = detections
    check_decisions(written(tmp_path, raw, outputs), IMAGES, "detection", Fp32())
    name, place, change = DETECTION_ERRORS[kind]
    outputs[name][place] = change(outputs[name][place])
    with pytest.raises(FasterViTError, match="boxes, scores, labels of the fp32 graph do not follow from its logits, "):
        check_decisions(written(tmp_path, raw, outputs), IMAGES, "detection", Fp32())


def test_detections_that_are_there_but_not_the_best_are_found(
    tmp_path: Path, detections: tuple[Arrays, Arrays]
) -> None:
    raw, outputs = detections
    again = {name: np.repeat(array[:, :1], array.shape[1], axis=1) for name, array in outputs.items()}
    with pytest.raises(FasterViTError, match="do not follow"):
        check_decisions(written(tmp_path, raw, again), IMAGES, "detection", Fp32())


def test_one_wrong_pixel_is_found_unless_rounding_explains_it(tmp_path: Path, masks: tuple[Arrays, Arrays]) -> None:
    raw, outputs = masks
    check_decisions(written(tmp_path, raw, outputs), IMAGES, "segmentation", Fp32())
    outputs["masks"][1, 7, 11] = raw["logits"][1, :, 1, 2].argmin()
    with pytest.raises(FasterViTError, match="masks of the fp32 graph do not follow from its logits: "):
        check_decisions(written(tmp_path, raw, outputs), IMAGES, "segmentation", Fp32())
    first, second = np.argsort(-raw["logits"][1, :, 1, 2])[:2]
    raw["logits"][1, second, 1, 2] = raw["logits"][1, first, 1, 2] * (1 - 2**-10)
    outputs["masks"] = decide_masks(torch.from_numpy(raw["logits"]), (8, 12)).numpy()
    outputs["masks"][1, 7, 11] = second
    check_decisions(written(tmp_path, raw, outputs), IMAGES, "segmentation", Fp16())
    with pytest.raises(FasterViTError, match="do not follow"):
        check_decisions(written(tmp_path, raw, outputs), IMAGES, "segmentation", Fp32())


def test_verification_looks_at_decisions_too(tmp_path: Path, masks: tuple[Arrays, Arrays]) -> None:
    raw, outputs = masks
    decisions = Decisions("segmentation", (outputs["masks"],), {"masks": 0.1})
    expectation = verify.Expectation(Fp32(), ("noise",), (IMAGES,), ((raw["logits"],),), (0.0,), (None,), decisions)
    verify.verify_onnx(written(tmp_path, raw, outputs), expectation)
    higher = {"logits": raw["logits"] + np.float32(1e-2)}
    with pytest.raises(FasterViTError, match="differs from PyTorch"):
        verify.verify_onnx(written(tmp_path, higher, outputs), expectation)
    outputs["masks"][0, :2] = (outputs["masks"][0, :2] + 1) % 4
    with pytest.raises(FasterViTError, match="do not follow"):
        verify.verify_onnx(written(tmp_path, raw, outputs), expectation)


class Undecided(nn.Module):
    """Two classes; in the left half of the image they lie 8 roundings of float32 apart, the second before the first."""

    task: Task = "segmentation"
    raw_names = ("logits",)

    def raw(self, images: torch.Tensor, picked: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        other = torch.full_like(images[:, 0], 1 + 2.0**-21)
        other[:, :, other.shape[2] // 2 :] = 2
        return (torch.stack((images[:, 0], other), dim=1),)

    def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (decide_masks(raw[0], (8, 12)),)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.decide(*self.raw(images))


def test_where_the_least_change_of_the_input_decides_others_may_decide_otherwise() -> None:
    """By twice what that change makes of it, and a floor. In fp32 the typed model alone would show nothing."""
    model = Undecided()
    images = [np.ones((2, 3, 8, 12), np.float32), np.ones((1, 3, 8, 12), np.float32)]
    images[0][1] = 5  # only the first image of a batch counts
    found = decide_golden(decided(model, images), typed_model(Undecided(), Fp32()), images)
    assert found is not None and found.task == "segmentation"
    assert found.outputs[0].shape == (2, 8, 12) and (found.outputs[0] == 1).all()
    assert found.budgets == {"masks": pytest.approx(2 * 0.5 + 0.002)}
    given = (np.zeros((2, 8, 12), np.float32),)
    found = decide_golden(given, typed_model(Undecided(), Fp32()), images)
    assert found is not None and found.outputs is given
    assert found.budgets == {"masks": pytest.approx(2 * 0.5 + 0.002)}  # now the right half is it that differs


def test_what_decides_nothing_has_no_decisions() -> None:
    assert decided(nn.Identity(), [IMAGES]) is None
    assert decide_golden(None, typed_model(nn.Identity(), Fp32()), [IMAGES]) is None


def test_only_the_first_images_are_run_where_that_is_enough() -> None:
    deployed = deploy_form(small_model("detection"))[0]
    images = np.random.default_rng(0).standard_normal((3, 3, *SIZE)).astype(np.float32)
    with torch.inference_mode():
        outputs, picked = verify._reference(deployed, images)
        assert picked is not None and picked.shape == (3, 20)
        for whole, first in zip(outputs, verify._run(deployed, images, 2, picked), strict=True):
            np.testing.assert_allclose(first, whole[:2], rtol=1e-3, atol=1e-4)


def all_alike() -> TaskModel:
    """A detector in which nothing but rounding makes one position score better than another."""
    model = small_model("detection")
    with torch.no_grad():
        model.network.model.enc_score_head.weight.mul_(1e-7)
    return model


@contextmanager
def louder(deployed: nn.Module) -> Iterator[None]:
    """Stands for quantisation: logits are larger by half."""
    last: Any = deployed.get_submodule("decoder.class_embed.1")
    kept, last.weight = last.weight, nn.Parameter(last.weight * 1.5)
    try:
        yield
    finally:
        last.weight = kept


def test_a_quantised_detector_is_held_to_what_its_simulation_decides() -> None:
    """And to the queries that it chose: another choice is no error of the graph."""
    plan = PrecisionPlan(Fp16(), louder, lambda graph: None, None)
    model = all_alike()
    expectation, _ = verify.expect_quantised(model, deploy_form(model)[0], plan, BatchRange.parse("2"), (3, *SIZE))
    assert expectation.decisions is not None
    first = torch.from_numpy(np.stack([batch[0] for batch in expectation.images]))
    again = deploy_form(all_alike())[0]
    with torch.inference_mode(), louder(again):
        scores = again(first)[1].numpy()
    np.testing.assert_allclose(expectation.decisions.outputs[1], scores, atol=1e-2)
    largest = max(float(np.abs(outputs[0]).max()) for outputs in expectation.outputs)
    assert expectation.own_errors[0] < 0.02 * largest


@pytest.mark.parametrize("index", [-1.0, 3.0, np.nan])
def test_what_is_no_class_does_not_follow(tmp_path: Path, detections: tuple[Arrays, Arrays], index: float) -> None:
    raw, outputs = detections
    outputs["labels"][1, 2] = index
    with pytest.raises(FasterViTError, match=r"verification failed: boxes, scores, labels .*: inf where 0"):
        check_decisions(written(tmp_path, raw, outputs), IMAGES, "detection", Fp32())
    logits, masks = np.zeros((2, 3, 2, 3), np.float32), np.full((2, 8, 12), index, np.float32)
    with pytest.raises(FasterViTError, match=r"verification failed: masks .*: inf where 0"):
        check_decisions(written(tmp_path, {"logits": logits}, {"masks": masks}), IMAGES, "segmentation", Fp32())
