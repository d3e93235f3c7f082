"""The gate lets through what it should, on images of which the right answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.judging import Judgement, check_gate, judge
from fastervit_trt.models.config import FasterViTConfig, Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.factory import ModelSpec, get_variant

CONFIG: FasterViTConfig = ModelSpec("faster_vit_digits_s").config()
HOW: Preprocessing = get_variant("faster_vit_digits_s").preprocessing
IMAGES = 40


class Brightness(nn.Module):
    """The class of an image is its grey value in steps of 25."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = (images.mean((1, 2, 3)) * 0.5 + 0.5) * 255
        return -(grey[:, None] - 25 * torch.arange(10)).abs()


@pytest.fixture
def data() -> LabelledImages:
    """40 even pictures, of which the model gets all right but the last four."""
    labels = np.arange(IMAGES) % 10
    pictures = tuple(Image.new("RGB", (224, 224), (25 * int(i),) * 3) for i in labels)
    labels[-4:] = (labels[-4:] + 1) % 10
    return LabelledImages("made up", pictures, labels, classes=10)


def artifact_wrong_on(*numbers: int):  # type: ignore[no-untyped-def]
    """What computes as the model does, but on images of these numbers, of which it takes the class to be one less."""
    seen = 0

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal seen
        logits = Brightness()(torch.from_numpy(images)).numpy()
        for i in range(len(images)):
            if seen + i in numbers:
                logits[i] = np.roll(logits[i], -1)
        seen += len(images)
        return logits

    return run


def test_points_lost_and_won_are_counted_against_the_model_on_the_same_images(data: LabelledImages) -> None:
    same = judge(artifact_wrong_on(), Brightness(), data, HOW, CONFIG)
    assert (same.artifact.top1, same.reference_top1, same.drop.points) == (0.9, 0.9, 0.0)
    assert (same.artifact.agreement, same.artifact.images, same.sqnr_db) == (1.0, IMAGES, 200.0)
    worse = judge(artifact_wrong_on(0, 3), Brightness(), data, HOW, CONFIG)
    assert worse.artifact.top1 == 0.85
    assert worse.drop.points == pytest.approx(5.0)
    assert worse.drop.low < 5.0 < worse.drop.high
    assert worse.artifact.agreement == 0.95
    assert worse.sqnr_db < 40


def test_the_gate_is_at_what_is_allowed(data: LabelledImages) -> None:
    worse = judge(artifact_wrong_on(0, 3), Brightness(), data, HOW, CONFIG)
    check_gate(worse, 5.0, "int8")
    with pytest.raises(
        FasterViTError, match=r"int8 loses \+5\.00 points .* on 40 images of made up, more than the 4\.9"
    ):
        check_gate(worse, 4.9, "int8")


def test_an_artifact_that_is_better_passes_a_gate_of_nothing(data: LabelledImages) -> None:
    labels = data.labels.copy()
    labels[0] = 9  # where the artifact is "wrong": one less than 0
    won = judge(artifact_wrong_on(0), Brightness(), LabelledImages("other", data.images, labels, 10), HOW, CONFIG)
    assert won.drop.points == pytest.approx(-2.5)
    check_gate(won, 0.0, "fp8")


def test_logits_that_are_not_finite_pass_no_gate(data: LabelledImages) -> None:
    def run(images: np.ndarray) -> np.ndarray:
        logits = Brightness()(torch.from_numpy(images)).numpy()
        logits[:, 9] = -np.inf  # the right class all the same, mostly
        return logits

    judgement = judge(run, Brightness(), data, HOW, CONFIG)
    with pytest.raises(
        FasterViTError, match=r"fp16: 40 logits on made up are not finite; use --precision bf16 or fp32"
    ):
        check_gate(judgement, 100.0, "fp16")


def test_what_the_manifest_keeps_is_the_judgement(data: LabelledImages) -> None:
    judgement = judge(artifact_wrong_on(5), Brightness(), data, HOW, CONFIG)
    assert Judgement.from_record(json.loads(json.dumps(judgement.record()))) == judgement


def test_other_classes_are_refused(data: LabelledImages) -> None:
    other = LabelledImages("seven", data.images, data.labels % 7, classes=7)
    with pytest.raises(FasterViTError, match=r"data 'seven' has 7 classes, the model 10"):
        judge(artifact_wrong_on(), Brightness(), other, HOW, CONFIG)
