"""Reasons are counted on the graph and the plan, against PyTorch's own count and what the plan lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastervit_trt.engines.explain import Finding, Work, explain, work_of_graph
from fastervit_trt.engines.kernels import EngineKernels, Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import bake_position_tables, deploy_form
from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.export.graph import BLOCK
from fastervit_trt.export.onnx_graph import _name_nodes
from fastervit_trt.export.precision import Int8
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.qdq import insert_qdq
from fastervit_trt.export.quantisation.ranges import CalibrationKey
from fastervit_trt.models.datasets import open_calibration_images
from fastervit_trt.models.factory import ModelSpec, create_model, get_variant
from fastervit_trt.models.source import build_model, pretrained_source
from tests.conftest import on_one_thread

NAME, SHAPE, BATCH = "faster_vit_digits_s", (3, 224, 224), BatchRange(1, 4, 8)
ATTENTIONS = {"stages.2.blocks.0.hat_attn", "stages.2.blocks.0.attn", "stages.3.blocks.0.attn"}
FLOATING = {"patch_embed.conv_down.0", "patch_embed.conv_down.3", "stages.2.global_tokenizer.pos", "head"}


@pytest.fixture(scope="module")
def quantised(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 graph of the smallest digits model, around float16."""
    model, _ = deploy_form(build_model(ModelSpec(NAME), pretrained_source(NAME))[0])
    images = open_calibration_images("digits", 16).batches(16, get_variant(NAME).preprocessing, SHAPE[1:])
    with on_one_thread():
        ranges = calibrate(model, images, CalibrationKey("", "", "", "", "", 16))
    graph = ir.load(exports / "fp16" / "model.onnx")
    insert_qdq(graph, [operand.block for operand in operands(model)], Int8(), ranges)
    _name_nodes(graph)
    path = tmp_path_factory.mktemp("explain") / "model.onnx"
    ir.save(graph, path)
    return path


@pytest.fixture(scope="module")
def plan(quantised: Path) -> EngineKernels:
    """The kernels of TensorRT-RTX's plan of it."""
    if (reason := rtx_unavailable_reason()) is not None:
        pytest.skip(reason)
    path = quantised.with_name("plan")
    return plan_kernels(build_rtx_engine(quantised, path, RtxTarget.parse("8.9"), BATCH, "images", SHAPE).path)


@pytest.fixture(scope="module")
def plan_16(exports: Path) -> EngineKernels:
    return plan_kernels(exports / "fp16" / "model.rtx-sm89.engine")


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    """Block → multiplications per image, by PyTorch's count of the model as loaded."""
    model = create_model(NAME).eval()
    bake_position_tables(model)  # the training form computes them besides
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *SHAPE))
    found = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    assert 2 * found["Global"] == counter.get_total_flops()
    return {block_of_module(name.partition(".")[2]).replace("to_global_feature.", ""): n for name, n in found.items()}


def by_reason(findings: list[Finding], pattern: str) -> tuple[int, ...] | None:
    """The numbers that ``pattern`` finds in the one reason it fits; None where it fits none."""
    matches = [match for f in findings if (match := re.match(pattern, f.reason))]
    assert len(matches) <= 1
    return tuple(int(number) for number in matches[0].groups()) if matches else None


def blocks_of(findings: list[Finding], words: str) -> tuple[str, ...]:
    (found,) = (f.blocks for f in findings if words in f.reason)
    return found


def test_multiplications_are_those_that_pytorch_counts(exports: Path, quantised: Path, counted: dict[str, int]) -> None:
    for path in (exports / "fp32" / "model.onnx", quantised):
        work = work_of_graph(ir.load(path))
        assert sum(w.macs for w in work) == pytest.approx(counted["model"], rel=0.01)
        assert len({w.block for w in work}) == len(work)
        for w in work:
            # attention's own is what its layers leave of it; that of the carriers holds its layers
            layers = (
                0 if w.block.endswith("hat_attn") else sum(counted.get(f"{w.block}.{x}", 0) for x in ("qkv", "proj"))
            )
            assert w.macs == counted[w.block] - layers, w.block


def test_multiplications_are_per_image(exports: Path) -> None:
    """A static batch of any size has as many, and as many as a dynamic one."""
    dynamic, graph = (ir.load(exports / "fp16" / "model.onnx") for _ in range(2))
    for size in (1, 3):
        graph.graph.inputs[0].shape = ir.Shape([size, *SHAPE])
        assert work_of_graph(graph) == work_of_graph(dynamic)


def test_types_are_what_a_product_multiplies_in(exports: Path, quantised: Path) -> None:
    eight = {operand.block for operand in operands(deploy_form(create_model(NAME))[0])}
    types = {w.block: w.type for w in work_of_graph(ir.load(quantised))}
    assert types.keys() == eight | ATTENTIONS | FLOATING
    assert types == {block: "int8" if block in eight else "fp16" for block in types}
    for precision in ("fp32", "fp16", "bf16"):
        assert {w.type for w in work_of_graph(ir.load(exports / precision / "model.onnx"))} == {precision}


def test_the_share_that_stays_wide_is_named_heaviest_first(quantised: Path, counted: dict[str, int]) -> None:
    (finding,) = explain(quantised)  # with head dims of 16 and no plan, there is nothing else to tell
    total = counted["model"]
    narrow = sum(counted[operand.block] for operand in operands(deploy_form(create_model(NAME))[0]))
    share = (total - narrow) / total
    assert 0.3 < share < 0.5
    assert by_reason([finding], r"(\d+)% of the multiplications are not in 8 bits$") == (round(100 * share),)
    assert set(finding.blocks) == ATTENTIONS | FLOATING
    macs = {w.block: w.macs for w in work_of_graph(ir.load(quantised))}
    assert [macs[block] for block in finding.blocks] == sorted((macs[b] for b in finding.blocks), reverse=True)
    assert (finding.blocks[0], finding.blocks[-1]) == ("patch_embed.conv_down.0", "head")


def test_a_graph_in_16_bits_has_all_its_work_outside_8(exports: Path) -> None:
    (finding,) = explain(exports / "fp16" / "model.onnx")
    assert finding.reason == "100% of the multiplications are not in 8 bits"


# Fused operators with the shapes that matter, of 3 windows in each of 2 images.
def call(operator: str, batch: str, heads: int, dim: int, tokens: int) -> ir.Model:
    c = heads * dim
    rows = f"float16[{batch}, {3 * c if operator == 'WindowAttention' else c}]"
    layers = f"float16[{c}] norm, float16[{3 * c}, {c}] qkv, float16[1, {heads}, {tokens}, {tokens}] bias, "
    layers += f"float16[{c}, {c}] proj"
    signatures = {
        "WindowAttention": (f"float16[1, {heads}, {tokens}, {tokens}] bias", "x, bias"),
        "FusedWindowAttention": (layers, "x, norm, qkv, bias, proj"),
        "CarrierAttention": (layers, "x, norm, qkv, bias, proj"),
    }
    inputs, names = signatures[operator]
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 20, "fastervit" : 1]>
        agraph (float16[2, 3, 8, 8] images, {rows} x, {inputs}) => (float16[{batch}, {c}] y)
        {{ y = fastervit.{operator} ({names}) }}
    """)
    for node in model.graph:
        node.name = f"stages.3.blocks.0.attn/{operator}_0"
        node.metadata_props[BLOCK] = "stages.3.blocks.0.attn"
    return model


CALLS: dict[str, Callable[[int, int, int], int]] = {  # rows of an image, channels, tokens → multiplications
    "WindowAttention": lambda rows, c, tokens: 2 * rows * tokens * c,
    "FusedWindowAttention": lambda rows, c, tokens: rows * (4 * c * c + 2 * tokens * c),
    "CarrierAttention": lambda rows, c, tokens: rows * (4 * c * c + 2 * tokens * c),
}


@pytest.mark.parametrize("operator", CALLS)
def test_multiplications_of_fused_operators(operator: str) -> None:
    heads, dim, tokens, windows = 2, 24, 7, 3
    model = call(operator, str(2 * windows * tokens), heads, dim, tokens)
    macs = CALLS[operator](windows * tokens, heads * dim, tokens)
    node = f"stages.3.blocks.0.attn/{operator}_0"
    assert work_of_graph(model) == [Work(node, "stages.3.blocks.0.attn", "fp16", macs)]


@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize(("heads", "dim"), [(4, 16), (2, 32), (1, 64), (2, 24), (2, 48), (4, 8), (1, 128)])
def test_head_dims_that_int8_attention_lacks_are_named(tmp_path: Path, operator: str, heads: int, dim: int) -> None:
    path = tmp_path / "model.onnx"
    ir.save(call(operator, "42", heads, dim, 7), path)
    wide, *others = explain(path)
    assert wide.reason.startswith("100% ")
    assert by_reason(others, r"head dim (\d+) has no INT8 attention") == (None if dim in (16, 32, 64) else (dim,))
    assert len(others) == (dim not in (16, 32, 64))
    assert all(finding.blocks == ("stages.3.blocks.0.attn",) for finding in others)


def operators(nodes: tuple[str, ...]) -> list[tuple[str, str]]:
    """(operator, block) of the ONNX nodes that a kernel computes; within a function, its own operator."""
    inner = [(node.split(" | ")[0], node.split(" | ")[-1].split(" ")[0]) for node in nodes]
    return [(name.split("/")[-1].rpartition("_")[0], outer.split("/")[0]) for name, outer in inner]


def names(kernels: EngineKernels) -> list[tuple[Kind, list[tuple[str, str]]]]:
    return [(kernel.kind, operators(kernel.nodes)) for kernel in kernels.kernels]


def test_what_no_product_takes_along_is_counted(quantised: Path, plan: EngineKernels) -> None:
    findings = explain(quantised, plan)
    alone = [
        [block for op, block in nodes if op in ("Gemm", "Conv")]
        for kind, nodes in names(plan)
        if kind is Kind.POINTWISE and any(op in ("Gemm", "Conv") for op, _ in nodes)
    ]
    assert alone
    assert by_reason(findings, r"(\d+) products leave their scale, bias or GELU to a kernel of its own") == (
        len(alone),
    )
    found = blocks_of(findings, "products leave")
    assert set(found) == {block for blocks in alone for block in blocks}
    # GELU between the layers of an MLP, or of a convolution block
    assert all(block.endswith((".conv1", ".fc1")) for block in found)


def test_kernels_that_only_quantise_are_counted(quantised: Path, plan: EngineKernels) -> None:
    findings = explain(quantised, plan)
    stranded = [nodes[0][1] for _, nodes in names(plan) if {op for op, _ in nodes} == {"QuantizeLinear"}]
    assert stranded
    assert by_reason(findings, r"(\d+) kernels do nothing but quantise$") == (len(stranded),)
    assert blocks_of(findings, "nothing but quantise") == tuple(stranded)


def test_attentions_that_fall_apart_are_counted(quantised: Path, plan: EngineKernels) -> None:
    findings, split, whole = explain(quantised, plan), [], []
    for _, nodes in names(plan):
        for block in (block for op, block in nodes if op == "Softmax"):
            (whole if nodes.count(("MatMul", block)) == 2 else split).append(block)
    assert {*split, *whole} == ATTENTIONS
    assert whole
    assert by_reason(findings, r"(\d+) of (\d+) attentions are not one kernel$") == (len(split), len(ATTENTIONS))
    assert blocks_of(findings, "are not one kernel") == tuple(split)


def test_launches_are_compared_with_those_in_16_bits(
    quantised: Path, plan: EngineKernels, plan_16: EngineKernels
) -> None:
    eight, sixteen = plan.launches, plan_16.launches
    assert eight > sixteen
    pattern = r"(\d+) kernels are launched where float16 launches (\d+)$"
    assert by_reason(explain(quantised, plan, plan_16), pattern) == (eight, sixteen)
    assert by_reason(explain(quantised, plan), pattern) is None
    assert by_reason(explain(quantised, plan_16, plan), pattern) is None  # fewer are no reason
    assert by_reason(explain(quantised, plan, plan), pattern) is None


def test_a_plan_in_16_bits_quantises_nothing(exports: Path, plan_16: EngineKernels) -> None:
    findings = explain(exports / "fp16" / "model.onnx", plan_16)
    assert by_reason(findings, r"(\d+) kernels do nothing but quantise") is None


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ((), "slow: do less"),
        (("a",), "slow (a): do less"),
        (("a", "b", "c"), "slow (a, b, c): do less"),
        (("a", "b", "c", "d"), "slow (a, b, c, …): do less"),
    ],
)
def test_a_finding_names_three_blocks_at_most(blocks: tuple[str, ...], text: str) -> None:
    assert str(Finding("slow", blocks, "do less")) == text
