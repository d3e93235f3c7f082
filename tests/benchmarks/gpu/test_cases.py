from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastervit_trt.benchmarks.gpu import cases as gpu_cases
from fastervit_trt.benchmarks.gpu.cases import AttentionCase, BlockCase, Case, Ceilings, ModelCase, WindowsCase
from fastervit_trt.benchmarks.gpu.worklist import CASES, cases_of, in_order_of_value
from fastervit_trt.benchmarks.studies.plain import random_model, random_of
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import bake_position_tables, deploy_form
from fastervit_trt.plugins import reference

FIRST = "faster_vit_0_224"


def only(stage: str, model: str, batch: int, part: str) -> Case:
    (case,) = (case for case in cases_of(stage, [model], [batch]) if case.name == f"{model} {part}")
    return case


def test_the_goals_attention_has_the_size_of_its_readme() -> None:
    case = only("core", FIRST, 128, "stage 3 window")
    assert case.shape == "512x53x8x32"
    assert case.bytes == pytest.approx(55.6e6, rel=1e-2)
    assert case.bytes == 2 * (512 * 53 * 4 * 256 + 8 * 53 * 53)


@pytest.mark.parametrize(
    ("model", "part", "megabytes"),
    [
        (FIRST, "stage 3 partition, planes", 27.8),
        (FIRST, "stage 3 reverse, channels-last", 25.7),
        ("faster_vit_3_224", "stage 3 reverse, planes", 2 * 26.7),  # carriers propagated; twice the channels
    ],
)
def test_windows_move_what_their_readmes_count(model: str, part: str, megabytes: float) -> None:
    assert only("partition", model, 128, part).bytes == pytest.approx(1e6 * megabytes, rel=5e-3)


@pytest.mark.parametrize("part", ["stage 3 window", "stage 3 carriers", "stage 4 window"])
def test_operations_of_attention_are_those_that_pytorch_counts(part: str) -> None:
    case = only("core", FIRST, 2, part)
    assert isinstance(case, AttentionCase)
    qkv = torch.empty(case.windows * case.rows, 3 * case.channels, device="meta")
    with FlopCounterMode(display=False) as counter:
        reference.window_attention(qkv, torch.empty(1, case.heads, case.rows, case.rows, device="meta"))
    assert case.flop == counter.get_total_flops()


def test_operations_of_a_block_are_those_that_pytorch_counts() -> None:
    case = only("block", FIRST, 2, "stage 3 block")
    assert isinstance(case, BlockCase)
    model = random_model(FIRST)
    bake_position_tables(model)
    block = model.levels[2].blocks[0].to("meta")  # type: ignore[index, union-attr]
    tok = torch.empty(8, case.tokens, case.channels, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(tok, torch.empty(2, case.carriers, case.channels, device="meta"))
    assert case.flop == counter.get_total_flops()


def test_half_and_core_differ_by_the_linear_layers() -> None:
    core, half = (only(stage, FIRST, 2, "stage 3 window") for stage in ("core", "half"))
    assert half.flop - core.flop == 8 * (2 * 4 * 53) * 256**2


def test_a_model_counts_its_arithmetic_and_parameters() -> None:
    (case,) = cases_of("models", [FIRST], [2])
    assert isinstance(case, ModelCase)
    assert case.flop == pytest.approx(2 * 6.7e9, rel=0.02)  # 3.3 G multiply-adds an image, as published
    assert case.shape == "2x3x224x224"
    model = random_model(FIRST)
    bake_position_tables(model)
    parameters = sum(p.numel() for p in model.parameters())
    assert case.bytes == 2 * (parameters + 2 * (3 * 224 * 224 + 1000))


def test_backbones_of_any_size_stand_under_heads_too_where_few_images_come_at_once() -> None:
    shapes = {
        (case.name, case.batch): case.shape for case in cases_of("models", [FIRST, "faster_vit_0_any_res"], [1, 8, 128])
    }
    assert shapes.pop((FIRST, 8)) == "8x3x224x224"
    heads = {name: shape for name, shape in shapes.items() if " " in name[0]}
    assert heads == {
        ("faster_vit_0_any_res detection", 1): "1x3x640x640",
        ("faster_vit_0_any_res segmentation", 1): "1x3x512x512",
        ("faster_vit_0_any_res detection", 8): "8x3x640x640",
        ("faster_vit_0_any_res segmentation", 8): "8x3x512x512",
    }


@pytest.mark.parametrize("name", ["faster_vit_scenes_detector", "faster_vit_scenes_segmenter"])
def test_models_under_heads_count_what_their_deploy_form_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = cases_of("models", [name], [3])
    assert isinstance(case, ModelCase)
    flop = case.flop
    model, _ = deploy_form(random_of(case.spec))
    monkeypatch.setattr(torch.ops.fastervit, "window_attention", reference.window_attention)  # which PyTorch can count
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = model(torch.randn(3, 3, 128, 128))
    assert flop == counter.get_total_flops()
    numbers = sum(p.numel() for p in model.parameters()) + 3 * 3 * 128 * 128 + sum(x.numel() for x in outputs)
    assert case.bytes == 2 * numbers


def test_without_transformers_only_models_under_heads_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_cases._size_of.cache_clear()
    for name in [name for name in sys.modules if name.startswith("fastervit_trt.models.tasks.")]:
        if not name.endswith(".heads"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    classifier, detector, segmenter = cases_of("models", ["faster_vit_0_any_res"], [1])
    assert classifier.why_not is None
    for case, task in ((detector, "detection"), (segmenter, "segmentation")):
        assert (case.why_not or "").startswith(f"{task} needs transformers: pip install 'fastervit-trt[tasks]'")


def test_any_resolution_has_more_windows_and_pads_its_maps() -> None:
    case = only("partition", "faster_vit_0_any_res", 1, "stage 3 partition, planes")
    assert isinstance(case, WindowsCase)
    assert case.shape == "1x256x42x63"
    assert case.windows == 54


def test_heads_are_padded_for_our_kernels_and_only_there() -> None:
    case = only("core", "faster_vit_4_224", 1, "stage 3 window")
    assert isinstance(case, AttentionCase)
    assert (case.head_dim, case.padded_head_dim, case.channels) == (49, 56, 784)


def test_the_floor_is_the_longer_of_bytes_and_operations() -> None:
    ceilings = Ceilings(copy_gb_per_s=1000, matmul_tflop_per_s=100)
    assert ceilings.floor_us(2_000_000, 0) == pytest.approx(2)
    assert ceilings.floor_us(2_000_000, 300_000_000) == pytest.approx(3)


def test_what_the_goals_name_comes_first() -> None:
    models, batches = ["a", "b", "c"], [1, 8, 32, 128]
    order = in_order_of_value(models, batches)
    assert order[:5] == [("a", 128), ("a", 1), ("b", 128), ("c", 128), ("b", 1)]
    assert sorted(order) == sorted((model, batch) for model in models for batch in batches)


def test_every_case_has_a_name_of_its_own() -> None:
    for stage in CASES:
        cases = cases_of(stage, [FIRST, "faster_vit_4_224", "faster_vit_0_any_res"], [1, 128])
        assert len({(case.name, case.batch) for case in cases}) == len(cases) > 0


def test_unknown_models_are_refused() -> None:
    with pytest.raises(FasterViTError, match="unknown model"):
        cases_of("core", ["faster_vit_9"], [1])
