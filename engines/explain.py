"""Why 8 bits are not faster than 16, where they are not: read off the graph and the engine's kernels.

An engine gains where a product runs in 8 bits and what stands around it stays fused. It loses where a scale, a bias or
a GELU that rode along with a float16 product becomes a kernel of its own, where attention falls apart, and where most
of the work was never quantised (NVIDIA/TensorRT issue 3186 is FasterViT on a T4: INT8 1.46 ms, FP16 1.36 ms).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from fastervit_trt.engines.kernels import EngineKernels, Kernel, Kind
from fastervit_trt.engines.shapes import with_all_shapes
from fastervit_trt.export.graph import BLOCK, shape_at

__all__ = ["ATTENTIONS", "Finding", "Work", "explain", "work_of_graph"]

# TensorRT 10's written limit for fused INT8 attention (NVIDIA/TensorRT issues 2981 and 4167).
_INT8_ATTENTION_DIMS = (16, 32, 64)
ATTENTIONS = ("WindowAttention", "FusedWindowAttention", "CarrierAttention")
_PRODUCTS = (Kind.GEMM, Kind.CONVOLUTION, Kind.ATTENTION)
_TYPES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8", "FLOAT8E4M3FN": "fp8"}
_NAMED = 3  # blocks in a sentence
_BATCH = 2  # at which shapes of a dynamic batch are looked at


@dataclass(frozen=True)
class Finding:
    """One reason, and what can be done about it."""

    reason: str
    blocks: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        some = ", ".join(self.blocks[:_NAMED]) + (", …" if len(self.blocks) > _NAMED else "")
        return f"{self.reason}{f' ({some})' if some else ''}: {self.advice}"


@dataclass(frozen=True)
class Work:
    """Multiplications of one node per image, and the type it asks for."""

    node: str
    block: str
    type: str  # fp32, fp16, bf16, int8 or fp8
    macs: int


def explain(
    onnx_path: Path, kernels: EngineKernels | None = None, kernels_16: EngineKernels | None = None
) -> list[Finding]:
    """The reasons, the weightiest first.

    Args:
        onnx_path: a quantised graph.
        kernels: of an engine of it.
        kernels_16: of an engine of the same model in float16, to compare launches.
    """
    model = with_all_shapes(ir.load(onnx_path))
    findings = list(_of_graph(model))
    if kernels is not None:
        findings += _of_engine(kernels, kernels_16)
    return findings


def work_of_graph(model: ir.Model) -> list[Work]:
    """Multiplications per image of everything that multiplies matrices, in the order of the graph."""
    sides = model.graph.inputs[0].shape
    assert sides is not None
    batch = sides[0] if isinstance(sides[0], int) else _BATCH
    work = ((node, _macs(node, batch)) for node in model.graph)
    return [
        Work(str(node.name), str(node.metadata_props[BLOCK]), _type(node), macs // batch)
        for node, macs in work
        if macs is not None
    ]


def _of_graph(model: ir.Model) -> Iterator[Finding]:
    work = work_of_graph(model)
    total = sum(w.macs for w in work)
    wide = [w for w in work if w.type not in ("int8", "fp8")]
    if total and wide:
        macs: Counter[str] = Counter()
        for w in wide:
            macs[w.block] += w.macs
        share = sum(macs.values()) / total
        yield Finding(
            f"{share:.0%} of the multiplications are not in 8 bits",
            tuple(block for block, _ in macs.most_common()),
            "at best the rest takes half its time",
        )
    dims = defaultdict(list)
    for node in model.graph:
        if node.op_type in ATTENTIONS and (dim := _head_dim(node)) not in _INT8_ATTENTION_DIMS:
            dims[dim].append(str(node.metadata_props[BLOCK]))
    for dim, blocks in sorted(dims.items()):
        yield Finding(
            f"head dim {dim} has no INT8 attention in TensorRT, which takes 16, 32 and 64",
            tuple(blocks),
            "attention stays in 16 bits between its linear layers; --pad-head-dims or the plugins serve other dims",
        )


def _of_engine(kernels: EngineKernels, kernels_16: EngineKernels | None) -> Iterator[Finding]:
    apart = [k for k in kernels.kernels if k.kind not in _PRODUCTS and _computes(k, ("Gemm", "Conv"))]
    alone = [k for k in apart if k.kind is Kind.POINTWISE]
    if alone:
        yield Finding(
            f"{len(alone)} products leave their scale, bias or GELU to a kernel of its own, which reads and writes the "
            "whole activation again",
            _blocks(alone, ("Gemm", "Conv")),
            "in 16 bits these ride along with the product; large batches and wide layers still gain, small ones do not",
        )
    stranded = [k for k in kernels.kernels if k.nodes and all("QuantizeLinear" in node for node in k.nodes)]
    if stranded:
        yield Finding(
            f"{len(stranded)} kernels do nothing but quantise",
            _blocks(stranded, ("QuantizeLinear",)),
            "residual sums and attentions before them yield 16 bits; a block that gains too little for that can stay "
            "in 16 bits (--precision mixed)",
        )
    if unfused := kernels.count(Kind.SOFTMAX):
        softmaxes = [k for k in kernels.kernels if k.kind is Kind.SOFTMAX]
        yield Finding(
            f"{unfused} of {unfused + kernels.count(Kind.ATTENTION)} attentions are not one kernel",
            _blocks(softmaxes, ("Softmax",)),
            "scores go through memory; on TensorRT 10 and 11 the plugins take these attentions",
        )
    if kernels_16 is not None and kernels.launches > kernels_16.launches:
        yield Finding(
            f"{kernels.launches} kernels are launched where float16 launches {kernels_16.launches}",
            (),
            "at small batches launches are the time: capture a CUDA graph, or stay in 16 bits",
        )


def _computes(kernel: Kernel, operators: tuple[str, ...]) -> bool:
    return any(f"/{operator}_" in f"/{node}" for node in kernel.nodes for operator in operators)


def _blocks(kernels: list[Kernel], operators: tuple[str, ...]) -> tuple[str, ...]:
    """Blocks of the nodes of ``operators``; within a function, the call's."""
    found = []
    for kernel in kernels:
        for node in kernel.nodes:
            name = node.split(" | ")[-1].split(" ")[0]
            if any(operator in node for operator in operators):
                found.append(name.rpartition("/")[0])
    return tuple(dict.fromkeys(found))


def _macs(node: ir.Node, batch: int) -> int | None:
    """Multiplications of ``node``; None where it is no product."""
    if node.op_type not in (*ATTENTIONS, "Conv", "Gemm", "MatMul"):
        return None
    shapes, result = _shapes(node, batch), node.outputs[0]
    if result.shape is None or len(shapes) < 2:  # within attention that was written out
        return None
    outputs = shape_at(result, batch)
    if node.op_type == "Conv":
        return _size(outputs) * _size(shapes[1][1:])
    if node.op_type in ("Gemm", "MatMul"):
        transposed = (a := node.attributes.get("transB")) is not None and bool(a.value)
        return _size(outputs) * shapes[1][-1 if transposed else -2]
    (tokens,) = (shape[-1] for shape in shapes if len(shape) == 4)
    if node.op_type == "WindowAttention":
        return 2 * _size(outputs) * tokens
    qkv, proj = [shape for shape in shapes if len(shape) == 2][-2:]
    return outputs[0] * (_size(qkv) + _size(proj) + 2 * tokens * proj[1])


def _shapes(node: ir.Node, batch: int) -> list[tuple[int, ...]]:
    return [shape_at(value, batch) for value in node.inputs if value is not None and value.shape is not None]


def _head_dim(node: ir.Node) -> int:
    shapes = _shapes(node, _BATCH)
    heads = next(shape for shape in shapes if len(shape) == 4)[1]
    if node.op_type == "WindowAttention":
        return shapes[0][1] // 3 // heads
    return [shape for shape in shapes if len(shape) == 2][-1][1] // heads


def _type(node: ir.Node) -> str:
    """The type its first input was rounded to, or has."""
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return "" if value is None or value.dtype is None else _TYPES.get(value.dtype.name, value.dtype.name.lower())


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
