"""Where ONNX Runtime spends its time in an int8 graph, in which type, and why not all of it in int8.

Its own profile in; shares per type, per operator and per kind of block out, each split by type and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastervit_trt.benchmarks.studies.cpu_profile import NodeTime, ProfileRow, node_times, shares
from fastervit_trt.export.quantisation.operands import unit_of

__all__ = ["Int8ProfileRow", "profile_int8"]

_INT8, _FLOAT32 = "int8", "float32"
_CONVERSIONS = {"QuantizeLinear": "float32 to int8", "DequantizeLinear": "int8 to float32"}
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_MOVES = frozenset("Concat Gather ReorderInput ReorderOutput Reshape Slice Split Squeeze Transpose Unsqueeze".split())
_REASONS = {
    "Attention": "ONNX Runtime's attention kernel takes floating point alone",
    "Gelu": "ONNX Runtime's CPU provider has no Gelu in 8 bits",
    "LayerNormalization": "LayerNorm in 8 bits costs accuracy",
    "Softmax": "softmax in 8 bits costs accuracy",
    "Add": "residual sums in 8 bits cost accuracy",
}


@dataclass(frozen=True)
class Int8ProfileRow(ProfileRow):
    """One type, or what of one operator or kind of block runs in one type for one reason."""

    type: str  # "int8", "float32", "float32 to int8" or "int8 to float32"
    why: str  # it is not in int8


def profile_int8(
    model: str, path: Path, images: np.ndarray, threads: int, left: Mapping[str, str]
) -> list[Int8ProfileRow]:
    """Rows by type, then by operator, then by kind of block, the largest share first, of the flat graph at ``path``.

    Args:
        left: why convolutions and linear layers were not quantised, by block.
    """
    times = node_times(path, images, threads)
    groupings: dict[str, Callable[[NodeTime], tuple[str, str, str]]] = {
        "type": lambda node: (_type(node), _type(node), ""),
        "operator": lambda node: (node.operator, _type(node), _why(node, left)),
        "block": lambda node: (node.block, _type(node), _why(node, left)),
    }
    return [
        Int8ProfileRow(model, grouping, name, *share, kind, why)
        for grouping, key in groupings.items()
        for (name, kind, why), share in shares(times, key)
    ]


def _type(node: NodeTime) -> str:
    """What a node computes in: that of its first input, but for those between two types."""
    return _CONVERSIONS.get(node.operator, _INT8 if node.reads in ("int8", "uint8") else _FLOAT32)


def _why(node: NodeTime, left: Mapping[str, str]) -> str:
    if _type(node) == _INT8:
        return ""
    if node.operator in _CONVERSIONS:
        return "between the types"
    if node.operator in _MOVES:
        return "moves what is float32 around it"
    if node.operator in _PRODUCTS:
        return next((why for block, why in left.items() if _of_unit(node, unit_of(block))), "not quantised")
    return _REASONS.get(node.operator, "no form of it in 8 bits here")


def _of_unit(node: NodeTime, unit: str) -> bool:
    """Whether a node is of ``unit``: of a fused convolution the name is that of the layer after it."""
    return f"{node.name.split('/')[0]}.".startswith(f"{unit}.")
