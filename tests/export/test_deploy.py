from __future__ import annotations

from typing import Any

import pytest
import torch

from fastervit_trt.export.deploy import (
    REWRITES,
    BakedTable,
    absorb_carrier_permutations,
    bake_position_tables,
    deploy_form,
)
from fastervit_trt.models import create_model
from fastervit_trt.models.hat import WindowAttention
from fastervit_trt.models.position import PositionModule
from tests.conftest import fill_from_names

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "propagation": {"do_propagation": True, "layer_scale": 1e-5},
    "non-square": {"resolution": (160, 320)},
    "non-square, corrected order": {"resolution": (160, 320), "carrier_order": "corrected"},
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
    if rewrite is absorb_carrier_permutations:
        assert rewrite(model) == 0  # there are no tables to reorder yet
        bake_position_tables(model)
    expected = model(images)
    assert rewrite(model) > 0
    assert (model(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert rewrite(model) == 0  # nothing is left to change


# depths 2-3-6-5 and 3-3-12-5; stage 2 has a window and a carrier attention per block, stage 3 a window attention
COUNTS = {
    "faster_vit_0_224": {
        "fold_batchnorm_into_convolutions": 2 + 2 * (2 + 3),
        "fold_final_batchnorm_into_head": 1,
        "bake_position_tables": 6 * 4 + 5 * 2,  # an embedding and a bias for each attention
        "fold_attention_scale_into_q": 6 * 2 + 5,
        "fold_layer_scale": 0,
        "absorb_carrier_permutations": 6,
    },
    "faster_vit_3_224": {
        "fold_batchnorm_into_convolutions": 2 + 2 * (3 + 3),
        "fold_final_batchnorm_into_head": 1,
        "bake_position_tables": 12 * 4 + 5 * 2,
        "fold_attention_scale_into_q": 12 * 2 + 5,
        "fold_layer_scale": 12 * 4 + 5 * 2,
        "absorb_carrier_permutations": 12,
    },
    "faster_vit_0_any_res": {
        "fold_batchnorm_into_convolutions": 2 + 2 * (2 + 3),
        "fold_final_batchnorm_into_head": 1,
        "bake_position_tables": 6 * 3 + 5 * 2,  # no carrier embedding on a non-square grid
        "fold_attention_scale_into_q": 6 * 2 + 5,
        "fold_layer_scale": 0,
        "absorb_carrier_permutations": 0,  # the reference's order stays
    },
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_per_variant(name: str) -> None:
    deployed, report = deploy_form(create_model(name))
    assert report.changes == COUNTS[name]
    assert not any(isinstance(m, PositionModule | torch.nn.BatchNorm2d) for m in deployed.modules())
    assert sum(isinstance(m, BakedTable) for m in deployed.modules()) == COUNTS[name]["bake_position_tables"]


@torch.inference_mode()
def test_padded_heads_compute_the_same() -> None:
    model, images = model_and_images({"dim": 12, "num_heads": (1, 1, 4, 8)}, 2)  # head dim 12
    deployed, report = deploy_form(model, pad_heads_to=8)
    assert report.changes["pad_head_dims"] == 5
    shapes = {tuple(m.qkv.weight.shape) for m in deployed.modules() if isinstance(m, WindowAttention)}
    assert shapes == {(3 * 4 * 16, 48), (3 * 8 * 16, 96)}
    expected = model(images)
    assert (deployed(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert deploy_form(model, pad_heads_to=4)[1].changes["pad_head_dims"] == 0
