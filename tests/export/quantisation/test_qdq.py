"""What is written around quantised layers: Q/DQ where they were chosen, and nowhere else."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from fastervit_trt.export.graph import BLOCK
from fastervit_trt.export.precision import Fp16, Int8, Precision
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.scales import quantised_weights, weight_scales
from tests.export.quantisation.conftest import QuantisedExports
from tests.export.quantisation.graphs import (
    FORMS,
    graph_of,
    is_rounded,
    nodes_of,
    number,
    pair_before,
    producer,
    products,
    scale_of,
)

WINDOWS = ("stages.2.blocks.0.attn", "stages.3.blocks.0.attn")


# Where residual branches end → where the stream they are added to is calibrated.
RESIDUALS = {
    "stages.0.blocks.0.conv2": "stages.0.blocks.0.conv1",
    "stages.1.blocks.0.conv2": "stages.1.blocks.0.conv1",
    "stages.2.blocks.0.hat_mlp.fc2": "stages.2.blocks.0.hat_norm2",
    "stages.2.blocks.0.attn.proj": "stages.2.blocks.0.norm1",
    "stages.2.blocks.0.mlp.fc2": "stages.2.blocks.0.norm2",
    "stages.3.blocks.0.attn.proj": "stages.3.blocks.0.norm1",
    "stages.3.blocks.0.mlp.fc2": "stages.3.blocks.0.norm2",
}


PLAIN = ["int8", "fp8", "int8 around fp32"]


EIGHT_BITS = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


BASES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}


@pytest.mark.parametrize("form", PLAIN)
def test_every_operand_reads_8_bits_with_one_scale(
    quantised_exports: QuantisedExports, digits_s: nn.Module, digits_ranges: Ranges, form: str
) -> None:
    precision = FORMS[form]
    found = products(graph_of(quantised_exports, precision))
    for operand in operands(digits_s):
        pair = pair_before(found[operand.block], 0)
        assert pair.scale.shape == pair.zero.shape == ()
        assert pair.scale.dtype == BASES[precision.base.name].numpy()
        assert pair.zero.dtype == EIGHT_BITS[precision.name].numpy()
        assert not pair.zero
        assert not is_rounded(pair.source)
        seen = digits_ranges.of(operand.block, precision)
        assert seen <= float(pair.scale) * precision.largest <= seen * (1 + 4 * precision.base.rounding)


@pytest.mark.parametrize("form", PLAIN)
def test_weights_are_stored_in_8_bits_with_a_scale_per_output(
    quantised_exports: QuantisedExports, digits_s: nn.Module, form: str
) -> None:
    precision = FORMS[form]
    graph = graph_of(quantised_exports, precision)
    found = products(graph)
    for operand in operands(digits_s):
        back = producer(found[operand.block].inputs[1], "DequantizeLinear")
        steps, scales = number(back.inputs[0]), number(back.inputs[1])
        assert len(back.inputs) == 2  # zero point 0
        assert back.attributes["axis"].value == 0
        assert steps.dtype == EIGHT_BITS[precision.name].numpy()
        assert scales.dtype == BASES[precision.base.name].numpy()
        assert scales.shape == steps.shape[:1] == operand.module.weight.shape[:1]
        weight = operand.module.weight.detach().to(precision.base.dtype).float()
        expected_scales = weight_scales(weight, 0, precision)
        expected = quantised_weights(weight, 0, expected_scales, precision)
        assert np.array_equal(scales.astype(np.float32), expected_scales.float().numpy())
        assert np.array_equal(steps.astype(np.float32), expected.float().numpy())
        # and they mean what the model's weights are, to half a step (float8: to half a unit of three bits)
        error = np.abs(steps.astype(np.float64).reshape(len(scales), -1) * scales.astype(np.float64)[:, None]
                       - weight.double().reshape(len(scales), -1).numpy())  # fmt: skip
        step = scales.astype(np.float64)[:, None] * (0.5 if precision.name == "int8" else 2.0**-10)
        near = 0 if precision.name == "int8" else np.abs(weight.reshape(len(scales), -1).numpy()) * 2.0**-4
        assert (error <= np.maximum(step, near) * (1 + 1e-6)).all()
        name = f"model.{operand.block.replace('stages', 'levels', 1)}.weight"
        assert name in quantised_exports.traced[precision.base.name].graph.initializers
        assert name not in graph.graph.initializers  # no copy in the base type is left behind


@pytest.mark.parametrize("form", PLAIN)
def test_nothing_else_is_quantised(quantised_exports: QuantisedExports, digits_s: nn.Module, form: str) -> None:
    precision = FORMS[form]
    graph, blocks = graph_of(quantised_exports, precision), [o.block for o in operands(digits_s)]
    found = products(graph)
    assert len(nodes_of(graph, "QuantizeLinear")) == len(blocks) == 17
    assert len(nodes_of(graph, "DequantizeLinear")) == 2 * len(blocks)
    for node in nodes_of(graph, "QuantizeLinear", "DequantizeLinear"):
        (user,) = (user for user, _ in node.outputs[0].uses())
        assert user.op_type == "DequantizeLinear" or user in [found[block] for block in blocks]
    # biases, stem, head, normalisation, residual sums, attention and its position bias
    for block in blocks:
        bias = found[block].inputs[2] if len(found[block].inputs) > 2 else None
        assert bias is None or (bias.is_initializer() and bias.dtype is BASES[precision.base.name])
    others = [n for n in graph.graph if n not in [found[b] for b in blocks] and n.op_type != "DequantizeLinear"]
    assert {"patch_embed.conv_down.0", "patch_embed.conv_down.3", "stages.2.global_tokenizer.pos", "head"} == {
        str(n.metadata_props[BLOCK]) for n in others if n.op_type in ("Conv", "Gemm")
    }
    kinds = {n.op_type for n in others}
    assert kinds >= {"LayerNormalization", "Add", "Gelu", "WindowAttention", "CarrierAttention", "WindowPartition"}
    assert not [n.name for n in others if any(is_rounded(value) for value in n.inputs)]
    within = [n for function in graph.functions.values() for n in function]
    assert "Softmax" in {n.op_type for n in within}
    assert not [n.name for n in within if "Linear" in n.op_type]
    types = {value.dtype for value in graph.graph.initializers.values()}
    assert types == {EIGHT_BITS[precision.name], BASES[precision.base.name], ir.DataType.INT64}


def test_only_the_chosen_layers_are_quantised(quantised_exports: QuantisedExports, digits_s: nn.Module) -> None:
    precision = FORMS["int8, some"]
    export = quantised_exports(precision)
    graph = ir.load(export.files[0])
    rounded = {block for block, node in products(graph).items() if any(is_rounded(value) for value in node.inputs)}
    assert rounded == precision.only
    assert len(nodes_of(graph, "QuantizeLinear")) == 2
    assert len(nodes_of(graph, "DequantizeLinear")) == 4
    assert export.quantisation is not None
    assert set(export.quantisation.blocks) == precision.only
    others = {o.block for o in operands(digits_s)} - set(precision.only or ())
    assert set(export.quantisation.left["kept by choice"]) == others
    assert "2 layers, ranges by percentile from 64 images; in fp16: " in str(export.quantisation)


@pytest.mark.parametrize("form", ["int8, attention", "fp8, attention"])
def test_attention_on_request_rounds_q_k_v_and_the_softmax(
    quantised_exports: QuantisedExports, digits_ranges: Ranges, form: str
) -> None:
    precision = FORMS[form]
    graph = graph_of(quantised_exports, precision)
    assert not nodes_of(graph, "WindowAttention")
    assert len(nodes_of(graph, "CarrierAttention")) == 1
    assert len(nodes_of(graph, "QuantizeLinear")) == 17 + 4 * len(WINDOWS)
    for block in WINDOWS:
        of_block = [n for n in graph.graph if n.metadata_props[BLOCK] == block]
        scores, context = (n for n in of_block if n.op_type == "MatMul")
        (softmax,) = (n for n in of_block if n.op_type == "Softmax")
        (biased,) = (n for n in of_block if n.op_type == "Add")
        assert {v.name for v in biased.inputs if v is not None} >= {scores.outputs[0].name}
        assert not is_rounded(softmax.inputs[0])
        assert not any(is_rounded(value) for value in biased.inputs)
        expected = {
            (scores, 0): digits_ranges.of(f"{block}:q", precision),
            (scores, 1): digits_ranges.of(f"{block}:k", precision),
            (context, 0): 1.0,
            (context, 1): digits_ranges.of(f"{block}:v", precision),
        }
        pairs = {place: pair_before(*place) for place in expected}
        assert {place: float(pair.scale) for place, pair in pairs.items()} == {
            place: scale_of(largest, precision) for place, largest in expected.items()
        }
        assert pairs[context, 0].source is softmax.outputs[0]


def test_attention_stays_one_operator_where_its_projection_is_kept(quantised_exports: QuantisedExports) -> None:
    only = frozenset({f"{WINDOWS[0]}.proj", f"{WINDOWS[1]}.qkv"})
    graph = graph_of(quantised_exports, Int8(attention=True, only=only))
    assert [n.metadata_props[BLOCK] for n in nodes_of(graph, "WindowAttention")] == [WINDOWS[0]]
    assert len(nodes_of(graph, "QuantizeLinear")) == 2 + 4


@pytest.mark.parametrize("form", ["int8, residual sums", "fp8, residual sums"])
def test_residual_sums_on_request_add_what_is_rounded(
    quantised_exports: QuantisedExports, digits_ranges: Ranges, form: str
) -> None:
    precision = FORMS[form]
    graph = graph_of(quantised_exports, precision)
    found = products(graph)
    sums = [n for n in nodes_of(graph, "Add") if any(is_rounded(value) for value in n.inputs)]
    assert len(sums) == len(RESIDUALS)
    shared = 2  # convolutions read the stream themselves, on the same grid
    assert len(nodes_of(graph, "QuantizeLinear")) == 17 + 2 * len(RESIDUALS) - shared
    assert len(nodes_of(graph, "WindowAttention")) == len(WINDOWS)
    for end, start in RESIDUALS.items():
        (total,) = (n for n in sums if found[end].outputs[0] in {pair_before(n, i).source for i in (0, 1)})
        branch, stream = sorted(
            (pair_before(total, i) for i in (0, 1)), key=lambda pair: pair.source is not found[end].outputs[0]
        )
        assert float(branch.scale) == scale_of(digits_ranges.of(f"{end}:output", precision), precision)
        assert float(stream.scale) == scale_of(digits_ranges.of(start, precision), precision)
        # the branch starts from the rounded stream, too
        assert [user for user, _ in stream.source.uses()] == [stream.nodes[0]]


def test_residual_sums_of_layers_that_are_kept_are_left_alone(quantised_exports: QuantisedExports) -> None:
    end = "stages.2.blocks.0.attn.proj"
    graph = graph_of(quantised_exports, Int8(residual=True, only=frozenset({end, "stages.3.blocks.0.mlp.fc1"})))
    assert [n.name for n in nodes_of(graph, "Add") if any(is_rounded(value) for value in n.inputs)] == [
        "stages.2.blocks.0/Add_1"
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_node_says_which_block_it_belongs_to(quantised_exports: QuantisedExports, form: str) -> None:
    graph = graph_of(quantised_exports, FORMS[form])
    names = [node.name or "" for node in graph.graph]
    assert len(set(names)) == len(names)
    added = nodes_of(graph, "QuantizeLinear", "DequantizeLinear")
    assert len(added) >= 3 * len(FORMS[form].only or range(17))
    for node in graph.graph:
        assert re.fullmatch(rf"{re.escape(node.metadata_props[BLOCK])}/{node.op_type}_\d+", node.name or "")
    for node in added:
        blocks = {str(user.metadata_props[BLOCK]) for user, _ in node.outputs[0].uses()}
        assert node.metadata_props[BLOCK] in blocks, node.name


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_8_bits_are_half_the_weights_of_16(quantised_exports: QuantisedExports, digits_s: nn.Module, form: str) -> None:
    def size(precision: Precision) -> int:
        graph = graph_of(quantised_exports, precision).graph
        return sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)

    weights = sum(o.module.weight.numel() for o in operands(digits_s))
    scales = sum(2 * len(o.module.weight) + 2 for o in operands(digits_s))
    assert size(Fp16()) - size(FORMS[form]) == weights - scales - 1  # a zero point
    files = [quantised_exports(precision).files[0].stat().st_size for precision in (FORMS[form], Fp16())]
    assert files[0] < files[1]  # although nodes are added
