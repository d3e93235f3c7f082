"""An ONNX graph in, the matrix products it consists of out: every Conv, MatMul and Gemm as M×N×K with its FLOP.

A convolution is the implicit product of its unfolded image (batch · out pixels, channels in · kernel) and its weight.
FLOP = 2 · batch · M · N · K; bias, activation and softmax are no matrix arithmetic and are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import shape_inference

from fastervit_trt.errors import FasterViTError

__all__ = ["Convolution", "GemmSize", "gemm_sizes"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """What a convolution has beyond its matrix size."""

    image: Shape  # B, C, H, W
    weight: Shape  # C out, C in / groups, kernel H, kernel W
    strides: Shape
    pads: Shape  # top, left, bottom, right
    groups: int

    @property
    def chainable(self) -> bool:
        """Whether its output has the shape of its input, so that it can follow itself."""
        same = self.weight[0] == self.image[1] and set(self.strides) == {1}
        return same and all(2 * pad == side - 1 for pad, side in zip(self.pads[:2], self.weight[2:], strict=True))


@dataclass(frozen=True)
class GemmSize:
    """``batch`` products (M, K) · (K, N): two nodes of one size cost the same."""

    kind: Literal["conv", "grouped conv", "matmul", "attention"]  # attention: both sides are activations
    m: int
    n: int
    k: int
    batch: int = 1  # groups of a convolution, windows · heads of an attention
    conv: Convolution | None = None

    @property
    def flop(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k

    def __str__(self) -> str:
        return f"{self.kind} {self.batch}x {self.m}x{self.n}x{self.k}"


def gemm_sizes(path: Path) -> Counter[GemmSize]:
    """Sizes in the graph at ``path`` (flat, static batch) and how many nodes have each.

    Raises:
        FasterViTError: the graph hides products in functions, or the shape of an operand is not known.
    """
    model = shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    if model.functions:
        raise FasterViTError(f"'{path.name}' calls functions, which hide matrix products; export it with --inline")
    shapes, constants = _shapes(model.graph), {i.name for i in model.graph.initializer}
    sizes: Counter[GemmSize] = Counter()
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            operands = [shapes.get(name, ()) for name in (*node.input[:2], node.output[0])]
            if not all(operands) or 0 in sum(operands, ()):
                raise FasterViTError(f"{node.name}: its shapes are not static; export it with a static --batch")
            sizes[_size(node, operands, node.input[1] in constants)] += 1
    return sizes


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return shapes


def _size(node: onnx.NodeProto, operands: list[Shape], constant: bool) -> GemmSize:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    a, b, out = operands
    if node.op_type == "Conv":
        return _convolution(a, b, out, attributes)
    k = a[0] if attributes.get("transA") else a[-1]
    if node.op_type == "Gemm" or (constant and len(b) == 2):
        return GemmSize("matmul", math.prod(out[:-1]), out[-1], k)
    return GemmSize("attention", out[-2], out[-1], k, batch=math.prod(out[:-2]))


def _convolution(image: Shape, weight: Shape, out: Shape, attributes: dict[str, Any]) -> GemmSize:
    if set(attributes.get("dilations", [1])) != {1} or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise FasterViTError("a convolution with dilations or automatic padding: teach gemm_sizes.py about it")
    groups = attributes.get("group", 1)
    strides, pads = tuple(attributes.get("strides", (1, 1))), tuple(attributes.get("pads", (0, 0, 0, 0)))
    kind: Literal["conv", "grouped conv"] = "conv" if groups == 1 else "grouped conv"
    m, n, k = out[0] * math.prod(out[2:]), out[1] // groups, math.prod(weight[1:])
    return GemmSize(kind, m, n, k, groups, Convolution(image, weight, strides, pads, groups))
