from __future__ import annotations

from typing import Any

import pytest
import torch

from fastervit_trt.export.deploy import REWRITES, BakedTable, deploy_form
from fastervit_trt.models import create_model
from fastervit_trt.models.position import PositionModule
from tests.conftest import fill_from_names

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "propagation": {"do_propagation": True, "layer_scale": 1e-5},
    "non-square": {"resolution": (160, 320)},
    "no carriers": {"hat": (False,) * 4},
}
TOLERANCE = 1e-5  # of the largest logit


def model_and_images(overrides: dict[str, Any], batch: int) -> tuple[Any, torch.Tensor]:
    model = fill_from_names(create_model("faster_vit_digits_m", **overrides))
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(batch, 3, *model.config.resolution, generator=generator)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_deploy_form_computes_the_same(kind: str, batch: int) -> None:
    model, images = model_and_images(MODELS[kind], batch)
    expected = model(images)
    deployed, report = deploy_form(model)
    assert (deployed(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert torch.equal(model(images), expected)  # the original is untouched
    assert report.parameters_after < report.parameters_before


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda r: r.__name__)
@torch.no_grad()
def test_each_rewrite_alone_changes_something_and_keeps_the_outputs(rewrite: Any) -> None:
    model, images = model_and_images(MODELS["propagation"], 2)
    expected = model(images)
    assert rewrite(model) > 0
    assert (model(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert rewrite(model) == 0  # nothing is left to change


@torch.no_grad()
def test_counts_of_fastervit_0() -> None:
    deployed, report = deploy_form(create_model("faster_vit_0_224"))
    assert report.changes == {
        "fold_batchnorm_into_convolutions": 2 + 2 * (2 + 3),
        "fold_final_batchnorm_into_head": 1,
        "bake_position_tables": 6 * 4 + 5 * 2,  # stage 2: two embeddings and two biases per block; stage 3: one each
    }
    assert not any(isinstance(m, PositionModule | torch.nn.BatchNorm2d) for m in deployed.modules())
    assert sum(isinstance(m, BakedTable) for m in deployed.modules()) == 34
