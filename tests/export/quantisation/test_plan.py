"""What cannot be quantised, or not as asked, is refused by name; the report tells what stays and why."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Fp8, Fp16, Int8, Precision, Quantised
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.plan import plan_precision
from fastervit_trt.export.quantisation.qdq import insert_qdq
from fastervit_trt.export.quantisation.ranges import Ranges
from tests.export.quantisation.conftest import QuantisedExports
from tests.export.quantisation.graphs import FORMS, products


def test_the_report_tells_what_stays_and_why(quantised_exports: QuantisedExports, digits_s: nn.Module) -> None:
    export = quantised_exports(FORMS["int8, all"])
    report = export.quantisation
    assert report is not None
    assert report.blocks == [o.block for o in operands(digits_s)]
    assert {reason.split(":")[0]: blocks for reason, blocks in report.left.items()} == {
        "stem or head": ["patch_embed.conv_down.0", "patch_embed.conv_down.3", "head"],
        "grouped convolution": ["stages.2.global_tokenizer.pos"],
        "within a fused operator": ["stages.2.blocks.0.hat_attn.qkv", "stages.2.blocks.0.hat_attn.proj"],
    }
    assert str(report).startswith("int8: 17 layers, attention, residual sums, ranges by percentile from 64 images; ")
    assert str(report).endswith("LayerNorm, softmax")
    facts = export.facts()["quantisation"]
    assert (facts["type"], facts["base"], facts["calibration"]["images"]) == ("int8", "fp16", 64)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Int8(only=frozenset({"stages.9.conv"})), "int8: stages.9.conv is no layer that can be quantised"),
        (Fp8(only=frozenset({"head", "stages.0.blocks.0.conv1"})), "fp8: head is no layer that can be quantised"),
    ],
    ids=["nowhere", "left out"],
)
def test_layers_that_cannot_be_quantised_are_refused(
    digits_s: nn.Module, digits_ranges: Ranges, precision: Quantised, message: str
) -> None:
    with pytest.raises(FasterViTError, match=re.escape(message)):
        plan_precision(precision, digits_s, digits_ranges)


def test_quantising_without_ranges_is_refused(digits_s: nn.Module) -> None:
    with pytest.raises(FasterViTError, match="fp8 needs the ranges of activations; give --calibration-data DIR"):
        plan_precision(Fp8(), digits_s, None)
    assert plan_precision(Fp16(), digits_s, None).report is None


def test_a_precision_without_a_handler_is_refused(digits_s: nn.Module) -> None:
    class Ternary(Precision):
        name = "ternary"

    with pytest.raises(FasterViTError, match="no handler for precision Ternary; register one with plan_precision"):
        plan_precision(Ternary(), digits_s, None)


@pytest.mark.parametrize(
    ("precision", "tensor"),
    [
        (Int8(), "stages.2.blocks.0.mlp.fc1"),
        (Int8(attention=True), "stages.3.blocks.0.attn:k"),
        (Int8(residual=True), "stages.2.blocks.0.norm2"),
        (Int8(residual=True), "stages.1.blocks.0.conv2:output"),
    ],
)
def test_a_tensor_without_a_range_is_named(
    quantised_exports: QuantisedExports, digits_ranges: Ranges, precision: Quantised, tensor: str
) -> None:
    rows = {name: row for name, row in digits_ranges.rows.items() if name != tensor}
    assert len(rows) == len(digits_ranges.rows) - 1
    incomplete = replace(digits_ranges, rows=rows)
    with pytest.raises(FasterViTError, match=re.escape(f"the calibration has no range for {tensor}; calibrate this")):
        quantised_exports.make(precision, incomplete)
    # nor does the graph's rewrite do without
    quantised_exports(Int8())
    blocks = [o for o in products(quantised_exports.traced["fp16"]) if o in digits_ranges.rows]
    with pytest.raises(FasterViTError, match=re.escape(f"no range for {tensor};")):
        insert_qdq(quantised_exports.traced["fp16"].clone(), blocks, precision, incomplete)


def test_a_layer_that_the_graph_lacks_is_named(quantised_exports: QuantisedExports, digits_ranges: Ranges) -> None:
    quantised_exports(Int8())
    with pytest.raises(
        FasterViTError, match=r"no convolution or matrix product for stages\.2\.blocks\.0\.norm1, which"
    ):
        insert_qdq(quantised_exports.traced["fp16"].clone(), ["stages.2.blocks.0.norm1"], Int8(), digits_ranges)
