"""Fused operators as ONNX functions: what a runtime without plugins computes, and that TensorRT-RTX reads it right."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import nn

from fastervit_trt.engines.kernels import Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export import functions
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import Fuse, deploy_form
from fastervit_trt.export.fusion import FusionReport
from fastervit_trt.export.graph import UNSERVED, fused_calls, inline_functions, save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import FLOATS
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models import create_model
from fastervit_trt.models.hat import HATStage
from tests.conftest import fill_from_names

needs_rtx = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))

TOLERANCE = 1e-5  # of the largest output
SHAPE_ARITHMETIC = {"Shape", "Size", "ConstantOfShape", "Range", "Expand", "If"}


def onnx_of(
    model: nn.Module,
    shape: tuple[int, int, int],
    batch: str,
    folder: Path,
    outputs: tuple[str, ...] = ("logits",),
    fuse: Fuse = "window-attention",
) -> Path:
    graph = onnx_from_torch(
        TypedModel(deploy_form(model, fuse=fuse)[0], FLOATS["fp32"]), shape, BatchRange.parse(batch), outputs
    )
    folder.mkdir(exist_ok=True)
    return save_onnx(graph, folder)[0]


def flat(path: Path) -> Path:
    """The same graph with every call written out."""
    graph = ir.load(path)
    inline_functions(graph)
    folder = path.parent / "flat"
    folder.mkdir(exist_ok=True)
    return save_onnx(graph, folder)[0]


def check_outputs(model: nn.Module, path: Path, shape: tuple[int, int, int], batches: tuple[int, ...]) -> None:
    """Calls and flat graph give the same bits, and what PyTorch gives."""
    sessions = OnnxCpuSession(path), OnnxCpuSession(flat(path))
    assert sessions[0].outputs == sessions[1].outputs
    for batch in batches:
        images = np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)
        called, written_out = (session(images) for session in sessions)
        with torch.inference_mode():
            result = model(torch.from_numpy(images))
        expected = result if isinstance(result, tuple) else (result,)
        for name, mine, same, theirs in zip(sessions[0].outputs, called, written_out, expected, strict=True):
            assert mine.shape == tuple(theirs.shape), name
            unequal = np.flatnonzero(mine != same)
            assert not len(unequal), f"{name}, batch {batch}: {len(unequal)} of {mine.size} differ, first {unequal[:3]}"
            error = float(np.abs(mine - theirs.numpy()).max() / np.abs(theirs.numpy()).max())
            assert error <= TOLERANCE, f"{name}, batch {batch}: {error / TOLERANCE:.0%} of the tolerance"


@pytest.fixture(scope="module", params=["3", "1:2:5"])
def digits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, str]:
    """A model with two stages of different window sizes, its graph, and the batch."""
    model = fill_from_names(create_model("faster_vit_digits_m"))
    return model, onnx_of(model, (3, 224, 224), request.param, tmp_path_factory.mktemp("digits")), request.param


def test_every_call_has_one_function_and_names_its_plugin_if_there_is_one(digits: tuple[nn.Module, Path, str]) -> None:
    path = digits[1]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    known = Counter((function.domain, function.name, function.overload) for function in model.functions)
    calls = [node for node in model.graph.node if node.domain == "fastervit"]
    assert {node.op_type for node in calls} == {name for _, name, _ in known}
    assert Counter(node.op_type for node in calls)["WindowAttention"] == 3
    for node in calls:
        assert known[node.domain, node.op_type, node.overload] == 1, node.name
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plugin = (attributes.get("plugin_namespace"), attributes.get("plugin_version"))
        # The graph is fp32, for which attentions have no kernel that is made for speed.
        assert plugin == ((None, None) if "Attention" in node.op_type else (b"fastervit", b"1")), node.name
    (function,) = (f for f in model.functions if f.name == "WindowAttention")
    given = {name for node in calls if node.op_type == function.name for name in (a.name for a in node.attribute)}
    assert given == {*function.attribute}


def test_no_shape_is_computed_at_run_time(digits: tuple[nn.Module, Path, str]) -> None:
    for path in (digits[1], flat(digits[1])):
        model = onnx.load(path)
        for owner, nodes in [("graph", model.graph.node), *((f.name, f.node) for f in model.functions)]:
            assert not SHAPE_ARITHMETIC & {node.op_type for node in nodes}, owner


def test_calls_flat_graph_and_pytorch_agree(digits: tuple[nn.Module, Path, str]) -> None:
    model, path, batch = digits
    check_outputs(model, path, (3, 224, 224), (1, 3) if ":" in batch else (int(batch),))


def test_the_comparison_would_see_another_body(tmp_path: Path, digits: tuple[nn.Module, Path, str]) -> None:
    """One bias left out of the function changes the outputs."""
    model, path, batch = digits
    broken = onnx.load(path)
    (function,) = (f for f in broken.functions if f.name == "WindowAttention")
    (addition,) = (node for node in function.node if node.op_type == "Add")
    addition.op_type = "Sub"
    onnx.save(broken, tmp_path / "model.onnx")
    with pytest.raises(AssertionError, match="of the tolerance"):
        check_outputs(model, tmp_path / "model.onnx", (3, 224, 224), (int(batch.split(":")[-1]),))


def digits_with(name: str = "faster_vit_digits_s", **overrides: Any) -> Callable[[], nn.Module]:
    return lambda: fill_from_names(create_model(name, **overrides))


def with_head(head: nn.Module) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = create_model("faster_vit_digits_s")
        model.head = head  # type: ignore[assignment]
        return fill_from_names(model)

    return make


IMAGES = (3, 224, 224)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], tuple[str, ...]]] = {
    "propagation": (digits_with("faster_vit_digits_m", do_propagation=True, layer_scale=1e-5), IMAGES, ("logits",)),
    "non-square": (digits_with(resolution=(160, 320)), (3, 160, 320), ("logits",)),
    "non-square, corrected order": (
        digits_with(resolution=(160, 320), carrier_order="corrected"),
        (3, 160, 320),
        ("logits",),
    ),
    "carriers in both stages, other windows": (
        digits_with(hat=(False, False, True, True), window_size=(7, 7, 14, 7), resolution=(416, 416)),
        (3, 416, 416),
        ("logits",),
    ),
    "no carriers, seven classes": (digits_with(hat=(False,) * 4, num_classes=7), IMAGES, ("logits",)),
    "own head": (with_head(nn.Linear(32, 5)), IMAGES, ("logits",)),
    "backbone": (digits_with(features_only=True, out_indices=(1, 3)), IMAGES, ("stage1", "stage3")),
    "stage of its own": (
        lambda: fill_from_names(HATStage.on_map(12, 2, 3, (14, 21), ct_size=1, propagate=True)),
        (12, 14, 21),
        ("map",),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_form_of_the_model(tmp_path: Path, kind: str) -> None:
    make, shape, outputs = MODELS[kind]
    model = make()
    path = onnx_of(model, shape, "1:2:5", tmp_path, outputs)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert fused_calls(ir.load(path))
    check_outputs(model, path, shape, (1, 3))


@pytest.mark.parametrize("kind", ["propagation", "carriers in both stages, other windows"])
def test_fused_attention_halves(tmp_path: Path, kind: str) -> None:
    make, shape, outputs = MODELS[kind]
    model = make()
    path = onnx_of(model, shape, "1:2:5", tmp_path, outputs, fuse="attention-half")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    names = Counter(call.op_type for call in fused_calls(ir.load(path)))
    assert names["FusedWindowAttention"] >= 2
    assert "WindowAttention" not in names
    check_outputs(model, path, shape, (1, 3))


def with_heads_of_12(folder: Path, precision: str, **options: Any) -> Path:
    """FasterViT-4 in small: heads that are no multiple of 8 channels, propagation, layer scale; 3 + 2 attentions."""
    narrow = {"dim": 12, "in_dim": 4, "num_heads": (1, 1, 4, 8), "depths": (1, 1, 2, 1), "num_classes": 5}
    model = fill_from_names(create_model("faster_vit_4_224", **narrow))
    typed = TypedModel(deploy_form(model, **options)[0], FLOATS[precision])
    return save_onnx(onnx_from_torch(typed, IMAGES, BatchRange(1, 1, 1)), folder)[0]


def of_heads(precision: str, *kinds: str) -> dict[str, list[str]]:
    """What the report says of those."""
    blocks = {"hat_attn": [f"stages.2.blocks.{i}.hat_attn" for i in (0, 1)]}
    blocks["attn"] = [f"stages.{stage}.blocks.{i}.attn" for stage, i in ((2, 0), (2, 1), (3, 0))]
    reason = f"head dim 12 in {precision} (--pad-head-dims 8 makes it 16); served are multiples of 8 up to 80"
    if precision == "fp32":
        reason = "fp32 has the plain kernel only, the oracle of the others"
    return {f"{kind}: {reason}": blocks["hat_attn" if kind == "CarrierAttention" else "attn"] for kind in kinds}


# precision, options of the deploy form, what no kernel serves
HEADS_OF_12: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "fp32": ("fp32", {}, ("WindowAttention", "CarrierAttention")),
    "fp16": ("fp16", {}, ("WindowAttention", "CarrierAttention")),
    "bf16, attention halves": ("bf16", {"fuse": "attention-half"}, ("FusedWindowAttention", "CarrierAttention")),
    "fp16, padded": ("fp16", {"pad_heads_to": 8}, ()),
}


@pytest.mark.parametrize("case", HEADS_OF_12)
def test_calls_that_no_kernel_serves_name_no_plugin(tmp_path: Path, case: str) -> None:
    precision, options, unserved = HEADS_OF_12[case]
    model = ir.load(with_heads_of_12(tmp_path, precision, **options))
    calls = fused_calls(model)
    assert len(calls) == 3 + 2 + 2 + 2  # attentions of windows and of carriers, partitions, reverses
    for call in calls:
        named = {"plugin_namespace", "plugin_version"} & call.attributes.keys()
        assert len(named) == (0 if call.op_type in unserved else 2), call.name
        assert call.op_identifier() in model.functions
    assert FusionReport.of(model).unserved == of_heads(precision, *unserved)
    inline_functions(model)
    assert FusionReport.of(model).unserved == {}
    assert not any(UNSERVED in node.metadata_props for node in model.graph)


@needs_rtx
def test_tensorrt_rtx_takes_the_function_where_no_plugin_is_named(tmp_path: Path) -> None:
    path = with_heads_of_12(tmp_path, "fp16")
    shapes = [shape for kind, shape in layers_of(path) if kind == "SOFTMAX"]
    assert shapes == [[1, 4, 16, 16], [4, 4, 53, 53]] * 2 + [[1, 8, 49, 49]]


class TwoAttentions(nn.Module):
    """(B, 1, 30, 12): the same rows as 6 windows of 5 tokens, then as 15 windows of 2."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wide, self.narrow = (nn.Parameter(torch.randn(1, 2, n, n, generator=generator)) for n in (5, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention, rows = torch.ops.fastervit.window_attention, x.reshape(-1, 12)
        context = attention(rows, self.wide)
        return attention(torch.cat([context] * 3, dim=1), self.narrow).reshape(-1, 30, 4)


def two_attentions(folder: Path) -> tuple[nn.Module, Path]:
    model = TwoAttentions()
    graph = onnx_from_torch(TypedModel(model, FLOATS["fp32"]), (1, 30, 12), BatchRange.parse("1:2:5"))
    return model, save_onnx(graph, folder)[0]


def test_sizes_in_which_bodies_differ_are_attributes_of_the_calls(tmp_path: Path) -> None:
    _, path = two_attentions(tmp_path)
    calls = fused_calls(ir.load(path))
    varying = [
        {name: list(a.value) for name, a in c.attributes.items() if not name.startswith("plugin_")} for c in calls
    ]
    assert varying == [{"reshape_0_shape": [-1, 5, 6, 2]}, {"reshape_0_shape": [-1, 2, 6, 2]}]
    (body,) = ir.load(path).functions.values()
    assert list(body.attributes) == ["reshape_0_shape"]


def test_bodies_of_different_structure_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (operator,) = (o for o in functions.OPERATORS if o.onnx_name == "WindowAttention")

    @functools.wraps(operator.reference)
    def another_form_for_few_tokens(qkv: torch.Tensor, bias: torch.Tensor, **_: Any) -> torch.Tensor:
        result = operator.reference(qkv, bias)
        return result.abs() if bias.shape[2] == 2 else result

    def by_name(**given: torch.Tensor) -> torch.Tensor:
        return another_form_for_few_tokens(*given.values())

    functools.update_wrapper(by_name, operator.reference)
    changed = dataclasses.replace(operator, reference=by_name)
    monkeypatch.setattr(functions, "OPERATORS", (changed,))
    with pytest.raises(FasterViTError, match=r"exports WindowAttention in two forms, .*Abs.* one ONNX function cannot"):
        two_attentions(tmp_path)


# Prints, for every layer of the network that TensorRT-RTX makes of a graph, its kind and the shape it yields.
PARSE = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(sys.argv[1]), [parser.get_error(i).desc() for i in range(parser.num_errors)]
layers = [network.get_layer(i) for i in range(network.num_layers)]
print(json.dumps([[layer.type.name, list(layer.get_output(0).shape)] for layer in layers]))
"""


def layers_of(path: Path) -> list[tuple[str, list[int]]]:
    command = [sys.executable, "-c", PARSE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(kind, shape) for kind, shape in json.loads(done.stdout.splitlines()[-1])]


@needs_rtx
def test_tensorrt_rtx_gives_every_call_its_own_sizes(digits: tuple[nn.Module, Path, str]) -> None:
    """Carriers of an image, tokens of a window with and without carriers; one body for all would give one size."""
    scores = []
    for path in (digits[1], flat(digits[1])):
        shapes = [shape for kind, shape in layers_of(path) if kind == "SOFTMAX"]
        scores.append([(heads, rows, columns) for _, heads, rows, columns in shapes])
    assert scores[0] == [(2, 16, 16), (2, 53, 53)] * 2 + [(4, 49, 49)]
    assert scores[1] == scores[0]


@needs_rtx
def test_tensorrt_rtx_reads_fused_attention_halves_as_their_parts(
    tmp_path: Path, digits: tuple[nn.Module, Path, str]
) -> None:
    path = onnx_of(digits[0], IMAGES, digits[2], tmp_path, fuse="attention-half")
    kinds = [Counter(kind for kind, _ in layers_of(p)) for p in (path, digits[1])]
    for kind in ("SOFTMAX", "MATRIX_MULTIPLY", "NORMALIZATION", "SHUFFLE"):
        assert kinds[0][kind] == kinds[1][kind] > 0, kind
    scores = [[shape for kind, shape in layers_of(p) if kind == "SOFTMAX"] for p in (path, digits[1])]
    assert scores[0] == scores[1]


@needs_rtx
def test_tensorrt_rtx_builds_the_same_kernels_from_calls_and_flat_graph(exports: Path, tmp_path: Path) -> None:
    called = plan_kernels(exports / "fp16" / "model.rtx-sm89.engine")
    graph = ir.load(exports / "fp16" / "model.onnx")
    assert len(fused_calls(graph)) == 7
    inline_functions(graph)
    (path,) = save_onnx(graph, tmp_path)
    batch = BatchRange.parse("1:4:8")
    build_rtx_engine(path, tmp_path / "plan", RtxTarget.parse("8.9"), batch, "images", IMAGES)
    written_out = plan_kernels(tmp_path / "plan")
    assert called.count(Kind.ATTENTION) >= 1  # heads of these sizes are not all fused
    assert {k: called.count(k) for k in Kind} == {k: written_out.count(k) for k in Kind}


@needs_rtx
def test_tensorrt_rtx_ignores_overloads(tmp_path: Path) -> None:
    """Why the calls carry sizes as attributes, instead of every size having an overload of the function."""
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("probe", 1)]
    bodies = {"first": "Relu", "second": "Neg"}
    overloads = [
        helper.make_function(
            "probe", "Op", ["x"], ["y"], [helper.make_node(op, ["x"], ["y"])], opset[:1], overload=name
        )
        for name, op in bodies.items()
    ]
    nodes = [
        helper.make_node("Op", [source], [result], domain="probe", overload=name)
        for source, result, name in (("x", "h", "first"), ("h", "y", "second"))
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, functions=overloads, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "probe.onnx")
    (result,) = OnnxCpuSession(tmp_path / "probe.onnx")(np.array([-1, 0, 1, 2], dtype=np.float32))
    assert result.tolist() == [0, 0, -1, -2]  # ONNX Runtime takes the right ones
    kinds = [kind for kind, _ in layers_of(tmp_path / "probe.onnx")]
    assert len(set(kinds)) == 1, (
        f"this TensorRT-RTX tells overloads apart ({kinds}): export/functions.py may give every size a function of its "
        "own instead of attributes, once the oldest supported TensorRT does so"
    )
