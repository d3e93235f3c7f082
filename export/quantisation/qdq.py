"""A typed graph and ranges in, the same graph with QuantizeLinear and DequantizeLinear around what runs in 8 bits out.

Weights become 8-bit initializers with a DequantizeLinear each, scale per output channel; activations get a pair with
one scale before every layer that reads them. That is what TensorRT takes for a quantised layer; biases stay as they
are, it refuses those of int32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK, inline_call
from fastervit_trt.export.precision import Quantised
from fastervit_trt.export.quantisation.calibration import OUTPUT_OF
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.scales import activation_scale, quantised_weights, weight_scales
from fastervit_trt.export.quantisation.simulation import stream_of

__all__ = ["QuantisationReport", "insert_qdq"]

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class QuantisationReport:
    """What runs in 8 bits and what does not."""

    type: str
    base: str
    calibrator: str
    blocks: list[str]  # quantised
    left: dict[str, list[str]]  # why not → blocks
    calibration: dict[str, object]  # what the ranges come from
    attention: bool = False
    residual: bool = False
    form: str | None = None  # the one runtime it is made for; None: any that knows Q/DQ

    def __str__(self) -> str:
        extras = [name for name, chosen in (("attention", self.attention), ("residual sums", self.residual)) if chosen]
        kept = ", ".join(f"{len(blocks)} {reason}" for reason, blocks in self.left.items())
        return (
            f"{self.type}: {', '.join([f'{len(self.blocks)} layers', *extras])}, ranges by {self.calibrator} from "
            f"{self.calibration['images']} images; in {self.base}: {kept}, LayerNorm, softmax"
            f"{'' if self.residual else ', residual sums'}{f'; for {self.form} alone' if self.form else ''}"
        )


def insert_qdq(model: ir.Model, blocks: Collection[str], precision: Quantised, ranges: Ranges) -> None:
    """Quantise the layers called ``blocks`` in ``model``, in place.

    Raises:
        FasterViTError: a block has no product in the graph, or no range.
    """
    products = {
        n.metadata_props[BLOCK]: n for n in model.graph if n.op_type in _PRODUCTS and _weight_axis(n) is not None
    }
    rewriter = _Rewriter(model, precision)
    for block in blocks:
        if block not in products:
            raise FasterViTError(f"the graph has no convolution or matrix product for {block}, which was calibrated")
        rewriter.quantise_weight(products[block])
        rewriter.quantise_input(products[block], 0, ranges.of(block, precision))
    if precision.residual:
        for block in blocks:
            if (stream := stream_of(block)) is not None:
                branch = ranges.of(OUTPUT_OF.format(block), precision)
                rewriter.quantise_sum(products[block], ranges.of(stream, precision), branch)
    if precision.attention:
        for call in [n for n in model.graph if n.op_type == "WindowAttention"]:
            block = call.metadata_props[BLOCK]
            if f"{block}.qkv" in products and f"{block}.qkv" in blocks:
                rewriter.quantise_attention(call, *(ranges.of(f"{block}:{part}", precision) for part in "qkv"))
        ir.passes.common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]


class _Rewriter:
    def __init__(self, model: ir.Model, precision: Quantised) -> None:
        self.model, self.graph, self.precision = model, model.graph, precision
        self.zero = self._initializer("quantised/zero", np.zeros((), _NUMPY[precision.dtype]))

    def quantise_weight(self, node: ir.Node) -> None:
        weight, axis = node.inputs[1], _weight_axis(node)
        assert weight is not None and weight.const_value is not None and axis is not None
        values = torch.from_numpy(weight.const_value.numpy().astype(np.float32))
        scales = weight_scales(values, axis, self.precision)
        steps = quantised_weights(values, axis, scales, self.precision)
        inputs = [
            self._initializer(f"{node.name}/weight", _to_numpy(steps)),
            self._initializer(f"{node.name}/weight_scale", _to_numpy(scales)),
        ]
        back = self._node("DequantizeLinear", inputs, f"{node.name}/weight_dequantise", node, axis)
        back.shape, back.type = weight.shape, weight.type
        node.replace_input_with(1, back)
        if not weight.uses():
            del self.graph.initializers[weight.name]  # type: ignore[arg-type]

    def quantise_input(self, node: ir.Node, index: int, largest: float) -> None:
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, self._pair(value, largest, f"{node.name}/input{index}", before=node))

    def quantise_sum(self, branch: ir.Node, stream_range: float, branch_range: float) -> None:
        """Both inputs of the sum that the residual branch ending in ``branch`` is added in."""
        (total,) = [node for node, _ in branch.outputs[0].uses() if node.op_type == "Add"]
        index = 1 - list(total.inputs).index(branch.outputs[0])
        stream = total.inputs[index]
        assert stream is not None
        self.quantise_input(total, 1 - index, branch_range)
        users = list(stream.uses())
        # The layer that reads the stream itself may have rounded it to this very grid: twice says no more than once.
        pair = next(
            (node for node, _ in users if _quantises(node, activation_scale(stream_range, self.precision))), None
        )
        if pair is None:
            first = min((node for node, _ in users), key=list(self.graph).index)
            rounded = self._pair(stream, stream_range, f"{total.name}/stream", before=first)
        else:
            users = [use for use in users if use.node is not pair]
            ((dequantise, _),) = pair.outputs[0].uses()
            rounded = dequantise.outputs[0]
        for node, position in users:
            node.replace_input_with(position, rounded)

    def quantise_attention(self, call: ir.Node, q: float, k: float, v: float) -> None:
        block = call.metadata_props[BLOCK]
        before = set(self.graph)
        inline_call(self.model, call)
        products = [node for node in self.graph if node not in before and node.op_type == "MatMul"]
        if len(products) != 2:
            raise FasterViTError(f"{block} has {len(products)} matrix products where attention has two; report this")
        scores, context = products
        for node, index, largest in ((scores, 0, q), (scores, 1, k), (context, 0, 1.0), (context, 1, v)):
            self.quantise_input(node, index, largest)

    def _pair(self, value: ir.Value, largest: float, name: str, before: ir.Node) -> ir.Value:
        scale = self._initializer(f"{name}_scale", _to_numpy(activation_scale(largest, self.precision)))
        narrow = self._node("QuantizeLinear", [value, scale, self.zero], f"{name}_quantise", before)
        narrow.shape, narrow.type = value.shape, ir.TensorType(self.zero.dtype or ir.DataType.INT8)
        wide = self._node("DequantizeLinear", [narrow, scale, self.zero], f"{name}_dequantise", before)
        wide.shape, wide.type = value.shape, value.type
        return wide

    def _node(self, op: str, inputs: list[ir.Value], name: str, before: ir.Node, axis: int | None = None) -> ir.Value:
        props = {BLOCK: before.metadata_props[BLOCK]}
        attributes = None if axis is None else {"axis": axis}
        node = ir.node(op, inputs, attributes, name=name, metadata_props=props)
        node.outputs[0].name = name
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self.graph.initializers[name] = value
        return value


_NUMPY = {torch.int8: np.dtype(np.int8), torch.float8_e4m3fn: np.dtype(ml_dtypes.float8_e4m3fn)}


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype is torch.float8_e4m3fn:
        return tensor.view(torch.int8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


def _quantises(node: ir.Node, scale: torch.Tensor) -> bool:
    """Whether ``node`` rounds to the grid of ``scale``."""
    if node.op_type != "QuantizeLinear" or (value := node.inputs[1]) is None or value.const_value is None:
        return False
    return float(value.const_value.numpy()) == float(scale)


def _weight_axis(node: ir.Node) -> int | None:
    """The axis of output channels in a product's constant weights; None without such."""
    weight = node.inputs[1] if node.op_type in _PRODUCTS else None
    if weight is None or weight.const_value is None:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.value else 1
    return len(weight.const_value.shape) - 1
