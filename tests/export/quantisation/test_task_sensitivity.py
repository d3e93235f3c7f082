"""Detectors and segmenters are judged unit by unit by their own figure, on the shipped models and scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastervit_trt.accuracy import signal_to_noise_db
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.precision import Int8
from fastervit_trt.export.quantisation import sensitivity
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.ranges import CalibrationKey, RangeRow, Ranges
from fastervit_trt.export.quantisation.sensitivity import Evaluator, SensitivityCache
from fastervit_trt.export.quantisation.simulation import simulated
from fastervit_trt.models.annotated import open_annotated
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import build_model, pretrained_source
from tests.conftest import on_one_thread
from tests.export.quantisation.conftest import HeldOut

IMAGES = 8  # in each of two batches


class Subject:
    """A shipped model in deploy form, its ranges, and the first scenes."""

    def __init__(self, name: str, task: str) -> None:
        spec = ModelSpec(name)
        self.task, resolution = task, spec.config().resolution
        self.model: nn.Module = deploy_form(build_model(spec, pretrained_source(name))[0])[0]
        self.scenes = HeldOut(open_annotated(task, "scenes"), spec.preprocessing, resolution, IMAGES)  # type: ignore[arg-type]
        key = CalibrationKey("", "", "", "", "", IMAGES)
        self.ranges = calibrate(self.model, [self.scenes.images[1][0]], key)

    def evaluator(self, precision: Int8 | None = None, ranges: Ranges | None = None) -> Evaluator:
        return Evaluator(
            self.model,
            precision or Int8(),
            ranges or self.ranges,
            self.scenes.batches,
            self.scenes.meter,
            SensitivityCache(None, ""),
        )


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def subject(request: pytest.FixtureRequest) -> Subject:
    pytest.importorskip("pycocotools")
    name = {"detection": "faster_vit_scenes_detector", "segmentation": "faster_vit_scenes_segmenter"}[request.param]
    with on_one_thread():
        return Subject(name, request.param)


def test_nothing_quantised_is_the_model_itself(subject: Subject) -> None:
    nothing = subject.evaluator()([])
    assert (nothing.images, nothing.drop_points, nothing.agreement, nothing.sqnr_db) == (2 * IMAGES, 0.0, 1.0, 200)
    assert nothing.score > 0.7


def test_the_backbone_is_weighed_and_the_head_where_asked_for(subject: Subject) -> None:
    in_head = {operand.unit for operand in operands(subject.model) if operand.in_head}
    backbone, all_of_it = subject.evaluator().units, subject.evaluator(Int8(heads=True)).units
    assert in_head and not in_head & set(backbone)
    assert set(all_of_it) == in_head | set(backbone)


def test_noise_is_that_of_the_logits_of_the_same_queries(subject: Subject) -> None:
    """Were queries picked anew, a detector's logits would be those of other places, and no unit better than another."""
    evaluate = subject.evaluator()
    units = [evaluate.units[0], evaluate.units[-1]]
    assert all(15 < evaluate([unit]).sqnr_db < 200 for unit in units), [evaluate([unit]) for unit in units]


def test_noise_is_seen_in_the_first_images_where_logits_are_many(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "_NOISE_IMAGES", IMAGES)
    evaluate = subject.evaluator()
    found = evaluate(evaluate.units)
    images, model = torch.from_numpy(subject.scenes.images[0][0]), subject.model
    with torch.inference_mode():
        exact = model.raw(images)  # type: ignore[operator]
        picked = model.picked(*exact) if hasattr(model, "picked") else None  # type: ignore[operator]
        with simulated(model, evaluate.precision_of(evaluate.units), subject.ranges):
            rounded = model.raw(images, picked)  # type: ignore[operator]
    assert found.images == 2 * IMAGES
    assert found.sqnr_db == pytest.approx(signal_to_noise_db(exact[0].numpy(), rounded[0].numpy()), abs=1e-4)


def test_what_breaks_the_model_is_seen_in_its_own_figure(subject: Subject) -> None:
    coarse = Ranges(subject.ranges.key, {n: RangeRow(*[300 * r.max] * 5) for n, r in subject.ranges.rows.items()})
    evaluate = subject.evaluator(ranges=coarse)
    exact, broken = evaluate([]), evaluate(evaluate.units)
    assert broken.drop_points == pytest.approx(100 * (exact.score - broken.score))
    assert broken.drop_points > 50 and broken.agreement < 0.9
    judged = subject.scenes.meter()
    for images, numbers in subject.scenes.images:
        with torch.inference_mode():
            judged.add([output.numpy() for output in subject.model(torch.from_numpy(images))], np.asarray(numbers))
    assert judged.result().value == pytest.approx(exact.score, abs=1e-9)
