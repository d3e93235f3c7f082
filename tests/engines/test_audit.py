"""Audits of real TensorRT-RTX plans, against what ONNX, the plan's own text and the model say."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastervit_trt.engines.audit import Audit, Product, audit_engine
from fastervit_trt.engines.kernels import EngineKernels, Kernel, KernelTensor, Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.models.factory import create_model
from tests.engines.graphs import NAME, Graphs

pytestmark = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))

ENGINES = [  # graph, compute capability
    *(("fp32", "8.9"), ("fp32-inline", "8.9"), ("fp32-static1", "8.9")),
    *(("fp16", "8.9"), ("fp16", "7.5"), ("fp16", "12.0"), ("fp16-inline", "8.9"), ("fp16-static1", "8.9")),
    ("bf16", "8.9"),
    *(("int8", "8.9"), ("int8", "12.0"), ("int8-inline", "8.9"), ("int8-static1", "8.9")),
    *(("fp8", "8.9"), ("fp8", "12.0")),
]
every_engine = pytest.mark.parametrize(("name", "capability"), ENGINES)
Audits = Callable[..., Audit]
WINDOWS = ("stages.2.blocks.0.attn", "stages.3.blocks.0.attn")
CARRIERS = "stages.2.blocks.0.hat_attn"
TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 3: "int8", 17: "fp8"}  # of ONNX
OUTSIDE = "input and output"


@pytest.fixture(scope="module")
def audits(graphs: Graphs) -> Audits:
    """``audits("int8", "12.0")``, or, of an engine of another graph, ``audits("int8", "8.9", "fp16")``."""

    @cache
    def audit(name: str, capability: str = "8.9", engine: str | None = None) -> Audit:
        return audit_engine(graphs(name), plan_kernels(graphs.plan(engine or name, capability)))

    return audit


@pytest.fixture(scope="module")
def modules() -> set[str]:
    """Names of the model's modules, as blocks are called."""
    return {block_of_module(module) for module, _ in deploy_form(create_model(NAME))[0].named_modules()}


def block_of(node: onnx.NodeProto) -> str:
    return node.name.partition("/")[0]


def stage_of(block: str) -> str:
    return re.sub(r"^(stages\.\d).*|^(patch_embed|head).*", r"\1\2", block)


def work(path: Path) -> dict[str, tuple[str, int]]:
    """Block → type asked for and multiplications per image; counted on a graph with fused operators."""
    graph = onnx.load(path).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {i.name: list(i.dims) for i in graph.initializer}
    for value in values:
        sides = value.type.tensor_type.shape.dim
        shapes[value.name] = [side.dim_value or eval(side.dim_param, {"batch": 1}) for side in sides]
    types = {v.name: v.type.tensor_type.elem_type for v in values} | {i.name: i.data_type for i in graph.initializer}
    rounded = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    found = {}
    for node in graph.node:
        first, second, *_ = (*node.input, "", "")
        size = int(np.prod(shapes[node.output[0]]))
        if node.op_type == "Conv":
            macs = size * int(np.prod(shapes[second][1:]))
        elif node.op_type == "Gemm":
            macs = size * shapes[first][-1]
        elif node.op_type == "WindowAttention":  # q·kᵀ and ·v
            macs = 2 * size * shapes[second][-1]
        elif node.op_type == "CarrierAttention":  # and its linear layers
            rows, c = shapes[node.output[0]]
            (tokens,) = (shapes[name][-1] for name in node.input if len(shapes.get(name, ())) == 4)
            macs = rows * (4 * c * c + 2 * tokens * c)
        else:
            assert node.op_type != "MatMul"
            continue
        assert block_of(node) not in found
        found[block_of(node)] = TYPES[types[rounded.get(first, first)]], macs
    return found


def launched(plan: Path) -> list[str]:
    """Lines of the plan's listing that launch something; fragments, which are within kernels, have no target."""
    _, program = plan.read_text("latin-1").split("accelerators={sm")
    listing = program.split("\nmain {\n")[1].split("\n}")[0]
    return [line for line in listing.splitlines() if re.match(r" *(?!shape_call|signal|wait)\w+=\{ ", line)]


def fused_attentions(plan: Path) -> set[str]:
    """Blocks of the attentions that the listing of a plan launches as one kernel."""
    steps = [line for line in launched(plan) if "name=_gemm_mha" in line]
    softmaxes = (re.search(r"\[ONNX Layer: [^\]]*Softmax_0[^\]]*\]", step) for step in steps)
    found = [re.search(r"(stages[\w.]+)/WindowAttention", softmax[0]) for softmax in softmaxes if softmax is not None]
    assert len(found) == len(steps)
    return {match[1] for match in found if match is not None}


def by_block(products: tuple[Product, ...]) -> dict[str, tuple[str, str | None, int]]:
    """Block → types and multiplications; of an attention that was written out, the sum over its products."""
    found: dict[str, tuple[str, str | None, int]] = {}
    for product in products:
        *types, macs = found.get(product.block, (product.asked, product.ran, 0))
        assert types == [product.asked, product.ran]
        found[product.block] = product.asked, product.ran, macs + product.macs
    return found


@every_engine
def test_every_product_runs_in_the_type_that_the_graph_asks_for(
    graphs: Graphs, audits: Audits, name: str, capability: str
) -> None:
    audit = audits(name, capability)
    expected = work(graphs(name.removesuffix("-inline")))
    assert len(expected) == 24
    assert by_block(audit.products) == {block: (type_, type_, macs) for block, (type_, macs) in expected.items()}
    assert audit.check("'engine'") is None
    assert audit.summary["proven"]
    precision = name.partition("-")[0]
    quantised = {block for block, (type_, _) in expected.items() if type_ in ("int8", "fp8")}
    assert quantised == ({*graphs.quantised_blocks} if precision in ("int8", "fp8") else set())
    assert {type_ for type_, _ in expected.values()} == {precision, *(["fp16"] if quantised else [])}


@every_engine
def test_shares_are_those_of_the_graph(graphs: Graphs, audits: Audits, name: str, capability: str) -> None:
    audit = audits(name, capability)
    expected: dict[str, Counter[str]] = {}
    for block, (type_, macs) in work(graphs(name.removesuffix("-inline"))).items():
        expected.setdefault(stage_of(block), Counter())[type_] += macs
    shown = {stage.stage: stage.macs for stage in audit.stages}
    assert shown.keys() - expected.keys() <= {OUTSIDE}
    assert {stage: shown[stage] for stage in expected} == expected
    total = sum(expected.values(), Counter[str]())
    shares = {type_: macs / total.total() for type_, macs in total.items()}
    assert audit.summary["multiplications"] == pytest.approx(shares, abs=1e-4)
    if name.startswith(("int8", "fp8")):
        assert {*expected["stages.2"]} == {name.partition("-")[0], "fp16"}


@every_engine
def test_attentions_are_one_kernel_where_the_plan_has_one(
    graphs: Graphs, audits: Audits, name: str, capability: str
) -> None:
    attentions = {attention.block: attention for attention in audits(name, capability).attentions}
    fused = fused_attentions(graphs.plan(name, capability))
    assert fused == (set() if name.startswith("fp32") else {WINDOWS[1]})  # of the three it alone has two heads
    assert attentions.keys() == {*WINDOWS, CARRIERS}
    for block, attention in attentions.items():
        assert attention.form == ("one kernel" if block in fused else "in parts")
        assert any("_gemm_mha" in kernel for kernel in attention.kernels) == (block in fused)
        assert len(attention.kernels) >= (1 if block in fused else 3)


@every_engine
def test_blocks_are_the_models_and_launches_add_up(
    graphs: Graphs, audits: Audits, modules: set[str], name: str, capability: str
) -> None:
    audit = audits(name, capability)
    assert {block.block for block in audit.blocks} <= {*modules, OUTSIDE}
    assert {attention.block for attention in audit.attentions} <= {block.block for block in audit.blocks}
    launches = len(launched(graphs.plan(name, capability)))
    assert sum(stage.launches for stage in audit.stages) == audit.launches == launches > 40
    assert max(block.launches for block in audit.blocks) < launches
    stages = {"patch_embed", *(f"stages.{i}" for i in range(4)), "head"}
    assert {stage.stage for stage in audit.stages} - {OUTSIDE} == stages
    for block in audit.blocks:
        assert block.alone <= block.launches == sum(block.kinds.values())
    assert audit.targets == (f"sm{capability.replace('.', '')}",)


def test_a_graph_written_out_is_audited_as_one_with_functions(audits: Audits) -> None:
    for precision in ("fp32", "fp16", "int8"):
        called, written = (audits(name) for name in (precision, f"{precision}-inline"))
        assert by_block(written.products) == by_block(called.products)
        assert [(a.block, a.form, len(a.kernels)) for a in written.attentions] == [
            (a.block, a.form, len(a.kernels)) for a in called.attentions
        ]
        assert written.summary == called.summary
        assert [replace(stage, tensors={}) for stage in written.stages] == [
            replace(stage, tensors={}) for stage in called.stages
        ]


def test_the_head_of_one_image_is_a_sum_of_products_and_shown(audits: Audits) -> None:
    """TensorRT-RTX launches no matrix product for it."""
    for precision, kernels in (("fp16", audits("fp16")), ("fp16", audits("fp16-static1"))):
        (head,) = (product for product in kernels.products if product.block == "head")
        assert head.ran == precision
    assert "Fc" in str(next(p.kernel for p in audits("fp16").products if p.block == "head"))
    assert "Fc" not in str(next(p.kernel for p in audits("fp16-static1").products if p.block == "head"))


# Engines that are not what was asked for.
def refusal(audit: Audit) -> str:
    with pytest.raises(FasterViTError) as caught:
        audit.check("'engine'")
    assert "\n" not in str(caught.value)
    assert not audit.summary["proven"]
    return str(caught.value)


def share(path: Path, blocks: set[str]) -> str:
    found = work(path)
    return f"{sum(found[block][1] for block in blocks) / sum(macs for _, macs in found.values()):.0%}"


@pytest.mark.parametrize(
    ("asked", "built"), [("fp16", "fp32"), ("bf16", "fp32"), ("fp32", "fp16"), ("bf16", "fp16"), ("fp16", "bf16")]
)
def test_an_engine_in_another_type_is_refused(audits: Audits, asked: str, built: str) -> None:
    assert refusal(audits(asked, "8.9", built)) == (
        f"'engine' is not what was asked for: patch_embed.conv_down.0 runs in {built}, the graph has {asked}; so do 24 "
        "of 24 products, 100% of the multiplications (patch_embed.conv_down.0, patch_embed.conv_down.3, "
        "stages.0.blocks.0.conv1, …); try another --precision or release of TensorRT"
    )


@pytest.mark.parametrize(
    ("asked", "built", "ran"),
    [
        ("int8", "fp16", "fp16"),
        ("int8", "fp32", "fp32"),
        ("int8", "fp8", "fp8"),
        ("fp8", "int8", "int8"),
        ("int8", "int8-weights", "fp16"),  # only the weights are in 8 bits, and widened before they are multiplied
        ("fp8", "fp8-weights", "fp16"),
    ],
)
def test_an_engine_that_does_not_compute_in_8_bits_is_refused(
    graphs: Graphs, audits: Audits, asked: str, built: str, ran: str
) -> None:
    audit = audits(asked, "8.9", built)
    wrong = {product.block for product in audit.products if product.ran != product.asked}
    assert wrong == ({product.block for product in audit.products} if ran == "fp32" else {*graphs.quantised_blocks})
    message = refusal(audit)
    assert f"stages.0.blocks.0.conv1 runs in {ran}, the graph has {asked}; so do" in message or ran == "fp32"
    assert f"so do {len(wrong)} of 24 products, {share(graphs(asked), wrong)} of the multiplications (" in message


@pytest.mark.parametrize("block", ["stages.0.blocks.0.conv2", "stages.2.blocks.0.attn.qkv"])
def test_a_single_layer_in_another_type_is_refused(graphs: Graphs, audits: Audits, block: str) -> None:
    left_out = f"int8-but-{block}"
    assert audits(left_out).check("'engine'") is None
    assert refusal(audits("int8", "8.9", left_out)).startswith(
        f"'engine' is not what was asked for: {block} runs in fp16, the graph has int8; so do 1 of 24 products, "
        f"{share(graphs('int8'), {block})} of the multiplications ({block}); "
    )
    assert f"{block} runs in int8, the graph has fp16" in refusal(audits(left_out, "8.9", "int8"))


def test_int8_convolutions_that_turing_runs_in_float16_are_refused(graphs: Graphs, audits: Audits) -> None:
    """TensorRT-RTX 1.7 has no INT8 convolution for compute capability 7.5 and says nothing about it."""
    message = refusal(audits("int8", "7.5"))
    convolutions = {block for block in graphs.quantised_blocks if "conv" in block or "reduction" in block}
    assert "stages.0.blocks.0.conv1 runs in fp16, the graph has int8; so do 7 of 24 products" in message
    assert len(convolutions) == 7
    assert f"{share(graphs('int8'), convolutions)} of the multiplications" in message


# Engines that hide what they run in.
def edited(kernels: EngineKernels, edit: Callable[[Kernel], Kernel]) -> EngineKernels:
    return replace(kernels, kernels=tuple(map(edit, kernels.kernels)))


def hidden(kernel: Kernel, constant: bool | None = None) -> Kernel:
    """Without the types of its operands; of the constant ones alone, or of the others."""

    def hide(tensor: KernelTensor) -> KernelTensor:
        return replace(tensor, type="unknown") if constant in (None, tensor.constant) else tensor

    return replace(kernel, inputs=tuple(map(hide, kernel.inputs)))


def test_an_engine_that_hides_all_types_proves_nothing(graphs: Graphs) -> None:
    audit = audit_engine(graphs("fp16"), edited(plan_kernels(graphs.plan("fp16")), hidden))
    assert audit.check("'engine'") == (
        "'engine' does not show what 24 of 24 products run in (patch_embed.conv_down.0, patch_embed.conv_down.3, "
        "stages.0.blocks.0.conv1, …): their precision is not proven"
    )
    assert (audit.summary["proven"], audit.summary["multiplications"]) == (False, {"not shown": 1.0})
    assert {kind for stage in audit.stages for kind in stage.macs} == {"not shown"}


def test_a_kernel_without_operands_or_nodes_proves_nothing(graphs: Graphs) -> None:
    kernels = plan_kernels(graphs.plan("fp16"))
    for edit in (lambda k: replace(k, inputs=()), lambda k: replace(k, nodes=())):
        audit = audit_engine(graphs("fp16"), edited(kernels, edit))
        assert "24 of 24 products" in str(audit.check("'engine'"))
        assert sum(stage.launches for stage in audit.stages) == audit.launches == kernels.launches
        assert sum(sum(stage.macs.values()) for stage in audit.stages) == sum(p.macs for p in audit.products)


def test_weights_tell_the_type_where_activations_are_hidden_unless_they_may_be_widened(graphs: Graphs) -> None:
    """TensorRT 10 hides the types of activations where the batch is dynamic."""
    for name, proven in (("fp16", True), ("fp32", True), ("int8", False), ("fp8", False)):
        kernels = edited(plan_kernels(graphs.plan(name)), lambda kernel: hidden(kernel, constant=False))
        audit = audit_engine(graphs(name), kernels)
        unproven = {product.block for product in audit.products if product.ran is None}
        layers = set() if proven else {*graphs.quantised_blocks}
        assert unproven == {*layers, *WINDOWS, CARRIERS}  # attention multiplies what is computed
        assert "precision is not proven" in str(audit.check("'engine'"))


def test_a_part_that_is_hidden_leaves_the_whole_unproven(graphs: Graphs) -> None:
    kernels = plan_kernels(graphs.plan("fp16"))
    parts = [k for k in kernels.kernels if k.kind is Kind.GEMM and any(CARRIERS in node for node in k.nodes)]
    assert len(parts) == 4
    for part in parts:
        hiding = edited(kernels, lambda kernel, part=part: hidden(kernel) if kernel is part else kernel)  # type: ignore[misc]
        audit = audit_engine(graphs("fp16"), hiding)
        assert [product.block for product in audit.products if product.ran is None] == [CARRIERS]
        assert f"does not show what 1 of 24 products run in ({CARRIERS})" in str(audit.check("'engine'"))
        widened = tuple(replace(t, type="fp32") if not t.constant else t for t in part.inputs)
        wide = edited(kernels, lambda k, part=part, widened=widened: replace(k, inputs=widened) if k is part else k)  # type: ignore[misc]
        if not any(tensor.constant and tensor.is_matrix for tensor in part.inputs):
            assert f"{CARRIERS} runs in fp32" in refusal(audit_engine(graphs("fp16"), wide))


def test_8_bits_that_are_cast_on_their_way_into_the_product_prove_nothing(graphs: Graphs) -> None:
    def dequantising(kernel: Kernel) -> Kernel:
        narrow = {tensor.type for tensor in kernel.inputs} & {"int8"}
        name = "__myl_CastMulCastFc"
        before = ("Cast", "Mul", "Cast")
        return replace(kernel, name=name, operations=(*before, *kernel.operations)) if narrow else kernel

    kernels = plan_kernels(graphs.plan("int8"))
    audit = audit_engine(graphs("int8"), edited(kernels, dequantising))
    assert {product.block for product in audit.products if product.ran is None} == {*graphs.quantised_blocks}


def test_a_wider_sum_that_is_fused_into_a_product_does_not_widen_it(graphs: Graphs) -> None:
    def with_residual(kernel: Kernel) -> Kernel:
        residual = KernelTensor("residual", "fp16", (None, 64))
        return replace(kernel, inputs=(residual, *kernel.inputs)) if kernel.kind is Kind.GEMM else kernel

    audit = audit_engine(graphs("int8"), edited(plan_kernels(graphs.plan("int8")), with_residual))
    assert audit.check("'engine'") is None
    assert audit.summary["proven"]


# Reformats, casts, and what no node of the graph stands for.
def test_what_tensorrt_puts_in_is_listed_with_its_block(graphs: Graphs) -> None:
    kernels = plan_kernels(graphs.plan("fp16"))
    (conv,) = (k for k in kernels.kernels if "stages.1.blocks.0.conv1/Conv_0" in k.nodes)
    put_in = (
        Kernel(Kind.REFORMAT, "Reformat", None, (), (), outputs=()),  # of nothing that is known
        Kernel(Kind.REFORMAT, "Reformat", None, (), (), inputs=conv.outputs[:1]),
        Kernel(Kind.CAST, "__myl_Cast", None, ("Cast",), ("stages.2.blocks.0.attn/Cast_0",)),
    )
    index = kernels.kernels.index(conv) + 1
    more = replace(kernels, kernels=(*kernels.kernels[:index], *put_in, *kernels.kernels[index:]))
    audit, before = audit_engine(graphs("fp16"), more), audit_engine(graphs("fp16"), kernels)
    assert before.reformats == ()
    assert [where for where, _ in audit.reformats] == [OUTSIDE, "stages.1.blocks.0.conv1", "stages.2.blocks.0.attn"]
    assert [kernel for _, kernel in audit.reformats] == ["Reformat", "Reformat", "__myl_Cast"]
    assert audit.summary["reformats"] == 3
    launches = {stage.stage: stage.launches for stage in before.stages}
    extra = {OUTSIDE: 1, "stages.1": 1, "stages.2": 1}
    assert {s.stage: s.launches - launches[s.stage] for s in audit.stages} == {s: extra.get(s, 0) for s in launches}
    blocks = {block.block: block for block in audit.blocks}
    assert "__myl_Cast" in blocks["stages.2.blocks.0.attn"].moved


def test_types_of_tensors_are_counted_where_they_are_written(audits: Audits) -> None:
    written = {stage.stage: stage.tensors for stage in audits("int8").stages}
    assert written["head"] == {"fp32": 1}
    assert "int8" not in written["patch_embed"]
    assert written["stages.0"]["int8"] >= 3  # what its three convolutions read
    assert {kind for tensors in written.values() for kind in tensors} == {"fp32", "fp16", "int8"}
    assert {kind for stage in audits("fp32").stages for kind in stage.tensors} == {"fp32"}


@pytest.mark.parametrize("name", ["fp16", "int8-inline"])
def test_an_audit_is_the_same_after_a_way_through_json(audits: Audits, name: str) -> None:
    audit = audits(name)
    assert Audit.from_record(json.loads(json.dumps(audit.record()))) == audit


def damaged(record: dict[str, object]) -> Iterator[dict[str, object]]:
    yield {}
    yield {name: value for name, value in record.items() if name != "products"}
    yield {**record, "stages": [{"stage": "head"}]}
    yield {**record, "reformats": ["one"]}


def test_what_is_no_audit_is_refused(audits: Audits) -> None:
    for record in damaged(audits("fp16").record()):
        with pytest.raises(FasterViTError, match=r"this is no audit of an engine .*; make it again"):
            Audit.from_record(record)
