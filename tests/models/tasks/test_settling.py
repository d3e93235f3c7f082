from __future__ import annotations

import pytest
import torch
from torch import nn

from fastervit_trt.models import create_model
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model
from fastervit_trt.models.tasks.model import TaskModel
from fastervit_trt.models.tasks.settling import settle_norms

SIZE = (128, 160)


def random_model(task: str) -> TaskModel:
    model, _ = build_model(ModelSpec("faster_vit_digits_s", SIZE, task=task), WeightSource.random())
    assert isinstance(model, TaskModel) and not model.training
    return model


@torch.inference_mode()
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_float16_leaves_the_signal_of_random_weights_as_it_is(task: str) -> None:
    """Without trained norms it vanishes: the scores of all positions were alike to 1e-6."""
    model, images = random_model(task), torch.randn(2, 3, *SIZE)
    exact = model.raw(images)
    values, positions = exact[-1], 1 if task == "detection" else (2, 3)
    signal = float(values.std(dim=positions).mean())
    assert signal > 0.01 * float(values.abs().mean())
    rounded = model.half().raw(images.half())[-1].float()
    assert float((rounded - values).abs().mean()) < 0.1 * signal


def test_random_weights_are_the_same_every_time() -> None:
    first, second = random_model("segmentation").state_dict(), random_model("segmentation").state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_norms_fit_what_comes_to_them_and_small_maps_are_left_alone() -> None:
    model = create_model("faster_vit_digits_s", (256, 320), task="segmentation").eval()
    kept = {name: m.running_var.clone() for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    torch.manual_seed(1)
    settle_norms(model)
    changed = {name for name, old in kept.items() if not torch.equal(old, model.get_submodule(name).running_var)}
    pooled = {name for name in kept if ".psp_modules." in name}
    assert set(kept) - changed == pooled
    assert len(pooled) == 4  # of maps of 1 to 36 pixels
    assert not any(m._forward_pre_hooks for m in model.modules() if isinstance(m, nn.BatchNorm2d))
