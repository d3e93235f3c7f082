"""What the kernels serve, as Python says it: the same as the compiled library, and what it means for the variants."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastervit_trt.models.factory import get_variant, list_models
from fastervit_trt.plugins import limits
from fastervit_trt.plugins.limits import KERNELS, unserved, unserved_call
from fastervit_trt.plugins.operators import OPERATORS
from tests.conftest import ROOT
from tests.plugins.conftest import KernelLibrary

BY_NAME = {operator.onnx_name: operator for operator in OPERATORS}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}

# Sizes of the variants and around every limit; then what else the C functions are asked, which must not matter.
HEADS = {"heads": (0, 1, 16), "head_dim": (-8, 0, 1, 8, 32, 40, 48, 49, 56, 64, 79, 80, 81, 88)}
MAPS = {
    "channels": (0, 1, 7, 784, 2**20, 2**20 + 1),
    "height": (-7, 0, 7, 14, 15, 32768, 65536, 2**31 - 1025, 2**31 - 1024),
    "width": (0, 1, 14, 28, 32768),
    "window": (-1, 0, 1, 7, 8, 32768),
    "carriers_per_window": (-1, 0, 1, 2, 4, 16, 17, 2**20),
}
CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[Any, ...]]]] = {
    "window_attention": (
        {"tokens": (-1, 0, 1, 16, 49, 53, 80, 81, 144, 2304, 3072, 3073), **HEADS},
        {"tactic": ("automatic",)},
    ),
    "carrier_attention": (
        {
            "channels": (0, 1, 4, 8, 16, 20, 784),
            "carriers_of_image": (-4, 0, 1, 16, 53, 64, 68, 216, 3072, 3076),
            "carriers_per_window": (-1, 0, 1, 4, 53, 216),
            **HEADS,
        },
        {"tactic": ("automatic",), "shared_memory": (99 * 1024, 227 * 1024)},
    ),
    "window_partition": (MAPS, {"channels_last": (0, 1)}),
    "window_reverse": ({**MAPS, "propagates": (0, 1)}, {"channels_last": (0, 1)}),
}


def grid(axes: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", CASES)
def test_the_library_serves_the_same(kernel_library: KernelLibrary, kernel: str, dtype: str) -> None:
    kernels = kernel_library.kernels
    sizes, others = CASES[kernel]
    answers: Counter[bool] = Counter()
    for case in grid(sizes):
        expected = unserved(kernel, dtype, **case) is None
        for other in grid(others):
            reason = kernels.unsupported(kernel, dtype=DTYPES[dtype], **case, **other)
            assert (reason is None) == expected, (case, other, reason, unserved(kernel, dtype, **case))
        answers[expected] += 1
    assert answers[False] > 50
    assert answers[True] > 50 or (dtype == "int8" and kernel != "window_attention")


def test_every_kernel_is_compared() -> None:
    assert CASES.keys() == KERNELS.keys()


def test_attributes_have_the_ranges_of_the_plugins() -> None:
    contract = (ROOT / "plugins" / "csrc" / "plugin" / "contract.h").read_text()
    ranges = re.findall(r'\{"(\w+)", Attribute::k\w+, (\d+), (\d+)\}', contract)
    assert {name: int(most) for name, _, most in ranges} == limits._MOST
    assert {name for operator in OPERATORS for name in operator.attributes} == limits._MOST.keys()


# Calls.

WEIGHTS = {"qkv_weight_3DC": (192, 64), "proj_weight_CD": (64, 64)}
WINDOWED = {"window": 7, "height": 14, "width": 14}
SERVED: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, int | float]]] = {
    "WindowPartition": ({"x_BCHW": (2, 64, 14, 14), "table_1NC": (1, 49, 64)}, {"window": 7}),
    "WindowPartitionWithCarriers": (
        {"x_BCHW": (2, 64, 14, 14), "carriers_BCHW": (2, 64, 4, 4), "table_1NC": (1, 53, 64)},
        {"window": 7},
    ),
    "WindowAttention": ({"qkv_X3D": (424, 192), "bias_1hNN": (1, 2, 53, 53)}, {}),
    "FusedWindowAttention": ({"x_XC": (424, 64), "bias_1hNN": (1, 2, 53, 53), **WEIGHTS}, {"eps": 1e-5}),
    "CarrierAttention": (
        {"tok_WnNC": (8, 53, 64), "table_1GC": (1, 16, 64), "bias_1hGG": (1, 2, 16, 16), **WEIGHTS},
        {"carriers": 4, "eps": 1e-5},
    ),
    "WindowReverse": ({"tok_WnNC": (8, 49, 64)}, WINDOWED),
    "WindowReverseWithCarriers": ({"tok_WnNC": (8, 53, 64)}, {"carriers": 4, **WINDOWED}),
    "WindowReverseWithPropagation": ({"tok_WnNC": (8, 53, 64), "gamma_C": (64,)}, {"carriers": 4, **WINDOWED}),
}


ATTENTIONS = ("WindowAttention", "FusedWindowAttention", "CarrierAttention")
PLAIN_ONLY = "fp32 has the plain kernel only, the oracle of the others"


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", SERVED)
def test_a_usual_call_is_served(name: str, dtype: str) -> None:
    shapes, attributes = SERVED[name]
    slow = dtype == "fp32" and name in ATTENTIONS
    assert unserved_call(BY_NAME[name], dtype, shapes, attributes) == (f"{name}: {PLAIN_ONLY}" if slow else None)


def test_every_operator_has_its_limits() -> None:
    assert SERVED.keys() == BY_NAME.keys()


HEAD_DIM_12 = "head dim 12 in fp16 (--pad-head-dims 8 makes it 16); served are multiples of 8 up to 80"
# operator, what is other than usual, reason
UNSERVED: list[tuple[str, dict[str, tuple[int, ...]], dict[str, int], str]] = [
    ("WindowPartition", {"x_BCHW": (2, 64, 14, 15)}, {}, "windows of 7 x 7 on a 14 x 15 map; served are maps of"),
    ("WindowPartitionWithCarriers", {"table_1NC": (1, 52, 64)}, {}, "3 carriers per window; served are square numbers"),
    ("WindowAttention", {"qkv_X3D": (424, 72)}, {}, HEAD_DIM_12),
    ("WindowAttention", {"qkv_X3D": (424, 528)}, {}, "head dim 88 in fp16; served are multiples of 8 up to 80"),
    ("FusedWindowAttention", {"proj_weight_CD": (64, 24)}, {}, HEAD_DIM_12),
    ("FusedWindowAttention", {"proj_weight_CD": (20, 64)}, {}, "20 channels in fp16; served are multiples of 8"),
    ("CarrierAttention", {"proj_weight_CD": (64, 24)}, {}, HEAD_DIM_12),
    ("CarrierAttention", {"bias_1hGG": (1, 2, 18, 18)}, {}, "18 carriers an image, 4 a window"),
    ("WindowReverse", {}, {"width": 15}, "windows of 7 x 7 on a 14 x 15 map; served are maps of"),
    ("WindowReverseWithCarriers", {}, {"carriers": 289}, "carriers 289; served are up to 256"),
    ("WindowReverseWithPropagation", {}, {"carriers": 3}, "3 carriers per window; served are square numbers"),
]


@pytest.mark.parametrize(("name", "shapes", "attributes", "reason"), UNSERVED)
def test_a_call_that_is_not_served_says_why(
    name: str, shapes: dict[str, tuple[int, ...]], attributes: dict[str, int], reason: str
) -> None:
    usual_shapes, usual_attributes = SERVED[name]
    answer = unserved_call(BY_NAME[name], "fp16", {**usual_shapes, **shapes}, {**usual_attributes, **attributes})
    assert answer is not None
    assert answer.startswith(f"{name}: ")
    assert reason in answer


def test_reversing_without_propagation_does_not_mind_the_carriers() -> None:
    shapes, attributes = SERVED["WindowReverseWithCarriers"]
    assert unserved_call(BY_NAME["WindowReverseWithCarriers"], "fp16", shapes, {**attributes, "carriers": 3}) is None


# The published variants.

PUBLISHED = [name for name in list_models() if get_variant(name).shipped_weights is None]


def calls_of(name: str, pad_heads_to: int = 1) -> Iterator[tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]]:
    """Operator, shapes and attributes of every kind of call in a variant, from its configuration."""
    config = get_variant(name).config
    for stage in (2, 3):
        geometry, channels, heads = config.geometry(stage), config.stage_dim(stage), config.num_heads[stage]
        dim = -(-channels // heads // pad_heads_to) * pad_heads_to * heads
        carriers, rows, of_image = geometry.carriers_per_window, geometry.tokens, geometry.carriers
        weights = {"qkv_weight_3DC": (3 * dim, channels), "proj_weight_CD": (channels, dim)}
        tokens = (geometry.windows, rows, channels)
        x = {"x_BCHW": (1, channels, *geometry.padded), "table_1NC": (1, rows, channels)}
        windowed = dict(zip(("window", "height", "width"), (geometry.window, *geometry.padded), strict=True))
        of_window = {"bias_1hNN": (1, heads, rows, rows)}
        yield "WindowAttention", {"qkv_X3D": (geometry.windows * rows, 3 * dim), **of_window}, {}
        yield (
            "FusedWindowAttention",
            {"x_XC": (geometry.windows * rows, channels), **of_window, **weights},
            {"eps": 1e-5},
        )
        if not carriers:
            yield "WindowPartition", x, {"window": geometry.window}
            yield "WindowReverse", {"tok_WnNC": tokens}, windowed
            continue
        yield "WindowPartitionWithCarriers", x, {"window": geometry.window}
        shapes = {"tok_WnNC": tokens, "bias_1hGG": (1, heads, of_image, of_image), **weights}
        yield "CarrierAttention", shapes, {"carriers": carriers, "eps": 1e-5}
        yield "WindowReverseWithCarriers", {"tok_WnNC": tokens}, {"carriers": carriers, **windowed}
        yield (
            "WindowReverseWithPropagation",
            {"tok_WnNC": tokens, "gamma_C": (channels,)},
            {"carriers": carriers, **windowed},
        )


def reasons(name: str, dtype: str, pad_heads_to: int = 1) -> set[str]:
    answers = (unserved_call(BY_NAME[o], dtype, shapes, a) for o, shapes, a in calls_of(name, pad_heads_to))
    return {answer for answer in answers if answer is not None}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants_are_served_once_the_49_channels_of_a_head_are_padded(name: str) -> None:
    attentions = {o for o, _, _ in calls_of(name)} & set(ATTENTIONS)
    assert reasons(name, "fp32") == {f"{operator}: {PLAIN_ONLY}" for operator in attentions}
    for dtype in ("fp16", "bf16"):
        assert reasons(name, dtype, pad_heads_to=8) == set()
        odd = f"head dim 49 in {dtype} (--pad-head-dims 8 makes it 56); served are multiples of 8 up to 80"
        odd_ones = attentions if "faster_vit_4" in name else set()
        assert reasons(name, dtype) == {f"{operator}: {odd}" for operator in odd_ones}


def test_all_published_variants_are_looked_at() -> None:
    assert len(PUBLISHED) == 22
    assert {o for name in PUBLISHED for o, _, _ in calls_of(name)} == BY_NAME.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_int8_attention_of_published_variants(name: str) -> None:
    """The core alone, where windows are small: not the large ones of the 21k models."""
    answers = set()
    for operator, shapes, _ in calls_of(name, pad_heads_to=8):
        if operator == "WindowAttention":
            _, heads, tokens, _ = shapes["bias_1hNN"]
            dim = shapes["qkv_X3D"][1] // 3 // heads
            answers.add(unserved("window_attention", "int8", tokens=tokens, heads=heads, head_dim=dim))
    large = {n for n in PUBLISHED if "21k" in n}
    assert (answers == {None}) == (name not in large)
