"""Real TensorRT-RTX builds of graphs whose kernels are known beforehand, and a real export."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from fastervit_trt.engines.build import BuildRequest, build_engine
from fastervit_trt.engines.kernels import EngineKernels, Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import save_onnx
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import get_float
from fastervit_trt.export.typed_model import TypedModel
from tests.engines.graphs import Graphs

pytestmark = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))

DIM, TOKENS = 64, 49
IMAGES = (1, TOKENS, DIM)  # one image: 49 tokens of 64 channels


class Layer(nn.Module):
    """A matrix product, and a normalisation that nothing of it can be fused into."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(DIM, DIM), nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.bias = nn.Parameter(torch.randn(heads, TOKENS, TOKENS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(0, 1)
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5 + self.bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, 1, N, C))


def kernels_of(layers: list[nn.Module], folder: Path, batch: str = "8", precision: str = "fp16") -> EngineKernels:
    sizes = BatchRange.parse(batch)
    torch.manual_seed(0)
    graph = onnx_from_torch(TypedModel(nn.Sequential(*layers), get_float(precision)), IMAGES, sizes)
    (path,) = save_onnx(graph, folder)
    build_rtx_engine(path, folder / "plan", RtxTarget.parse("8.9"), sizes, "images", IMAGES)
    return plan_kernels(folder / "plan")


def counts(kernels: EngineKernels) -> dict[str, int]:
    return {kind.value: kernels.count(kind) for kind in Kind if kernels.count(kind)}


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_a_repeated_layer_is_launched_as_often(tmp_path: Path, repeats: int) -> None:
    kernels = kernels_of([Layer() for _ in range(repeats)], tmp_path)
    assert (kernels.count(Kind.GEMM), kernels.count(Kind.NORMALISATION)) == (repeats, repeats)
    # besides, one cast at either end: float32 images in, float32 outputs out
    assert kernels.launches - 2 * repeats == kernels.count(Kind.CAST) + kernels.count(Kind.MOVEMENT) <= 2
    assert kernels.targets == ("sm89",)


def test_one_kernel_launched_five_times_is_one_distinct_kernel(tmp_path: Path) -> None:
    five = kernels_of([Layer()] * 5, tmp_path)
    norms = [kernel for kernel in five.kernels if kernel.kind is Kind.NORMALISATION]
    assert len(norms) == 5
    # the inner four are the same; the last also casts to float32
    assert len({kernel.source for kernel in norms}) == 2
    assert [len({kernel.source for kernel in group}) for group in (norms[:4], norms[4:])] == [1, 1]
    assert five.distinct_generated < five.generated < five.launches
    # the source of a kernel is in the plan once, however often it is launched
    assert (tmp_path / "plan").read_bytes().count(b'extern "C" __global__') == five.distinct_generated


def test_kernels_of_one_name_are_distinct_where_their_source_is(tmp_path: Path) -> None:
    halves = [nn.Linear(DIM, DIM // 2), nn.LayerNorm(DIM // 2), nn.Linear(DIM // 2, DIM), nn.LayerNorm(DIM)]
    kernels = kernels_of([*halves, Layer()], tmp_path)
    norms = [kernel for kernel in kernels.kernels if kernel.kind is Kind.NORMALISATION]
    assert len(norms) == len({kernel.source for kernel in norms}) == 3
    assert len(kernels.names(Kind.NORMALISATION)) == 2  # of 32 and of 64 channels alike; the last also casts


def test_a_dynamic_batch_launches_no_more(tmp_path: Path) -> None:
    static = kernels_of([Layer(), Layer()], tmp_path)
    dynamic = kernels_of([Layer(), Layer()], tmp_path, batch="1:8:32")
    assert counts(dynamic) == counts(static)
    assert b"shape_call={" in (tmp_path / "plan").read_bytes()  # a step of the listing, but of the host


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_attention_is_one_kernel_in_half_precision(tmp_path: Path, repeats: int) -> None:
    kernels = kernels_of([Attention(2) for _ in range(repeats)], tmp_path)
    assert kernels.count(Kind.ATTENTION) == repeats
    assert kernels.count(Kind.GEMM) == 2 * repeats  # qkv and projection
    assert kernels.count(Kind.SOFTMAX) == 0
    fused = next(kernel for kernel in kernels.kernels if kernel.kind is Kind.ATTENTION)
    assert {node.rsplit("/")[-1].split("_")[0] for node in fused.nodes} >= {"MatMul", "Add", "Softmax"}


def test_attention_in_float32_shows_its_softmax(tmp_path: Path) -> None:
    kernels = kernels_of([Attention(2)], tmp_path, precision="fp32")
    assert (kernels.count(Kind.ATTENTION), kernels.count(Kind.SOFTMAX)) == (0, 1)
    assert kernels.count(Kind.GEMM) == 4  # qkv, q·kᵀ, ·v and projection


def test_what_is_fused_into_a_matrix_product_is_in_its_name(tmp_path: Path) -> None:
    linear_gelu = [module for _ in range(3) for module in (nn.Linear(DIM, DIM), nn.GELU())]
    kernels = kernels_of([nn.Flatten(0, 1), *linear_gelu, Layer()], tmp_path)
    assert kernels.count(Kind.GEMM) == 4
    fused = [kernel for kernel in kernels.kernels if {"Fc", "Add", "Erf"} <= set(kernel.operations)]
    assert len(fused) >= 2
    assert kernels.names(Kind.GEMM)[fused[0].name] == len(fused)
    *_, last = (kernel for kernel in kernels.kernels if kernel.kind is Kind.GEMM)
    assert (last.name, last.operations) == ("fully_connected", ("Fc",))  # the normalisation adds its bias


def test_convolutions_pooling_and_transposes_are_told_apart(tmp_path: Path) -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(self.second(self.first(x).relu()).relu(), 2, 1)

    kernels = kernels_of([Image()], tmp_path)
    assert (kernels.count(Kind.CONVOLUTION), kernels.count(Kind.REDUCTION)) == (2, 1)
    assert counts(kernels).keys() == {"convolution", "reduction", "cast", "movement"}


def test_an_export_has_one_kernel_per_attention_with_several_heads(exports: Path) -> None:
    """Of the smallest digits model's three attentions only the one with two heads is fused."""
    path = exports / "fp16" / "model.rtx-sm89.engine"
    kernels = plan_kernels(path)
    nodes = onnx.load(exports / "fp16" / "model.onnx").graph.node
    assert (kernels.count(Kind.ATTENTION), kernels.count(Kind.SOFTMAX)) == (1, 2)
    assert sum(node.op_type in ("WindowAttention", "CarrierAttention") for node in nodes) == 3
    assert kernels.count(Kind.OTHER) == 0
    assert sum(counts(kernels).values()) == kernels.launches
    assert plan_kernels(path.read_bytes()) == kernels


# What kernels read and write
@pytest.mark.parametrize(("precision", "type_"), [("fp32", "fp32"), ("fp16", "fp16")])
def test_types_and_shapes_of_what_a_product_reads_and_writes(tmp_path: Path, precision: str, type_: str) -> None:
    kernels = kernels_of([nn.Flatten(0, 1), nn.Linear(DIM, 3 * DIM), nn.LayerNorm(3 * DIM)], tmp_path, "2", precision)
    (gemm,) = (kernel for kernel in kernels.kernels if kernel.kind is Kind.GEMM)
    matrices = [(t.type, t.shape, t.constant) for t in gemm.inputs if t.is_matrix]
    assert matrices == [(type_, (2 * TOKENS, DIM), False), (type_, (DIM, 3 * DIM), True)]
    assert [(t.type, t.shape) for t in gemm.outputs] == [(type_, (2 * TOKENS, 3 * DIM))]
    first, last = kernels.kernels[0], kernels.kernels[-1]
    assert {tensor.type for tensor in first.inputs if tensor.name == "images.1"} == {"fp32"}
    assert [(t.type, math.prod(map(int, t.shape))) for t in last.outputs] == [("fp32", 2 * TOKENS * 3 * DIM)]  # type: ignore[arg-type]
    written = {tensor.name for kernel in kernels.kernels for tensor in kernel.outputs}
    read = {tensor.name for kernel in kernels.kernels for tensor in kernel.inputs if not tensor.constant}
    assert read - written == {"images.1"}  # every other one is written before it is read


def test_sides_that_depend_on_the_batch_are_unknown(tmp_path: Path) -> None:
    kernels = kernels_of([Layer()], tmp_path, "1:8:32")
    (gemm,) = (kernel for kernel in kernels.kernels if kernel.kind is Kind.GEMM)
    (activations,) = (tensor for tensor in gemm.inputs if tensor.is_matrix and not tensor.constant)
    assert activations.shape[-1] == DIM
    assert None in activations.shape
    assert all(None not in tensor.shape for tensor in gemm.inputs if tensor.constant)


@pytest.mark.parametrize("name", ["fp32", "fp16", "fp16-static1", "int8"])
def test_what_is_read_was_written_before_or_is_an_image(graphs: Graphs, name: str) -> None:
    """Views are called after what they are views of."""
    written = {"images.1"}
    for kernel in plan_kernels(graphs.plan(name)).kernels:
        assert {tensor.name for tensor in kernel.inputs if not tensor.constant} <= written
        written |= {tensor.name for tensor in kernel.outputs}
    assert "logits.1" in written


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_products_in_8_bits_read_8_bits(graphs: Graphs, precision: str) -> None:
    kernels = plan_kernels(graphs.plan(precision))
    for block in graphs.quantised_blocks:
        computing = [k for k in kernels.kernels if k.kind in (Kind.GEMM, Kind.CONVOLUTION)]
        (product,) = (k for k in computing if any(node.startswith(f"{block}/Dequantize") for node in k.nodes))
        assert {tensor.type for tensor in product.inputs if tensor.is_matrix} == {precision}


def test_convolutions_read_images_and_filters(graphs: Graphs) -> None:
    kernels = plan_kernels(graphs.plan("fp16", "8.9", "4"))
    convs = [kernel for kernel in kernels.kernels if kernel.kind is Kind.CONVOLUTION]
    second = next(kernel for kernel in convs if "patch_embed.conv_down.3/Conv_0" in kernel.nodes)
    shapes = [(tensor.type, tensor.shape) for tensor in second.inputs if tensor.is_matrix]
    assert ("fp16", (4, 4, 3, 3)) in shapes
    assert ("fp16", (4, 4, 112, 112)) in shapes


def test_every_profile_has_a_listing_of_its_own(graphs: Graphs, tmp_path: Path) -> None:
    """Of a batch of one, the head is a sum of products; of more, a matrix product."""
    request = BuildRequest(
        onnx=graphs("fp16"),
        engine=tmp_path / "plan",
        runtime="tensorrt-rtx",
        precision="fp16",
        input_name="images",
        image_shape=(3, 224, 224),
        profiles=(BatchRange(1, 1, 1), BatchRange(2, 4, 8), BatchRange(8, 16, 32)),
        compute_capability="8.9",
    )
    plan = build_engine(request).path
    one, few, many = (plan_kernels(plan, profile) for profile in range(3))
    heads = [next(k for k in each.kernels if "head/Gemm_0" in k.nodes) for each in (one, few, many)]
    assert [head.kind for head in heads] == [Kind.REDUCTION, Kind.GEMM, Kind.GEMM]
    assert counts(few) == counts(many)
    assert few.targets == one.targets == ("sm89",)
    (whole,) = {tensor.shape for tensor in one.kernels[0].inputs if tensor.name.startswith("images")}
    assert whole == (1, 3, 224, 224)
    assert None in {side for kernel in few.kernels for tensor in kernel.inputs for side in tensor.shape}
    with pytest.raises(FasterViTError, match="has 3 optimisation profiles, so none has number 3"):
        plan_kernels(plan, profile=3)


@pytest.mark.parametrize("content", [b"", b"not a plan", b"header {\n", b"header {\n}\nmain {\n", b"\0" * 1000])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(FasterViTError, match=r"other' is no TensorRT-RTX plan"):
        plan_kernels(path)
    with pytest.raises(FasterViTError, match="this is no TensorRT-RTX plan"):
        plan_kernels(content)
    with pytest.raises(FasterViTError, match="is no file"):
        plan_kernels(tmp_path)


def test_absent_profiles_and_branches_are_refused(exports: Path) -> None:
    plan = (exports / "fp16" / "model.rtx-sm89.engine").read_bytes()
    with pytest.raises(FasterViTError, match="has 1 optimisation profiles, so none has number 1"):
        plan_kernels(plan, profile=1)
    with pytest.raises(FasterViTError, match="branches"):
        plan_kernels(plan.replace(b"  avgpool={", b"  cjmp={   "))
