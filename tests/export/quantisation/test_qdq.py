"""What is written around quantised layers: Q/DQ where they were chosen, and nowhere else."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastervit_trt.engines.plan import Kind, plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export import pipeline
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.fusion import BLOCK
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import (
    FLOATS,
    PRECISIONS,
    Bf16,
    Float,
    Fp8,
    Fp16,
    Fp32,
    Int8,
    Precision,
    Quantised,
    get_calibrator,
    get_float,
    get_precision,
)
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.plan import PrecisionPlan, plan_precision
from fastervit_trt.export.quantisation.qdq import insert_qdq
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.scales import activation_scale, quantised_weights, weight_scales
from fastervit_trt.export.quantisation.sensitivity import Labelled
from fastervit_trt.export.quantisation.simulation import simulated
from fastervit_trt.export.rounding import RoundedArithmetic
from fastervit_trt.export.verify import expect_quantised
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import build_model, pretrained_source
from tests.export.quantisation.conftest import NAME, QuantisedExports

SHAPE = (3, 224, 224)
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
FORMS: dict[str, Quantised] = {
    "int8": Int8(),
    "fp8": Fp8(),
    "int8 around fp32": Int8(base=Fp32()),
    "int8, some": Int8(only=frozenset({"stages.0.blocks.0.conv2", "stages.3.blocks.0.attn.qkv"})),
    "int8, attention": Int8(attention=True),
    "fp8, attention": Fp8(attention=True),
    "int8, residual sums": Int8(residual=True),
    "fp8, residual sums": Fp8(residual=True),
    "int8, all": Int8(attention=True, residual=True),
}
PLAIN = ["int8", "fp8", "int8 around fp32"]
EIGHT_BITS = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
BASES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear with its DequantizeLinear."""

    source: ir.Value
    scale: np.ndarray
    zero: np.ndarray
    nodes: tuple[ir.Node, ir.Node]


def number(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def producer(value: ir.Value | None, op_type: str) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None and node.op_type == op_type, f"{value.name} comes from {node}"
    return node


def is_rounded(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def pair_before(node: ir.Node, index: int) -> Pair:
    """What input ``index`` of ``node`` is rounded by."""
    back = producer(node.inputs[index], "DequantizeLinear")
    narrow = producer(back.inputs[0], "QuantizeLinear")
    assert narrow.inputs[1] is back.inputs[1] and narrow.inputs[2] is back.inputs[2]
    assert narrow.inputs[0] is not None
    return Pair(narrow.inputs[0], number(narrow.inputs[1]), number(narrow.inputs[2]), (narrow, back))


def graph_of(exports: QuantisedExports, precision: Precision) -> ir.Model:
    return ir.load(exports(precision).files[0])


def products(graph: ir.Model) -> dict[str, ir.Node]:
    """Convolutions and linear layers of the main graph, by block."""
    return {str(n.metadata_props[BLOCK]): n for n in graph.graph if n.op_type in ("Conv", "Gemm")}


def nodes_of(graph: ir.Model, *op_types: str) -> list[ir.Node]:
    return [node for node in graph.graph if node.op_type in op_types]


def scale_of(largest: float, precision: Quantised) -> float:
    return float(activation_scale(largest, precision))


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    (logits,) = OnnxCpuSession(path)(images)
    return logits


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


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_computes_what_the_simulation_does(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    digits_ranges: Ranges,
    held_out: list[Labelled],
    form: str,
) -> None:
    export, images = quantised_exports(FORMS[form]), held_out[0][0]
    assert export.verification.batches == (1, 2, 3)
    assert export.verification.share_of_budget <= 1
    with torch.inference_mode(), simulated(digits_s, FORMS[form], digits_ranges):
        expected = digits_s(torch.from_numpy(images[:12])).numpy()
    bounds = np.cumsum([0, 1, 3, 8])
    session = OnnxCpuSession(export.files[0])
    found = np.concatenate([session(images[a:b])[0] for a, b in itertools.pairwise(bounds)])
    assert np.abs(found - expected).max() <= export.verification.budget
    # the budget is small enough to mean something
    assert export.verification.budget < {"int8": 0.1, "fp8": 0.2}[FORMS[form].name] * np.abs(expected).max()


@pytest.mark.parametrize(
    "precision", [Int8(base=Fp32()), Int8(base=Fp32(), attention=True)], ids=["plain", "attention"]
)
def test_around_float32_most_images_agree_to_the_last_digits(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    digits_ranges: Ranges,
    held_out: list[Labelled],
    precision: Quantised,
) -> None:
    """Where no value falls between two steps, graph and simulation differ by float32's own rounding alone."""
    images = held_out[0][0][:24]
    session = OnnxCpuSession(quantised_exports(precision).files[0])
    found = np.concatenate([session(images[i : i + 8])[0] for i in range(0, 24, 8)])
    with torch.inference_mode():
        exact = digits_s(torch.from_numpy(images)).numpy()
        with simulated(digits_s, precision, digits_ranges):
            expected = digits_s(torch.from_numpy(images)).numpy()
    assert np.median(np.abs(found - expected).max(1)) < 1e-5
    assert np.median(np.abs(exact - expected).max(1)) > 1e-2


def test_the_simulation_leaves_the_model_as_it_was(
    digits_s: nn.Module, digits_ranges: Ranges, held_out: list[Labelled]
) -> None:
    images = torch.from_numpy(held_out[0][0][:2])
    with torch.inference_mode():
        before = digits_s(images)
        for form in ("int8, all", "fp8"):
            with simulated(digits_s, FORMS[form], digits_ranges):
                assert not torch.equal(digits_s(images), before)
            assert torch.equal(digits_s(images), before)


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


# What goes wrong, in a graph that is otherwise right.
def doubled(name: str) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        value.const_value = ir.tensor(number(value) * number(value).dtype.type(2), name=name)

    return change


def swapped_channels(name: str) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        value.const_value = ir.tensor(np.roll(number(value), 1, axis=0), name=name)

    return change


WRONG: dict[str, tuple[Precision, Callable[[ir.Model], None]]] = {
    "a scale of weights": (Int8(), doubled("stages.1.blocks.0.conv1/Conv_0/weight_scale")),
    "a scale of weights in fp8": (Fp8(), doubled("stages.3.blocks.0.mlp.fc1/Gemm_0/weight_scale")),
    "a scale of a linear layer": (Int8(), doubled("stages.2.blocks.0.attn.qkv/Gemm_0/weight_scale")),
    "a scale of an input": (Int8(), doubled("stages.0.blocks.0.conv1/Conv_0/input0_scale")),
    "scales of other channels": (
        Int8(base=Fp32()),
        swapped_channels("stages.3.blocks.0.attn.proj/Gemm_0/weight_scale"),
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_graph_is_not_let_through(
    quantised_exports: QuantisedExports, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    precision, change = WRONG[kind]
    real = pipeline.plan_precision

    def spoilt(precision: Precision, deployed: nn.Module, ranges: Ranges | None) -> PrecisionPlan:
        plan = real(precision, deployed, ranges)

        def rewrite(graph: ir.Model) -> None:
            plan.rewrite(graph)
            change(graph)

        return replace(plan, rewrite=rewrite)

    monkeypatch.setattr(pipeline, "plan_precision", spoilt)
    with pytest.raises(
        FasterViTError, match=r"graph differs from PyTorch; worst point: logits\[\d, \d\] of \w+ images"
    ):
        quantised_exports.make(precision)


def test_a_deploy_form_that_computes_something_else_is_not_quantised(digits_ranges: Ranges) -> None:
    """Its simulation would agree with its graph."""
    model, _ = build_model(ModelSpec(NAME), pretrained_source(NAME))
    deployed, _ = deploy_form(model)
    plan = plan_precision(Int8(), deployed, digits_ranges)
    with torch.no_grad():
        deployed.get_submodule("head").weight *= 1.01  # type: ignore[operator]
    with pytest.raises(FasterViTError, match="the deploy form differs from the model by"):
        expect_quantised(model, deployed, plan, BatchRange(1, 4, 8), SHAPE)


def test_copies_in_place_are_rounded_where_they_are_written() -> None:
    """By which streams are rounded: a copy that is lost would make the simulation's own error, and the budget, huge."""
    x = torch.zeros(3, dtype=torch.float16)
    with RoundedArithmetic(torch.float16):
        x.copy_(torch.tensor([1.0, 1 + 2.0**-11, 3.0]))
    assert x.tolist() == [1.0, 1.0, 3.0]


@pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))
@pytest.mark.parametrize(
    ("form", "capability", "kinds"),
    [
        ("int8", "8.9", ["convolution", "linear"]),
        ("fp8", "8.9", ["convolution", "linear"]),
        ("int8", "7.5", ["linear"]),
    ],
)
def test_tensorrt_takes_quantised_layers_for_what_they_are(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    tmp_path: Path,
    form: str,
    capability: str,
    kinds: list[str],
) -> None:
    """Scales and weights are part of the product's kernel; for 7.5 convolutions of so few channels stay in 16 bits."""
    target = RtxTarget.parse(capability)
    target.check_precision(FORMS[form])
    path = quantised_exports(FORMS[form]).files[0]
    engine = build_rtx_engine(path, tmp_path / "plan", target, BatchRange(1, 4, 8), "images", SHAPE)
    assert engine.layers > 100
    plan = plan_kernels(engine.path)
    assert plan.targets == (target.sm,)
    kernels = [k for k in plan.kernels if k.kind in (Kind.GEMM, Kind.CONVOLUTION)]
    dequantised = [[node.split("/")[0] for node in k.nodes if "/DequantizeLinear_" in node] for k in kernels]
    found = {block for names in dequantised for block in names if names.count(block) == 2}  # input and weights
    assert found == {o.block for o in operands(digits_s) if o.kind in kinds}


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6"])
def test_fp8_is_refused_where_no_hardware_has_it(capability: str) -> None:
    with pytest.raises(FasterViTError) as refused:
        RtxTarget.parse(capability).check_precision(Fp8())
    assert str(refused.value) == (
        f"compute capability {capability} has no fp8; use --precision int8 or fp16, or 8.9 and later"
    )
    RtxTarget.parse(capability).check_precision(Int8())


def test_what_surrounds_8_bits_needs_hardware_too() -> None:
    with pytest.raises(FasterViTError, match=r"capability 7\.5 has no bf16; use --precision fp16, or 8\.0 and later"):
        RtxTarget.parse("7.5").check_precision(Int8(base=Bf16()))
    for capability in ("8.9", "12.0", "12.1"):
        RtxTarget.parse(capability).check_precision(Fp8())


def test_precisions_are_found_by_name() -> None:
    assert {name: get_precision(name) for name in PRECISIONS} == PRECISIONS
    assert {"fp32", "fp16", "bf16", "int8", "fp8"} <= PRECISIONS.keys()
    assert {name: get_float(name) for name in FLOATS} == FLOATS
    assert isinstance(Int8().arithmetic, Float) and Int8(base=Bf16()).arithmetic == Bf16()
    for name, find, message in (
        ("int4", get_precision, "unknown precision 'int4'; choose one of fp32, fp16, bf16, int8, "),
        ("int8", get_float, "'int8' is no floating-point precision; choose one of fp32, fp16, bf16"),
        ("median", get_calibrator, "unknown calibrator 'median'; choose one of max, percentile, entropy, mse"),
    ):
        with pytest.raises(FasterViTError, match=re.escape(message)):
            find(name)
