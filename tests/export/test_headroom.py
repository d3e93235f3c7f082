"""What leaves the range of its type is found and named, and what needs range has it: LayerNorm statistics, softmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import BLOCK, inline_functions, save_onnx
from fastervit_trt.export.headroom import block_ranges, find_overflow, first_non_finite, round_every_result
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.verify import verification_batches
from fastervit_trt.plugins.operators import OPERATORS

FP16_ROUNDING = 2.0**-11
CARRIER_PROJECTION = next(o for o in OPERATORS if o.onnx_name == "CarrierAttention").inputs.index("proj_weight_CD")
# Images in black and white, which reach the largest activations of the three kinds.
IMAGES = dict(verification_batches(BatchRange(1, 1, 3), (3, 224, 224)))["extreme"]


def there_and_back(folder: Path, dtype: int, batch: int | str = "batch", blocks: bool = True) -> Path:
    """x · 4 and that minus itself in block "up", · 1/4 in "down"."""
    nodes = [
        ("up", helper.make_node("Cast", ["images"], ["x"], to=dtype)),
        ("up", helper.make_node("Mul", ["x", "four"], ["large"])),
        ("up", helper.make_node("Sub", ["large", "large"], ["nothing"])),
        ("down", helper.make_node("Mul", ["large", "quarter"], ["y"])),
        ("down", helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT)),
    ]
    for block, node in nodes:
        node.name = f"{block}/{node.op_type}_{node.output[0]}"
        if blocks:
            node.metadata_props.add(key=BLOCK, value=block)
    values = [helper.make_tensor_value_info(name, dtype, [batch, 2]) for name in ("x", "large", "nothing", "y")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in ("images", "logits")]
    factors = [helper.make_tensor(name, dtype, [1], [value]) for name, value in (("four", 4.0), ("quarter", 0.25))]
    graph = helper.make_graph([node for _, node in nodes], "probe", ends[:1], ends[1:], factors, value_info=values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_onnx_runtime_hides_an_overflow_in_float16_that_the_probe_counts(tmp_path: Path) -> None:
    path = there_and_back(tmp_path, TensorProto.FLOAT16)
    x = np.array([[3e4, -1], [-3e4, 2], [5, 6]], dtype=np.float32)
    assert np.array_equal(OnnxCpuSession(path)(x)[0], x)  # 12e4 came back as if float16 held it
    seen = {r.block: (r.largest, r.nan, r.inf, r.operator, r.headroom) for r in block_ranges(path, x)}
    assert seen == {"up": (3e4, 2, 2, "Mul", 0), "down": (6, 0, 4, "Mul", 0)}
    first = first_non_finite(path, x)
    assert first is not None
    assert (first.block, first.operator, first.largest, first.nan, first.inf) == ("up", "Mul", 24, 0, 2)


# What 2^e · 4 first exceeds: float16 ends below 2^16, the others below 2^128.
ENDS: dict[int, tuple[float, float]] = {
    TensorProto.FLOAT16: (2.0**14, 65504.0),
    TensorProto.BFLOAT16: (2.0**126, 3.3895314e38),
    TensorProto.FLOAT: (2.0**126, 3.4028235e38),
}


@pytest.mark.parametrize("dtype", ENDS, ids=TensorProto.DataType.Name)
def test_every_type_ends_where_it_does(tmp_path: Path, dtype: int) -> None:
    scale, limit = ENDS[dtype]
    path, ones = there_and_back(tmp_path, dtype), np.ones((1, 2), dtype=np.float32)
    found = find_overflow(path, ones, 2.0**127)
    assert found is not None
    assert (found.scale, found.first.block, found.first.operator, found.first.inf) == (scale, "up", "Mul", 2)
    assert find_overflow(path, ones, scale / 2) is None
    (up,) = (r for r in block_ranges(path, ones) if r.block == "up")
    assert up.limit == pytest.approx(limit, rel=1e-7)
    assert (up.largest, up.operator, up.headroom) == (4, "Mul", up.limit / 4)


def test_images_beyond_float32_are_not_tried(tmp_path: Path) -> None:
    path = there_and_back(tmp_path, TensorProto.FLOAT)
    assert find_overflow(path, np.zeros((1, 2), dtype=np.float32), 2.0**200) is None
    assert find_overflow(path, np.full((1, 2), -1e-38, dtype=np.float32), 2.0**64) is None


def test_a_static_batch_is_kept_and_other_numbers_of_images_are_refused(tmp_path: Path) -> None:
    path = there_and_back(tmp_path, TensorProto.FLOAT16, batch=2)
    x = np.full((4, 2), 3e4, dtype=np.float32)
    assert [r.inf for r in block_ranges(path, x) if r.block == "up"] == [8]
    with pytest.raises(FasterViTError, match="takes 2 images at a time, which 3 do not divide into"):
        block_ranges(path, x[:3])


def test_a_graph_without_blocks_is_refused(tmp_path: Path) -> None:
    path = there_and_back(tmp_path, TensorProto.FLOAT16, blocks=False)
    with pytest.raises(FasterViTError, match=r"model\.onnx' do not say to which block they belong; export it anew"):
        block_ranges(path, np.ones((1, 2), dtype=np.float32))


def test_blocks_are_the_same_in_every_precision_and_reach_the_same(exports: Path) -> None:
    paths = {precision: exports / precision / "model.onnx" for precision in ("fp32", "fp16", "bf16")}
    ranges = {name: {r.block: r for r in block_ranges(path, IMAGES[:1])} for name, path in paths.items()}
    exact = ranges["fp32"]
    assert list(exact)[:2] == ["patch_embed.conv_down.0", "patch_embed.conv_down.2"]
    assert {"stages.2.blocks.0.hat_attn", "stages.2.blocks.0.attn", "stages.3", "head", "model"} < exact.keys()
    assert exact["head"].largest == np.abs(OnnxCpuSession(paths["fp32"])(IMAGES[:1])[0]).max()
    for precision, tolerance in (("fp16", 0.01), ("bf16", 0.08)):
        assert [block for block in ranges[precision] if block != "model"] == [b for b in exact if b != "model"]
        for block in exact.keys() - {"model"}:  # which in these types casts the images too
            assert ranges[precision][block].largest == pytest.approx(exact[block].largest, rel=tolerance), block


def test_scaled_images_leave_float16_in_the_first_convolution_and_no_other_type(exports: Path) -> None:
    path = exports / "fp16" / "model.onnx"
    unscaled = block_ranges(path, IMAGES)
    tightest = min(unscaled, key=lambda r: r.headroom)
    assert tightest.block == "patch_embed.conv_down.0"
    assert 512 < tightest.headroom < 1024  # 908
    found = find_overflow(path, IMAGES)
    assert found is not None
    assert (found.scale, found.first.block, found.first.operator) == (1024, tightest.block, "Conv")
    assert 0 < found.first.inf < 10
    assert first_non_finite(path, IMAGES * 512) is None
    for wider in ("bf16", "fp32"):
        assert first_non_finite(exports / wider / "model.onnx", IMAGES * 1024) is None
    # Behind the first LayerNorm nothing grows with the images.
    for before, after in zip(unscaled, block_ranges(path, IMAGES * 512), strict=True):
        if before.block.startswith(("stages.1", "stages.2", "stages.3", "head")):
            assert after.largest < 4 * before.largest, before.block


# node, its weight, by how much that is too large, and where the graph must then leave float16 first
INJECTED: dict[str, tuple[str, int, float, str, str]] = {
    "convolution": ("stages.1.blocks.0.conv1/Conv_0", 1, 1e4, "stages.1.blocks.0.conv1", "Conv"),
    "mlp": ("stages.3.blocks.0.mlp.fc1/Gemm_0", 1, 2e4, "stages.3.blocks.0.mlp.fc1", "Gemm"),
    "projection to q, k and v": ("stages.3.blocks.0.attn.qkv/Gemm_0", 1, 2e4, "stages.3.blocks.0.attn.qkv", "Gemm"),
    "projection of windows": ("stages.3.blocks.0.attn.proj/Gemm_0", 1, 3e4, "stages.3.blocks.0.attn.proj", "Gemm"),
    "projection within carrier attention": (
        "stages.2.blocks.0.hat_attn/CarrierAttention_0",
        CARRIER_PROJECTION,
        6e4,
        "stages.2.blocks.0.hat_attn",
        "Gemm",
    ),
    # q and k stay within the range, their products do not.
    "scores": ("stages.2.blocks.0.attn.qkv/Gemm_0", 1, 1e3, "stages.2.blocks.0.attn", "MatMul"),
}


@pytest.mark.parametrize("kind", INJECTED)
def test_the_block_whose_weights_are_too_large_is_named(exports: Path, tmp_path: Path, kind: str) -> None:
    name, position, factor, block, operator = INJECTED[kind]
    found = {}
    for precision in ("fp16", "fp32"):
        model = ir.load(exports / precision / "model.onnx")
        (node,) = (node for node in model.graph if node.name == name)
        value = node.inputs[position]
        assert value is not None and value.const_value is not None
        weight = value.const_value.numpy()
        scaled = (weight.astype(np.float32) * factor).astype(weight.dtype)
        assert np.isfinite(scaled).all()
        value.const_value = ir.tensor(scaled, name=value.name)
        found[precision] = first_non_finite(save_onnx(model, tmp_path)[0], IMAGES)
    first = found["fp16"]
    assert first is not None
    assert (first.block, first.operator) == (block, operator)
    assert first.nan == 0 < first.inf
    assert found["fp32"] is None


def layer_norms(model: ir.Model) -> list[ir.Node]:
    bodies = [model.graph, *model.functions.values()]
    return [node for body in bodies for node in body if node.op_type == "LayerNormalization"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_layer_norm_keeps_its_statistics_in_float32(exports: Path, precision: str) -> None:
    model = ir.load(exports / precision / "model.onnx")
    norms = layer_norms(model)
    assert len(norms) > len([node for node in model.graph if node.op_type == "LayerNormalization"]) > 0
    for node in norms:
        stash = node.attributes.get("stash_type")
        assert stash is None or stash.value == ir.DataType.FLOAT, node.name  # absent, it is float32


def flat(exports: Path) -> ir.Model:
    """The float16 graph with fused operators written out."""
    model = ir.load(exports / "fp16" / "model.onnx")
    inline_functions(model)
    return model


def run_from(
    model: ir.Model, value: ir.Value | None, given: np.ndarray, wanted: list[ir.Value], folder: Path
) -> list[np.ndarray]:
    """``wanted`` of the part of ``model`` that follows ``value``, with ``given`` in its place; results are rounded."""
    assert value is not None
    start = ir.Value(name="given", type=value.type, shape=ir.Shape(given.shape))
    ir.convenience.replace_all_uses_with(value, start)
    model.graph.inputs[:], model.graph.outputs[:] = [start], wanted
    ir.passes.common.RemoveUnusedNodesPass()(model)
    names = [f"{value.name}/rounded" for value in wanted]
    model.graph.outputs[:] = round_every_result(model)
    session = OnnxCpuSession(save_onnx(model, folder)[0])
    results = dict(zip(session.outputs, session(given), strict=True))
    return [results[name] for name in names]


def test_layer_norm_of_rows_whose_squares_overflow_is_right(exports: Path, tmp_path: Path) -> None:
    names = [node.name for node in layer_norms(flat(exports))]
    assert len(names) == 9
    rng = np.random.default_rng(0)
    for name in names:
        model = flat(exports)
        (node,) = (node for node in layer_norms(model) if node.name == name)
        weight, bias = (v.const_value.numpy().astype(np.float32) for v in node.inputs[1:] if v and v.const_value)
        signs = rng.choice([-1, 1], (64, len(weight)))
        rows = (signs * rng.uniform(3e3, 3e4, signs.shape)).astype(np.float16)
        with np.errstate(over="ignore"):
            assert np.isinf(rows * rows).all()
        (actual,) = run_from(model, node.inputs[0], rows, [node.outputs[0]], tmp_path)
        x, w, b = (torch.from_numpy(array) for array in (rows.astype(np.float32), weight, bias))
        expected = F.layer_norm(x, w.shape, w, b).numpy()
        assert actual.dtype == np.float16
        assert np.isfinite(actual).all()
        assert np.abs(actual - expected).max() <= 1.1 * FP16_ROUNDING * np.abs(expected).max(), name


@pytest.mark.parametrize("block", ["stages.2.blocks.0.hat_attn", "stages.2.blocks.0.attn", "stages.3.blocks.0.attn"])
def test_softmax_takes_scores_up_to_the_end_of_the_range(exports: Path, tmp_path: Path, block: str) -> None:
    model = flat(exports)
    nodes = [node for node in model.graph if node.metadata_props[BLOCK] == block]
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Softmax")
    (split,) = (node for node in nodes if node.op_type == "Split")
    scores, softmax, context = nodes[at - 1 : at + 2]
    assert (scores.op_type, context.op_type) == ("Add", "MatMul")
    heads, tokens = constant(scores, 1).shape[1:3]
    packing = producer(producer(split))  # q, k and v as the projection yields them → (windows, tokens, 3 · heads, dim)
    dim = int(constant(packing, 1)[-1])
    rng = np.random.default_rng(0)
    q_k = rng.choice([-1, 1], (tokens, 2 * heads, 1)) * np.full(dim, np.sqrt(6e4 / dim))
    v = rng.standard_normal((tokens, heads, dim))
    qkv = np.concatenate([q_k, v], axis=1).reshape(tokens, -1).astype(np.float16)
    wanted = [node.outputs[0] for node in (scores, softmax, context)]
    s, weights, mixed = run_from(model, packing.inputs[0], qkv, wanted, tmp_path)
    assert s.shape == weights.shape == (1, heads, tokens, tokens)
    assert s.max() > 5.9e4
    assert s.min() < -5.9e4
    assert all(np.isfinite(result).all() for result in (s, weights, mixed))
    assert np.abs(weights.astype(np.float32).sum(-1) - 1).max() <= FP16_ROUNDING
    assert np.abs(mixed).max() <= np.abs(v).max()


def producer(node: ir.Node) -> ir.Node:
    value = node.inputs[0]
    assert value is not None
    found = value.producer()
    assert found is not None
    return found


def constant(node: ir.Node, position: int) -> np.ndarray:
    value = node.inputs[position]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()
