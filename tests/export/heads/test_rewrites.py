"""Every rewrite of a head finds its places, and none changes what transformers computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.export.heads import rewrites
from fastervit_trt.models import create_model
from fastervit_trt.models.tasks.model import TaskModel
from tests.export.task_models import POSITIONS, SIZE, small_model

CLOSE = {"rtol": 1e-3, "atol": 5e-4}  # boxes made better twice, from points looked up in them, multiply roundings


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("size", [SIZE, (128, 64)], ids=str)
def test_the_deploy_form_computes_the_same(task: str, size: tuple[int, int]) -> None:
    model = small_model(task, size)
    deployed, report = deploy_form(model)
    x = torch.randn(3, 3, *size)
    with torch.inference_mode():
        expected = model.raw(x)
        found = deployed.raw(x, model.picked(*expected))
        for one, same in zip(expected, found, strict=True):
            torch.testing.assert_close(one, same, **CLOSE)
        for one, same in zip(model.decide(*found), deployed.decide(*found), strict=True):
            assert torch.equal(one, same)
    assert report.changes["make_task_models_static"] == 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert report.parameters_after < report.parameters_before


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        # 13 of the neck's and laterals' own, 24 within its 12 merged RepVGG blocks, 3 before and 3 behind the encoder
        (
            "detection",
            {
                "fold_batchnorm_into_head_convolutions": 42,
                "merge_repvgg_branches": 12,
                "make_pooling_static": 0,
                "make_deformable_attention_static": 2,
                "merge_queries_and_keys": 3,
            },
        ),
        (
            "segmentation",
            {
                "fold_batchnorm_into_head_convolutions": 12,
                "merge_repvgg_branches": 0,
                "make_pooling_static": 4,
                "make_deformable_attention_static": 0,
                "merge_queries_and_keys": 0,
            },
        ),
    ],
)
def test_every_place_is_found(task: str, expected: dict[str, int]) -> None:
    changes = deploy_form(small_model(task))[1].changes
    assert {name: changes[name] for name in expected} == expected


def test_classifiers_need_nothing_of_transformers() -> None:
    assert "make_task_models_static" not in deploy_form(create_model("faster_vit_digits_s").eval())[1].changes


def in_order(model: TaskModel, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``raw`` of a model whose queries are all positions, in their order: in that of scores, rounding decides."""
    raw = model.raw(images)
    picked = model.picked(*raw)
    if picked is None:
        return raw
    order = picked.argsort(dim=1)[:, :, None]
    per_query = [tensor.gather(1, order.expand(-1, -1, tensor.shape[2])) for tensor in raw[:2]]
    return *per_query, raw[2]


REWRITES: list[tuple[str, Callable[[nn.Module], int]]] = [
    ("detection", rewrites.fold_batchnorm_into_head_convolutions),
    ("detection", rewrites.make_deformable_attention_static),
    ("detection", rewrites.merge_queries_and_keys),
    ("segmentation", rewrites.fold_batchnorm_into_head_convolutions),
    ("segmentation", rewrites.make_pooling_static),
]


@pytest.mark.parametrize(("task", "rewrite"), REWRITES, ids=lambda value: getattr(value, "__name__", value))
def test_each_rewrite_alone_keeps_what_transformers_computes(task: str, rewrite: Callable[[nn.Module], int]) -> None:
    model, changed = (small_model(task, queries=POSITIONS) for _ in range(2))
    x = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        assert rewrite(nn.Sequential(changed)) > 0
        for one, same in zip(in_order(model, x), in_order(changed, x), strict=True):
            torch.testing.assert_close(one, same, **CLOSE)


def test_two_branches_become_one_convolution() -> None:
    model, changed = (small_model("detection", queries=POSITIONS) for _ in range(2))
    x = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        rewrites.fold_batchnorm_into_head_convolutions(nn.Sequential(changed))
        assert rewrites.merge_repvgg_branches(nn.Sequential(changed)) == 12
        assert rewrites.merge_repvgg_branches(nn.Sequential(changed)) == 0
        for one, same in zip(in_order(model, x), in_order(changed, x), strict=True):
            torch.testing.assert_close(one, same, **CLOSE)


def test_nothing_of_adaptive_pooling_is_left_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' blocks run what a plain list of theirs holds, not what is found by name."""
    deployed, _ = deploy_form(small_model("segmentation"))
    monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", None)
    with torch.inference_mode():
        assert deployed(torch.zeros(1, 3, *SIZE))[0].shape == (1, *SIZE)


def test_parts_are_called_as_a_reader_knows_them() -> None:
    deployed, _ = deploy_form(small_model("detection"))
    blocks = {block_of_module(name) for name, _ in deployed.named_modules()}
    assert {"backbone.stages.2.blocks.0.attn", "encoder.fpn_blocks.0.conv1.conv", "query_selection"} <= blocks
    assert "decoder.layers.1.encoder_attn" in blocks
    assert not any("network" in block or "trunk" in block for block in blocks)
