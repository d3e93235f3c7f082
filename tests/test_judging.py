"""The gate lets through what it should, on images of which the right answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastervit_trt.accuracy import Accuracy
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import Outputs
from fastervit_trt.judging import Judgement, check_gate, judge
from fastervit_trt.models.annotated import open_annotated
from fastervit_trt.models.config import FasterViTConfig, Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.factory import ModelSpec, get_variant
from tests.benchmarks.task_exports import SIDES, mask_folder

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

    def run(images: np.ndarray) -> Outputs:
        nonlocal seen
        logits = Brightness()(torch.from_numpy(images)).numpy()
        for i in range(len(images)):
            if seen + i in numbers:
                logits[i] = np.roll(logits[i], -1)
        seen += len(images)
        return (logits,)

    return run


def decibels(judgement: Judgement) -> float:
    assert isinstance(judgement.artifact, Accuracy) and judgement.artifact.sqnr_db is not None
    return judgement.artifact.sqnr_db


def test_points_lost_and_won_are_counted_against_the_model_on_the_same_images(data: LabelledImages) -> None:
    same = judge(artifact_wrong_on(), Brightness(), data, HOW, CONFIG)
    assert (same.artifact.value, same.reference, same.drop.points) == (0.9, 0.9, 0.0)
    assert (same.artifact.agreement, same.artifact.images, decibels(same)) == (1.0, IMAGES, 200.0)
    worse = judge(artifact_wrong_on(0, 3), Brightness(), data, HOW, CONFIG)
    assert worse.artifact.value == 0.85
    assert worse.drop.points == pytest.approx(5.0)
    assert worse.drop.low < 5.0 < worse.drop.high
    assert worse.artifact.agreement == 0.95
    assert decibels(worse) < 40


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
    def run(images: np.ndarray) -> Outputs:
        logits = Brightness()(torch.from_numpy(images)).numpy()
        logits[:, 9] = -np.inf  # the right class all the same, mostly
        return (logits,)

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


class Levels(nn.Module):
    """The class of a pixel is its level of red in quarters, as in :func:`mask_folder`."""

    def __init__(self, most: int = 3) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((images[:, 0] * 255 / 63).round().clamp(max=self.most),)


def test_masks_are_judged_by_what_they_share_with_the_annotation(tmp_path: Path) -> None:
    data = open_annotated("segmentation", str(mask_folder(tmp_path / "data")))
    config, how = replace(CONFIG, resolution=SIDES, num_classes=4), Preprocessing((0,) * 3, (1,) * 3, crop_pct=1.0)

    def without_roofs(images: np.ndarray) -> Outputs:
        (masks,) = Levels(most=2)(torch.from_numpy(images))
        return (masks.numpy(),)

    # A quarter of every picture is roof, and taken for doors: IoU 1, 1, 1/3 (3 of 3 + 6 quarters), 0.
    worse = judge(without_roofs, Levels(), data, how, config)
    assert (worse.artifact.metric, worse.reference, worse.artifact.images) == ("mIoU", 1.0, 6)
    assert worse.artifact.value == pytest.approx((1 + 1 + 1 / 3) / 4)
    assert worse.drop.points == pytest.approx(100 * (1 - worse.artifact.value))
    assert worse.artifact.agreement == pytest.approx(3 / 4)
    assert str(worse).startswith("mIoU 58.33 % (95 % interval ") and "agreement 75.00 %" in str(worse)
    assert Judgement.from_record(json.loads(json.dumps(worse.record()))) == worse
    with pytest.raises(FasterViTError, match=r"int8 loses \+41\.67 points .* of mIoU on 6 images"):
        check_gate(worse, 41.6, "int8")
    check_gate(worse, 41.7, "int8")
    with pytest.raises(FasterViTError, match=r"has 4 classes, the model 10"):
        judge(without_roofs, Levels(), data, how, replace(config, num_classes=10))
