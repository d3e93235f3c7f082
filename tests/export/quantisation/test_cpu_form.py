"""ONNX Runtime's own form of an int8 graph computes what its simulation does; nothing is left in float32 by mistake."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import Bf16, Fp16, Fp32, Int8Cpu
from fastervit_trt.export.quantisation.cpu_form import CpuForm, grid_after_gelu, to_cpu_form
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.plan import plan_precision
from fastervit_trt.export.quantisation.qdq import insert_qdq
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.simulation import simulated_on_cpu
from tests.export.quantisation.conftest import HeldOut, QuantisedExports

WHOLE = Int8Cpu()
FLOATING = {"patch_embed.conv_down.0", "patch_embed.conv_down.3", "stages.2.global_tokenizer.pos", "head"}
CONV1, CONV2 = (frozenset(f"stages.{i}.blocks.0.conv{j}" for i in (0, 1)) for j in (1, 2))


def logits_of(path: Path, data: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    session = OnnxCpuSession(path)
    return np.concatenate([session(x[i : i + 8])[0] for x, _ in data for i in range(0, len(x), 8)])


@torch.inference_mode()
def logits_in_torch(model: nn.Module, data: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.concatenate([model(torch.from_numpy(images)).numpy() for images, _ in data])


def sqnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


def output_ranges(model: nn.Module, ranges: Ranges) -> dict[str, float]:
    layers = [o.block for o in operands(model) if o.kind == "convolution"]
    return {block: ranges.of(f"{block}:output", WHOLE) for block in layers}


@pytest.fixture
def quantised(quantised_exports: QuantisedExports, digits_s: nn.Module, digits_ranges: Ranges) -> ir.Model:
    """The Q/DQ graph that the form is made from."""
    quantised_exports(WHOLE)
    graph = quantised_exports.traced["fp32"].clone()
    insert_qdq(graph, [o.block for o in operands(digits_s)], WHOLE, digits_ranges)
    return graph


def number(graph: ir.Model, name: str) -> float:
    value = graph.graph.initializers[name].const_value
    assert value is not None
    return float(value.numpy())


def test_it_computes_what_the_simulation_does(
    quantised_exports: QuantisedExports, digits_s: nn.Module, digits_ranges: Ranges, held_out: HeldOut
) -> None:
    export = quantised_exports(WHOLE)
    assert export.verification.batches == (1, 2, 3)
    found, exact = logits_of(export.files[0], held_out.images), logits_in_torch(digits_s, held_out.images)
    with simulated_on_cpu(digits_s, WHOLE, digits_ranges):
        expected = logits_in_torch(digits_s, held_out.images)
    assert np.abs(found - expected).max() <= export.verification.budget < 0.05 * np.abs(expected).max()
    # values between two steps fall to either side; apart from them it is the same arithmetic
    assert sqnr(found, expected) > sqnr(exact, expected) + 6
    assert np.array_equal(logits_in_torch(digits_s, held_out.images), exact)  # the model is as before


def test_it_classifies_as_the_model_in_float32_does(
    quantised_exports: QuantisedExports, digits_s: nn.Module, held_out: HeldOut
) -> None:
    found, exact = (
        logits_of(quantised_exports(WHOLE).files[0], held_out.images),
        logits_in_torch(digits_s, held_out.images),
    )
    assert len(found) == 64
    assert (found.argmax(1) == exact.argmax(1)).sum() >= 62
    assert 25 < sqnr(found, exact) < 60


def test_it_counts_what_it_rewrote(quantised: ir.Model, digits_s: nn.Module, digits_ranges: Ranges) -> None:
    form = to_cpu_form(quantised, output_ranges(digits_s, digits_ranges))
    assert form == CpuForm(products=10, convolutions=7, attentions=2, left=len(FLOATING))
    kinds = Counter(node.op_type for node in quantised.graph)
    assert kinds["MatMulIntegerToFloat"] == 10 + 2 * 2  # q, k and v have a product each
    assert (kinds["QLinearConv"], kinds["Attention"], kinds["WindowAttention"]) == (7, 2, 0)
    assert kinds["QuantizeLinear"] == 17  # q, k and v read the same
    assert kinds["DequantizeLinear"] == 7  # of the convolutions' outputs
    assert {node.domain for node in quantised.graph if node.op_type in ("MatMulIntegerToFloat", "QLinearConv")} == {
        "com.microsoft"
    }


def test_only_what_was_not_chosen_stays_in_float32(quantised_exports: QuantisedExports) -> None:
    export = quantised_exports(WHOLE)
    graph = ir.load(export.files[0]).graph
    assert {str(n.metadata_props[BLOCK]) for n in graph if n.op_type in ("Conv", "Gemm", "MatMul")} == FLOATING
    assert export.quantisation is not None
    assert set(export.quantisation.blocks) == {
        str(n.metadata_props[BLOCK]) for n in graph if n.op_type in ("QLinearConv", "MatMulIntegerToFloat")
    }
    assert str(export.quantisation).endswith("; for ONNX Runtime's CPU provider alone")
    assert all(BLOCK in node.metadata_props for node in graph)
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)


def test_layers_that_are_kept_stay_in_float32(quantised_exports: QuantisedExports, digits_s: nn.Module) -> None:
    only = frozenset({"stages.1.blocks.0.conv1", "stages.2.blocks.0.attn.proj", "stages.3.blocks.0.attn.qkv"})
    export = quantised_exports(Int8Cpu(only=only))
    graph = ir.load(export.files[0]).graph
    rewritten = [n for n in graph if n.op_type in ("QLinearConv", "MatMulIntegerToFloat")]
    assert {str(n.metadata_props[BLOCK]) for n in rewritten} == only
    assert len(rewritten) == 1 + 1 + 3
    assert sum(n.op_type == "Attention" for n in graph) == 2  # the other one behind a projection in float32


def test_transposes_remain_at_the_ends_of_convolutions(quantised_exports: QuantisedExports) -> None:
    """After the stem, before and after stage 2, and before stage 3: nothing between convolutions."""
    graph = ir.load(quantised_exports(WHOLE).files[0]).graph
    transposes = [n for n in graph if n.op_type == "Transpose"]
    assert [(n.metadata_props[BLOCK], tuple(n.attributes["perm"].as_ints())) for n in transposes] == [
        ("stages.0.blocks.0.conv1", (0, 2, 3, 1)),
        ("stages.1.downsample.reduction.0", (0, 3, 1, 2)),
        ("stages.2.downsample.norm", (0, 2, 3, 1)),
        ("stages.2.downsample.reduction.0", (0, 3, 1, 2)),
    ]
    convolutions = [n for n in graph if n.op_type == "QLinearConv"]
    assert {n.attributes["channels_last"].value for n in convolutions} == {1}
    for node in convolutions[:5]:
        (back,) = (user for user, _ in node.outputs[0].uses())
        assert back.op_type == "DequantizeLinear"
        assert {user.op_type for user, _ in back.outputs[0].uses()} <= {"Gelu", "Add", "QuantizeLinear"}
    inputs = [node.inputs[0].producer().op_type for node in graph if node.op_type == "LayerNormalization"]  # type: ignore[union-attr]
    assert inputs[:2] == ["Add", "Add"]  # of the first downsamples, which used to read a transpose


@pytest.mark.parametrize("largest", [0.05, 0.5, 2.5, 30.0, 1e4])
def test_the_grid_after_gelu_has_256_values_from_its_minimum_up(largest: float) -> None:
    step, zero = grid_after_gelu(largest)
    assert isinstance(zero, int) and 0 <= zero <= 255  # 0 is one of the values
    assert step == float(np.float32(step))
    # the ends are met to half a step, for which the zero point was rounded
    lowest, highest = -zero * step, (255 - zero) * step
    assert abs(lowest + 0.17) <= 0.501 * step
    assert abs(highest - largest) <= 0.501 * step
    assert highest - lowest == pytest.approx(largest + 0.17, rel=1e-6)
    minimum = float(nn.functional.gelu(torch.linspace(-2, 0, 20001)).min())
    assert -0.17 < minimum < -0.1699


def test_after_gelu_steps_are_half_as_wide(quantised: ir.Model, digits_s: nn.Module, digits_ranges: Ranges) -> None:
    signed = {
        o.block: number(quantised, f"{o.block}/{'Conv' if o.kind == 'convolution' else 'Gemm'}_0/input0_scale")
        for o in operands(digits_s)
    }
    to_cpu_form(quantised, output_ranges(digits_s, digits_ranges))
    found = {
        str(n.metadata_props[BLOCK]): [float(v.const_value.numpy()) for v in n.inputs[1:]]  # type: ignore[union-attr]
        for n in quantised.graph
        if n.op_type == "QuantizeLinear"
    }
    after_gelu = {block for block in signed if block.endswith((".conv2", ".fc2"))}
    assert len(after_gelu) == 5
    for block, scale in signed.items():
        if block in after_gelu:
            assert found[block] == [*grid_after_gelu(127 * scale)]
            assert found[block][0] < 0.75 * scale
        else:
            assert found[block] == [scale, 128.0]


@pytest.mark.parametrize("only", [CONV2, CONV1, CONV1 | CONV2], ids=["conv2", "conv1", "both"])
def test_gelu_is_known_wherever_the_layout_changes(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    digits_ranges: Ranges,
    held_out: HeldOut,
    only: frozenset[str],
) -> None:
    """Between a float32 convolution and an int8 one it stands channels first, and a transpose behind it."""
    precision = Int8Cpu(only=only)
    found = logits_of(quantised_exports(precision).files[0], held_out.images[:1])
    exact = logits_in_torch(digits_s, held_out.images[:1])
    with simulated_on_cpu(digits_s, precision, digits_ranges):
        expected = logits_in_torch(digits_s, held_out.images[:1])
    assert sqnr(found, expected) > sqnr(exact, expected) + 6


@pytest.mark.parametrize(
    "precision", [Int8Cpu(attention=True), Int8Cpu(residual=True), Int8Cpu(base=Fp16()), Int8Cpu(base=Bf16())]
)
def test_it_keeps_everything_else_in_float32(digits_s: nn.Module, digits_ranges: Ranges, precision: Int8Cpu) -> None:
    with pytest.raises(FasterViTError, match="keeps attention, residual sums and all else in fp32"):
        plan_precision(precision, digits_s, digits_ranges)
    plan = plan_precision(WHOLE, digits_s, digits_ranges)
    assert plan.base == Fp32()
    assert plan.report is not None and plan.report.form == "ONNX Runtime's CPU provider"


def test_a_convolution_without_a_range_of_its_output_is_refused(
    quantised: ir.Model, digits_s: nn.Module, digits_ranges: Ranges
) -> None:
    block = "stages.1.blocks.0.conv1"
    outputs = {name: largest for name, largest in output_ranges(digits_s, digits_ranges).items() if name != block}
    with pytest.raises(FasterViTError, match=re.escape(f"{block}: no range of the convolution's output; calibrate")):
        to_cpu_form(quantised, outputs)
    rows = {name: row for name, row in digits_ranges.rows.items() if name != f"{block}:output"}
    with pytest.raises(FasterViTError, match=re.escape(f"no range for {block}:output;")):
        plan_precision(WHOLE, digits_s, replace(digits_ranges, rows=rows))


# One convolution of two channels, as the Q/DQ graph has it; zeros and axis are what the tests change.
CONVOLUTION = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[batch, 2, 5, 5] images) => (float[batch, 3, 5, 5] logits)
<float scale = {0.02}, int8 zero = {0}>
{
    narrow = QuantizeLinear (images, scale, zero)
    wide = DequantizeLinear (narrow, scale, zero)
    weight = DequantizeLinear <axis = 0> (steps, steps_scale, steps_zero)
    logits = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1>
        (wide, weight, bias)
}
"""
STEPS = np.random.default_rng(0).integers(-127, 128, (3, 2, 3, 3)).astype(np.int8)


def convolution(scales: np.ndarray, bias: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(CONVOLUTION)
    constants = {"steps": STEPS, "steps_scale": scales, "steps_zero": np.zeros(3, np.int8), "bias": bias}
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in constants.items():
        value = values[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        model.graph.initializers[name] = value
    for node in model.graph:
        node.metadata_props[BLOCK] = "stages.0.blocks.0.conv1"
        node.name = f"stages.0.blocks.0.conv1/{node.outputs[0].name}"
    return model


def run(model: ir.Model, folder: Path, images: np.ndarray) -> np.ndarray:
    ir.save(model, folder / "model.onnx")
    (result,) = OnnxCpuSession(folder / "model.onnx")(images)
    return result


IMAGES = np.random.default_rng(1).uniform(-2, 2, (2, 2, 5, 5)).astype(np.float32)
SCALES = np.array([0.01, 0.02, 0.005], np.float32)
BIAS = np.array([0.5, -1.0, 0.25], np.float32)


def test_a_convolution_is_the_same_to_a_step_of_its_output(tmp_path: Path) -> None:
    expected = run(convolution(SCALES, BIAS), tmp_path, IMAGES)
    model, largest = convolution(SCALES, BIAS), float(np.abs(expected).max())
    assert to_cpu_form(model, {"stages.0.blocks.0.conv1": largest}) == CpuForm(0, 1, 0, 0)
    found = run(model, tmp_path, IMAGES)
    assert 1e-6 < np.abs(found - expected).max() <= 0.51 * largest / 127


@pytest.mark.parametrize("small", [1e-9, 1e-20, 1e-30, 1e-38])
def test_a_bias_does_not_overflow_where_weights_are_next_to_nothing(tmp_path: Path, small: float) -> None:
    """In steps of such weights, a bias of 1 is beyond 32 bits."""
    scales = SCALES * np.array([1, small, 1], np.float32)
    assert abs(float(BIAS[1])) / (0.02 * float(scales[1])) > 2**31
    expected = run(convolution(scales, BIAS), tmp_path, IMAGES)
    assert np.allclose(expected[:, 1], BIAS[1], atol=1e-5)
    model, largest = convolution(scales, BIAS), float(np.abs(expected).max())
    to_cpu_form(model, {"stages.0.blocks.0.conv1": largest})
    found = run(model, tmp_path, IMAGES)
    assert np.abs(found - expected).max() <= 0.51 * largest / 127
    # the weights are the same, in coarser steps
    (node,) = (node for node in model.graph if node.op_type == "QLinearConv")
    steps, coarser = (value.const_value.numpy() for value in node.inputs[3:5])  # type: ignore[union-attr]
    wide, fine = coarser.astype(np.float64).reshape(-1, 1, 1, 1), scales.astype(np.float64).reshape(-1, 1, 1, 1)
    assert (coarser >= scales).all() and (coarser[1] > scales[1]) and (coarser[[0, 2]] == scales[[0, 2]]).all()
    assert (np.abs(steps * wide - STEPS * fine) <= wide * 0.501 * (wide > fine)).all()


def unsigned(model: ir.Model) -> None:
    model.graph.initializers["zero"].const_value = ir.tensor(np.array(128, np.uint8))


def moved(model: ir.Model) -> None:
    model.graph.initializers["zero"].const_value = ir.tensor(np.array(3, np.int8))


def moved_weights(model: ir.Model) -> None:
    model.graph.initializers["steps_zero"].const_value = ir.tensor(np.array([0, 1, 0], np.int8))


def one_scale_of_weights(model: ir.Model) -> None:
    model.graph.initializers["steps_scale"].const_value = ir.tensor(np.float32(0.01))


def scales_along_inputs(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.outputs[0].name == "weight")
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


def scales_of_inputs(model: ir.Model) -> None:
    model.graph.initializers["scale"].const_value = ir.tensor(np.array([0.02, 0.03], np.float32))


@pytest.mark.parametrize(
    "change", [unsigned, moved, moved_weights, one_scale_of_weights, scales_along_inputs, scales_of_inputs]
)
def test_layers_quantised_otherwise_are_refused_by_block(change: Callable[[ir.Model], None]) -> None:
    model = convolution(SCALES, BIAS)
    change(model)
    with pytest.raises(FasterViTError, match=r"^stages\.0\.blocks\.0\.conv1: not quantised as ONNX Runtime's CPU form"):
        to_cpu_form(model, {"stages.0.blocks.0.conv1": 1.0})


def test_scales_that_are_computed_are_refused() -> None:
    model = convolution(SCALES, BIAS)
    model.graph.initializers["steps_scale"].const_value = None
    with pytest.raises(FasterViTError, match="steps_scale of a quantised layer is no constant"):
        to_cpu_form(model, {"stages.0.blocks.0.conv1": 1.0})
