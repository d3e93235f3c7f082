"""What must stay one operator is counted, and its loss is an error that says what was lost and what is left of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastervit_trt.artifacts import Manifest
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import Fuse, deploy_form
from fastervit_trt.export.fusion import SIGNATURES, FusionReport, block_of_module, expected_operators
from fastervit_trt.export.graph import inline_functions
from fastervit_trt.export.onnx_graph import _trace_operator, onnx_from_torch
from fastervit_trt.export.packed import PackedAttentionHalf, PackedWindowAttention
from fastervit_trt.export.precision import FLOATS
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models import create_model
from fastervit_trt.plugins import reference
from fastervit_trt.plugins.operators import OPERATORS, Operator
from tests.conftest import Finished

Command = Callable[..., Finished]
IMAGES = (3, 224, 224)
SMALLEST = {  # operators of faster_vit_digits_s
    "CarrierAttention": 1,
    "Gelu": 1 + 1 + 2 + 1,  # one for each convolution block and window, one for the carriers
    "LayerNormalization": 3 + 3 + 2,  # of the downsamples, of stage 2 (norm1, norm2, hat_norm2), of stage 3
    "WindowAttention": 2,
    "WindowPartition": 1,
    "WindowPartitionWithCarriers": 1,
    "WindowReverse": 1,
    "WindowReverseWithCarriers": 1,
}


def graph_of(name: str, fuse: Fuse = "window-attention", **options: Any) -> ir.Model:
    typed = TypedModel(deploy_form(create_model(name), fuse=fuse)[0], FLOATS["fp32"])
    return onnx_from_torch(typed, IMAGES, BatchRange(1, 1, 1), **options)


def is_subsequence(wanted: tuple[str, ...], found: list[str]) -> bool:
    rest = iter(found)
    return all(op in rest for op in wanted)


def test_operators_of_faster_vit_0() -> None:
    report = FusionReport.of(graph_of("faster_vit_0_224"))
    assert report.operators == {
        "CarrierAttention": 6,
        "Gelu": 22,
        "LayerNormalization": 31,
        "WindowAttention": 11,
        "WindowPartition": 1,
        "WindowPartitionWithCarriers": 1,
        "WindowReverse": 1,
        "WindowReverseWithCarriers": 1,
    }
    assert report.nodes < 300
    assert report.nodes < report.flat_nodes < 520
    assert str(report) == "11 window attentions, 6 carrier attentions"


def test_attention_halves_take_in_what_is_around_the_attention() -> None:
    report = FusionReport.of(graph_of("faster_vit_digits_s", "attention-half"))
    expected = dict(SMALLEST)
    expected["FusedWindowAttention"] = expected.pop("WindowAttention")
    expected["LayerNormalization"] -= 2
    assert report.operators == expected
    assert str(report) == "2 attention halves of windows, 1 carrier attentions"
    core = FusionReport.of(graph_of("faster_vit_digits_s"))
    assert core.nodes - report.nodes == 2 * 4  # LayerNorm, two linear layers and an addition in each window
    assert core.flat_nodes == report.flat_nodes


# name → window attentions (depths of both attention stages), carrier attentions (depth of stage 2, where it has several
# windows), GELUs (blocks of all stages, and the MLPs of the carriers), and how stage 2 leaves its windows
VARIANTS: dict[str, tuple[int, int, int, str]] = {
    "faster_vit_0_224": (6 + 5, 6, 2 + 3 + 11 + 6, "WindowReverseWithCarriers"),
    "faster_vit_1_224": (8 + 5, 8, 1 + 3 + 13 + 8, "WindowReverseWithCarriers"),
    "faster_vit_2_224": (8 + 5, 8, 3 + 3 + 13 + 8, "WindowReverseWithCarriers"),
    "faster_vit_3_224": (12 + 5, 12, 3 + 3 + 17 + 12, "WindowReverseWithPropagation"),
    "faster_vit_4_224": (12 + 5, 12, 3 + 3 + 17 + 12, "WindowReverseWithPropagation"),
    "faster_vit_5_224": (12 + 5, 12, 3 + 3 + 17 + 12, "WindowReverseWithPropagation"),
    "faster_vit_6_224": (16 + 8, 16, 3 + 3 + 24 + 16, "WindowReverseWithPropagation"),
    "faster_vit_4_21k_224": (12 + 5, 0, 3 + 3 + 17, "WindowReverse"),
    "faster_vit_4_21k_384": (12 + 5, 0, 3 + 3 + 17, "WindowReverse"),
    "faster_vit_0_any_res": (6 + 5, 6, 2 + 3 + 11 + 6, "WindowReverseWithCarriers"),
    "faster_vit_4_any_res": (12 + 5, 12, 3 + 3 + 17 + 12, "WindowReverseWithPropagation"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_operators_expected_of_each_variant(name: str) -> None:
    # As deep as the variant, but narrow.
    model = create_model(name, dim=4, in_dim=4, num_heads=(1, 1, 1, 1), mlp_ratio=1.0)
    by_block = expected_operators(deploy_form(model)[0])
    assert set(by_block.values()) == {1}
    windows, carriers, gelus, reverse = VARIANTS[name]
    expected = Counter(
        {
            "WindowAttention": windows,
            "CarrierAttention": carriers,
            "Gelu": gelus,
            "LayerNormalization": 3 + 2 * windows + carriers,  # of each downsample, attention and MLP
            "WindowPartition": 1 if carriers else 2,
            "WindowPartitionWithCarriers": 1 if carriers else 0,
        }
    )
    expected.update(["WindowReverse", reverse])
    assert Counter(operator for _, operator in by_block) == +expected
    assert by_block["stages.2", reverse] == 1
    assert by_block["stages.3.blocks.0.attn", "WindowAttention"] == 1

    fused = expected_operators(deploy_form(model, fuse="attention-half")[0])
    del expected["WindowAttention"]
    expected["FusedWindowAttention"] = windows
    expected["LayerNormalization"] -= windows
    assert Counter(operator for _, operator in fused) == +expected
    assert fused["stages.3.blocks.0.attn", "FusedWindowAttention"] == 1


@pytest.mark.parametrize(
    ("module", "block"),
    [("levels.2.blocks.0.attn", "stages.2.blocks.0.attn"), ("hat.blocks.1", "hat.blocks.1"), ("", "model")],
)
def test_blocks_are_named_as_in_the_graph(module: str, block: str) -> None:
    assert block_of_module(module) == block


# 4 windows of 2x2 tokens and one carrier each, of 4 channels in 2 heads; a batch of 2
_TOKENS, _MAP, _TABLE = torch.zeros(8, 5, 4), torch.zeros(2, 4, 4, 4), torch.zeros(1, 4, 4)
_ATTENTION = (torch.ones(4), torch.zeros(4), torch.zeros(12, 4), torch.zeros(12))
EXAMPLES: dict[str, tuple[tuple[torch.Tensor, ...], dict[str, int | float]]] = {
    "WindowPartition": ((_MAP, _TABLE), {"window": 2}),
    "WindowPartitionWithCarriers": ((_MAP, torch.zeros(2, 4, 2, 2), torch.zeros(1, 5, 4)), {"window": 2}),
    "WindowAttention": ((torch.zeros(40, 12), torch.zeros(1, 2, 5, 5)), {}),
    "FusedWindowAttention": (
        (torch.zeros(40, 4), *_ATTENTION, torch.zeros(1, 2, 5, 5), torch.zeros(4, 4), torch.zeros(4)),
        {"eps": 1e-5},
    ),
    "CarrierAttention": (
        (_TOKENS, _TABLE, *_ATTENTION, torch.zeros(1, 2, 4, 4), torch.zeros(4, 4), torch.zeros(4)),
        {"carriers": 1, "eps": 1e-5},
    ),
    "WindowReverse": ((torch.zeros(8, 4, 4),), {"window": 2, "height": 4, "width": 4}),
    "WindowReverseWithCarriers": ((_TOKENS,), {"carriers": 1, "window": 2, "height": 4, "width": 4}),
    "WindowReverseWithPropagation": (
        (_TOKENS, torch.ones(4)),
        {"carriers": 1, "window": 2, "height": 4, "width": 4},
    ),
}


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.onnx_name)
def test_signatures_are_what_the_exporter_makes_of_the_operators(operator: Operator) -> None:
    tensors, attributes = EXAMPLES[operator.onnx_name]
    batched = [name in operator.batched for name in operator.inputs]
    body = _trace_operator(lambda *given: operator.call(given, attributes), tensors, batched, opset=20).graph
    assert is_subsequence(SIGNATURES[operator.onnx_name], [node.op_type for node in body])


def erf_gelu(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm_by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) * weight + bias


def test_signatures_of_gelu_and_layer_norm_are_their_decompositions() -> None:
    trace, x, c = partial(_trace_operator, batched=[True, False, False]), torch.zeros(4, 8), torch.zeros(8)
    # before opset 20 there is no Gelu
    gelu = trace(lambda x: nn.functional.gelu(x), [x], batched=[True], opset=18).graph
    assert tuple(node.op_type for node in gelu) == SIGNATURES["Gelu"]
    norm = trace(layer_norm_by_hand, [x, c, c], opset=20).graph
    assert is_subsequence(SIGNATURES["LayerNormalization"], [node.op_type for node in norm])


def test_every_operator_that_is_counted_can_be_explained() -> None:
    assert {operator.onnx_name for operator in OPERATORS} | {"Gelu", "LayerNormalization"} == SIGNATURES.keys()


def decomposed_attention(self: PackedWindowAttention, x_XC: torch.Tensor) -> torch.Tensor:
    return self.proj(reference.window_attention(self.qkv(x_XC), self.bias))


def attention_without_softmax(self: PackedWindowAttention, x_XC: torch.Tensor) -> torch.Tensor:
    heads, tokens = self.bias.shape[1:3]
    q, k, v = self.qkv(x_XC).reshape(-1, tokens, 3 * heads, x_XC.shape[1] // heads).transpose(1, 2).split(heads, dim=1)
    scores = q @ k.transpose(2, 3) + self.bias
    return self.proj(((scores.sigmoid()) @ v).transpose(1, 2).reshape(-1, x_XC.shape[1]))


def decomposed_half(self: PackedAttentionHalf, x_XC: torch.Tensor) -> torch.Tensor:
    norm, qkv, proj = self.norm, self.qkv, self.proj
    weights = (norm.weight, norm.bias, qkv.weight, qkv.bias, self.bias, proj.weight, proj.bias)
    return reference.fused_window_attention(x_XC, *weights, norm.eps)


# (class, its forward now, what the error says)
LOST: dict[str, tuple[type[nn.Module], Callable[..., torch.Tensor], str]] = {
    "attention half in parts": (
        PackedAttentionHalf,
        decomposed_half,
        "exports stages.2.blocks.0.attn without FusedWindowAttention (1 more like it); best partial match: 8 of 8 of "
        "its steps in stages.2.blocks.0.attn (LayerNormalization, Gemm, MatMul, Add, Softmax, MatMul, Gemm, Add; "
        "missing none)",
    ),
    "attention in parts": (
        PackedWindowAttention,
        decomposed_attention,
        "exports stages.2.blocks.0.attn without WindowAttention (1 more like it); best partial match: 4 of 4 of its "
        "steps in stages.2.blocks.0.attn (MatMul, Add, Softmax, MatMul; missing none)",
    ),
    "attention without softmax": (
        PackedWindowAttention,
        attention_without_softmax,
        "exports stages.2.blocks.0.attn without WindowAttention (1 more like it); best partial match: 3 of 4 of its "
        "steps in stages.2.blocks.0.attn (MatMul, Add, MatMul; missing Softmax)",
    ),
    "GELU as a formula": (nn.GELU, erf_gelu, "without Gelu (4 more like it); best partial match: "),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_operator_is_named_with_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    cls, forward, message = LOST[kind]
    monkeypatch.setattr(cls, "forward", forward)
    with pytest.raises(FasterViTError) as caught:
        graph_of("faster_vit_digits_s", "attention-half" if cls is PackedAttentionHalf else "window-attention")
    error = str(caught.value)
    assert message in error
    assert f"torch {torch.__version__} exports stages." in error
    assert "use the torch of requirements/constraints.txt" in error
    if cls is nn.GELU:
        assert "exports stages.0.blocks.0.act1 without Gelu" in error
        steps = int(error.split("best partial match: ")[1].split(" of ")[0])
        assert steps >= 4, error
        assert "in stages.0.blocks.0.act1 (" in error


def test_a_lost_operator_ends_the_command_without_a_trace(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedWindowAttention, "forward", decomposed_attention)
    out = tmp_path / "out"
    done = command("fastervit-export", "--model", "faster_vit_digits_s", "--pretrained", "--output", out)
    assert done.code == 2
    assert "exports stages.2.blocks.0.attn without WindowAttention (1 more like it)" in done.error
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_kept_with_the_graph(exports: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "fp16", "bf16"):
        graph = ir.load(exports / precision / "model.onnx")
        report = FusionReport.of(graph)
        assert report.operators == SMALLEST
        assert report.nodes == len(graph.graph) < report.flat_nodes
        assert Manifest.read(exports / precision).graph["fusion"] == asdict(report)
        inline_functions(graph)
        ir.save(graph, tmp_path / "flat.onnx")
        flat = replace(report, nodes=report.flat_nodes, unserved={})  # no calls, no plugins to be missed
        assert FusionReport.of(ir.load(tmp_path / "flat.onnx")) == flat
        assert bool(report.unserved) == (precision == "fp32")


def test_a_flat_graph_on_request_reports_the_same(command: Command, exports: Path, tmp_path: Path) -> None:
    options = ("--model", "faster_vit_digits_s", "--pretrained", "--precision", "fp32", "--batch", "1:4:8")
    inline = ("--inline", "--compute-capability", "none", "--output", tmp_path / "out")
    done = command("fastervit-export", *options, *inline)
    assert done.code == 0, done.err
    called = FusionReport.of(ir.load(exports / "fp32" / "model.onnx"))
    assert "fused: 2 window attentions, 1 carrier attentions" in done.out
    assert f"batch 1:4:8, {called.flat_nodes} nodes\n" in done.out
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "fastervit" not in {node.domain for node in model.graph.node}
    assert "fastervit" not in {opset.domain for opset in model.opset_import}
    assert not model.functions
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert FusionReport.of(ir.load(tmp_path / "out" / "model.onnx")) == replace(
        called, nodes=called.flat_nodes, unserved={}
    )
    assert Manifest.read(tmp_path / "out").graph["fusion"]["operators"] == called.operators
