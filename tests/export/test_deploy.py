from __future__ import annotations

from typing import Any

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import (
    REWRITES,
    absorb_carrier_permutations,
    bake_position_tables,
    deploy_form,
    fold_attention_scale_into_q,
    fold_layer_scale,
    fuse_attention_halves,
    pack_carriers_into_windows,
)
from fastervit_trt.export.packed import PackedAttentionHalf, PackedHATStage, PackedWindowAttention
from fastervit_trt.models import create_model
from fastervit_trt.models.factory import get_variant, list_models
from fastervit_trt.models.hat import HATBlock, HATStage
from fastervit_trt.models.hat_examples import ConvNetWithHAT
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


@torch.no_grad()
def test_packing_wants_scales_folded_first() -> None:
    model, images = model_and_images(MODELS["propagation"], 2)
    expected = model(images)
    for rewrite in (fold_layer_scale, fold_attention_scale_into_q):
        with pytest.raises(FasterViTError, match=f"needs {rewrite.__name__} first"):
            pack_carriers_into_windows(model)
        rewrite(model)
    assert pack_carriers_into_windows(model) == 2
    assert (model(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert pack_carriers_into_windows(model) == 0


# Per variant: BatchNorms (two in the stem and in each convolution block), position tables (an embedding and a bias for
# each attention, but carriers on a non-square grid have no embedding), attentions, layer scales (one for each half of a
# block), and blocks whose carriers need no permutation.
COUNTS = {
    "faster_vit_0_224": (12, 34, 17, 0, 6),
    "faster_vit_1_224": (10, 42, 21, 0, 8),
    "faster_vit_2_224": (14, 42, 21, 0, 8),
    "faster_vit_3_224": (14, 58, 29, 58, 12),
    "faster_vit_4_224": (14, 58, 29, 58, 12),
    "faster_vit_5_224": (14, 58, 29, 58, 12),
    "faster_vit_6_224": (14, 80, 40, 80, 16),
    "faster_vit_4_21k_224": (14, 34, 17, 34, 0),
    "faster_vit_4_21k_384": (14, 34, 17, 34, 0),
    "faster_vit_4_21k_512": (14, 34, 17, 34, 0),
    "faster_vit_4_21k_768": (14, 34, 17, 34, 0),
    # 576x960, in the reference's order, which keeps a permutation
    "faster_vit_0_any_res": (12, 28, 17, 0, 0),
    "faster_vit_1_any_res": (10, 34, 21, 0, 0),
    "faster_vit_2_any_res": (14, 34, 21, 0, 0),
    "faster_vit_3_any_res": (14, 46, 29, 58, 0),
    "faster_vit_4_any_res": (14, 46, 29, 58, 0),
    "faster_vit_5_any_res": (14, 46, 29, 58, 0),
    "faster_vit_6_any_res": (14, 64, 40, 80, 0),
    "faster_vit_4_21k_224_any_res": (14, 34, 17, 34, 0),
    "faster_vit_4_21k_384_any_res": (14, 34, 17, 34, 0),
    "faster_vit_4_21k_512_any_res": (14, 34, 17, 34, 0),
    "faster_vit_4_21k_768_any_res": (14, 34, 17, 34, 0),
}


@pytest.mark.parametrize("name", COUNTS)
@torch.inference_mode()
def test_every_variant_computes_the_same_with_the_counts_of_its_rewrites(name: str) -> None:
    """Depths, windows, carriers and resolution are the variant's own; only its channels are few."""
    model = fill_from_names(create_model(name, dim=8, in_dim=4, num_heads=(1, 1, 2, 4), num_classes=5))
    deployed, report = deploy_form(model)
    norms, tables, attentions, scales, absorbed = COUNTS[name]
    assert report.changes == {
        "fold_batchnorm_into_convolutions": norms,
        "fold_final_batchnorm_into_head": 1,
        "bake_position_tables": tables,
        "fold_attention_scale_into_q": attentions,
        "fold_layer_scale": scales,
        "absorb_carrier_permutations": absorbed,
        "pack_carriers_into_windows": 2,
    }
    assert not any(isinstance(m, PositionModule | torch.nn.BatchNorm2d | HATBlock) for m in deployed.modules())
    for batch in (1,) if max(model.config.window_size) >= 32 else (1, 3):  # 1024 tokens and more in a window take long
        images = torch.randn(batch, 3, *model.config.resolution, generator=torch.Generator().manual_seed(batch))
        expected = model(images)
        assert (deployed(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("head", "folded"),
    [
        (torch.nn.Linear(64, 5), 1),
        (torch.nn.Linear(64, 5, bias=False), 1),
        (torch.nn.Sequential(torch.nn.Linear(64, 5), torch.nn.ReLU()), 0),
        (torch.nn.Identity(), 0),
    ],
    ids=["linear", "no bias", "several layers", "none"],
)
@torch.inference_mode()
def test_heads_of_ones_own(head: torch.nn.Module, folded: int) -> None:
    model, images = model_and_images({}, 2)
    model.head = head
    expected = model(images)
    deployed, report = deploy_form(model)
    assert report.changes["fold_final_batchnorm_into_head"] == folded
    assert (deployed(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_every_registered_variant_has_its_counts() -> None:
    assert set(COUNTS) == {name for name in list_models() if get_variant(name).shipped_weights is None}


@pytest.mark.parametrize("order", ["reference", "corrected"])
@torch.inference_mode()
def test_a_stage_of_its_own_is_replaced_by_its_packed_form(order: str) -> None:
    stage = fill_from_names(HATStage.on_map(16, 2, 2, (10, 17), window=4, ct_size=2, carrier_order=order))
    deployed, report = deploy_form(stage)
    assert isinstance(deployed, PackedHATStage)
    assert report.changes["absorb_carrier_permutations"] == (2 if order == "corrected" else 0)
    x = torch.randn(3, 16, 10, 17)
    expected = stage(x)
    assert (deployed(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@torch.inference_mode()
def test_stages_within_a_network_of_ones_own() -> None:
    model = fill_from_names(ConvNetWithHAT((64, 64), classes=3, dim=16))
    deployed, report = deploy_form(model)
    assert report.changes["pack_carriers_into_windows"] == 1
    x = torch.randn(3, 3, 64, 64)
    expected = model(x)
    assert (deployed(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_a_deploy_form_refuses_another_resolution_and_stays_as_it_is() -> None:
    model, images = model_and_images({}, 1)
    deployed, _ = deploy_form(model)
    with pytest.raises(FasterViTError, match="a deploy form serves one resolution, here 14x14 maps"):
        deployed.set_resolution((256, 256))
    assert torch.equal(deployed(images), deploy_form(model)[0](images))
    with pytest.raises(FasterViTError, match="serves 14x14 maps, not 16x16"):
        deployed(torch.zeros(1, 3, 256, 256))


@torch.inference_mode()
def test_padded_heads_compute_the_same() -> None:
    model, images = model_and_images({"dim": 12, "num_heads": (1, 1, 4, 8)}, 2)  # head dim 12
    deployed, report = deploy_form(model, pad_heads_to=8)
    assert report.changes["pad_head_dims"] == 5
    shapes = {tuple(m.qkv.weight.shape) for m in deployed.modules() if isinstance(m, PackedWindowAttention)}
    assert shapes == {(3 * 4 * 16, 48), (3 * 8 * 16, 96)}
    expected = model(images)
    assert (deployed(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert deploy_form(model, pad_heads_to=4)[1].changes["pad_head_dims"] == 0


def test_head_dims_cannot_be_padded_to_nothing() -> None:
    with pytest.raises(FasterViTError, match="cannot be padded to a multiple of 0; choose 8 for tensor cores"):
        deploy_form(model_and_images({}, 1)[0], pad_heads_to=0)


@pytest.mark.parametrize("pad_heads_to", [None, 16])
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_fused_attention_halves_compute_the_same(kind: str, pad_heads_to: int | None) -> None:
    model, images = model_and_images(MODELS[kind], 2)
    expected = model(images)
    deployed, report = deploy_form(model, fuse="attention-half", pad_heads_to=pad_heads_to)
    assert report.changes["fuse_attention_halves"] == 3
    kinds = [type(module) for module in deployed.modules()]
    assert (kinds.count(PackedAttentionHalf), kinds.count(PackedWindowAttention)) == (3, 0)
    assert (deployed(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert fuse_attention_halves(deployed) == 0


def test_by_default_linear_layers_stay_visible() -> None:
    deployed, report = deploy_form(model_and_images({}, 1)[0])
    assert "fuse_attention_halves" not in report.changes
    assert not any(isinstance(module, PackedAttentionHalf) for module in deployed.modules())


def test_only_what_is_known_is_fused() -> None:
    message = "'block' is nothing to fuse in a window; choose one of window-attention, attention-half"
    with pytest.raises(FasterViTError, match=message):
        deploy_form(model_and_images({}, 1)[0], fuse="block")  # type: ignore[arg-type]
