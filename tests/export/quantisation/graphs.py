"""The precisions that are tested, and how a quantised graph is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fastervit_trt.export.graph import BLOCK
from fastervit_trt.export.precision import Fp8, Fp32, Int8, Precision, Quantised
from fastervit_trt.export.quantisation.scales import activation_scale
from tests.export.quantisation.conftest import QuantisedExports

__all__ = [
    "FORMS",
    "Pair",
    "graph_of",
    "is_rounded",
    "nodes_of",
    "number",
    "pair_before",
    "producer",
    "products",
    "scale_of",
]

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
