"""Weights can be made again from their record, and a changed file is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import get_variant
from fastervit_trt.models.checkpoint import save_safetensors
from fastervit_trt.models.fastervit import FasterViT
from fastervit_trt.models.source import WeightSource, model_from_source, shipped_source

CONFIG = get_variant("faster_vit_digits_s").config


def weights(source: WeightSource) -> torch.Tensor:
    model, _ = model_from_source(CONFIG, source)
    assert not model.training
    return torch.cat([p.flatten() for p in model.parameters()])


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first, state = weights(WeightSource.random(3)), torch.random.get_rng_state()
    torch.rand(7)
    assert torch.equal(weights(WeightSource.from_record(WeightSource.random(3).record())), first)
    assert not torch.equal(weights(WeightSource.random(4)), first)
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone


def test_a_checkpoint_is_found_again_by_its_record_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_safetensors(FasterViT(CONFIG).state_dict(), path)
    _, source = model_from_source(CONFIG, WeightSource.checkpoint(path))
    again = WeightSource.from_record(source.record())
    weights(again)
    save_safetensors(FasterViT(CONFIG).state_dict(), path)
    with pytest.raises(FasterViTError, match="has changed since it was exported"):
        weights(again)


def test_only_digits_models_ship() -> None:
    assert shipped_source("faster_vit_digits_m").record() == {
        "kind": "shipped",
        "path": "faster_vit_digits_m.safetensors",
    }
    with pytest.raises(FasterViTError, match="no weights ship for faster_vit_0_224"):
        shipped_source("faster_vit_0_224")
