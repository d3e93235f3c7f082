"""An int8 graph with Q/DQ in, the form of it that ONNX Runtime's CPU provider runs fastest out. For that provider only.

ONNX Runtime computes few Q/DQ graphs in int8 as they stand: it keeps a Gemm with a float bias in float32, and a product
of two *signed* operands takes a kernel a tenth as fast as that for unsigned activations. So everything is spelt out:

- Linear layers become ``MatMulIntegerToFloat``: unsigned activations, bias and scales applied in float32. Values are
  moved by 128, which changes no number.
- Convolutions become ``QLinearConv`` on channels-last tensors, the one layout with a direct int8 kernel; what lies
  between them follows, so that transposes remain at the ends only. This operator rounds its output to 8 bits too, which
  takes a range, and is where this form is coarser than the Q/DQ graph; a residual sum still adds in float32.
- Window attention becomes ONNX Runtime's own kernel, in float32, with q, k and v from a product each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK
from fastervit_trt.export.runtime_attention import use_runtime_attention

__all__ = ["CpuForm", "grid_after_gelu", "to_cpu_form"]

_MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
_OWN = frozenset({"MatMulIntegerToFloat", "QLinearConv"})  # of it, in place of the standard ones where there are both
_OPSET = 23  # the first with Attention; the graph's other operators mean the same there
_MIDDLE = 128  # the unsigned 8-bit integer that stands for the signed 0
_GELU_LOWEST = -0.17  # Gelu's minimum is -0.16998
_LARGEST_BIAS = 2.0**30  # of a convolution's int32 sum, which needs the other half for the products
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_ELEMENTWISE = frozenset({"Add", "Gelu", "Relu"})


@dataclass(frozen=True)
class CpuForm:
    """What :func:`to_cpu_form` rewrote, and what it found in floating point."""

    products: int  # linear layers in int8
    convolutions: int  # in int8
    attentions: int  # given to ONNX Runtime's kernel
    left: int  # convolutions and linear layers of the main graph that stay in float32


@dataclass(frozen=True)
class _Layer:
    """A quantised layer as the Q/DQ graph describes it."""

    name: str
    block: str
    data: ir.Value  # what it reads, before it is quantised
    scale: float  # of its input
    weight: np.ndarray  # int8, outputs first
    weight_scales: np.ndarray  # (outputs,)
    bias: np.ndarray | None  # (outputs,)


def to_cpu_form(model: ir.Model, output_amax: Mapping[str, float]) -> CpuForm:
    """Rewrite ``model`` in place.

    Gelu yields nothing below -0.17, so the input of what reads it gets the unsigned range from there up to its signed
    range's end: steps of half the size at no cost.

    Args:
        model: float32 with functions, quantised layers behind QuantizeLinear and DequantizeLinear: activations int8
            with one scale and zero point 0, weights int8 initializers with a scale per output.
        output_amax: the largest absolute output of every quantised convolution (with its bias), by block.

    Raises:
        FasterViTError: a quantised layer is not of this kind, or a convolution has no range. ``model`` may then be
            half rewritten.
    """
    rewriter = _Rewriter(model, output_amax)
    products = convolutions = 0
    for node in list(model.graph):
        layer = _layer(node)
        if layer is not None and node.op_type == "Conv":
            rewriter.convolution(node, layer)
            convolutions += 1
        elif layer is not None:
            rewriter.product(node, layer)
            products += 1
        else:
            rewriter.follow_layout(node)
    model.opset_imports[_MICROSOFT] = 1
    attentions = rewriter.attentions + use_runtime_attention(model)  # the latter behind layers that stayed in float32
    ir.passes.common.RemoveUnusedNodesPass()(model)
    left = len({node.metadata_props[BLOCK] for node in model.graph if node.op_type in ("Conv", "Gemm")})
    return CpuForm(products, convolutions, attentions, left)


class _Rewriter:
    def __init__(self, model: ir.Model, output_amax: Mapping[str, float]) -> None:
        self.model, self.graph, self.output_amax = model, model.graph, output_amax
        self.last: dict[ir.Value, ir.Value] = {}  # (B, C, H, W) → the same as (B, H, W, C)
        self.attentions = 0

    def product(self, node: ir.Node, layer: _Layer) -> None:
        """A linear layer, with the window attention that reads it if there is one."""
        data, _ = self._quantise(node, layer, layer.data)
        users = [user for user, _ in node.outputs[0].uses()]
        if [user.op_type for user in users] != ["WindowAttention"]:
            self._replace(node, self._multiply(node, layer, data))
            return
        self._attend(users[0], [self._multiply(node, _part(layer, i), data) for i in range(3)])
        self.graph.remove(node, safe=True)

    def convolution(self, node: ir.Node, layer: _Layer) -> None:
        """A convolution between a QuantizeLinear and a DequantizeLinear, all three channels last."""
        if layer.block not in self.output_amax:
            raise FasterViTError(f"{layer.block}: no range of the convolution's output; calibrate outputs too")
        data, step = self._quantise(node, layer, self._channels_last(layer.data, node))
        layer = _with_room_for_bias(layer, step)
        (narrow, scale, zero), (weight, weight_scales, weight_zeros) = data, self._weights(layer, layer.weight)
        largest = max(self.output_amax[layer.block], float(np.finfo(np.float32).tiny) * 127)
        out_scale = self._constant(f"{layer.name}/output_scale", np.float32(largest / 127))
        out_zero = self._constant(f"{layer.name}/output_zero", np.uint8(_MIDDLE))
        inputs = [narrow, scale, zero, weight, weight_scales, weight_zeros, out_scale, out_zero]
        if layer.bias is not None:
            bias = np.rint(layer.bias.astype(np.float64) / (step * layer.weight_scales.astype(np.float64)))
            inputs.append(self._constant(f"{layer.name}/bias_int32", bias.astype(np.int32)))
        geometry = [node.attributes[key] for key in ("kernel_shape", "pads", "strides", "dilations", "group")]
        result = self._node(node, "QLinearConv", inputs, layer.name, [*geometry, ir.AttrInt64("channels_last", 1)])
        result.dtype = ir.DataType.UINT8
        wide = self._node(node, "DequantizeLinear", [result, out_scale, out_zero], f"{layer.name}/dequantise")
        self._replace_channels_last(node, wide)

    def follow_layout(self, node: ir.Node) -> None:
        """Bring a node that has no need of channels first into the layout of the convolution before it."""
        first = node.inputs[0] if node.inputs else None
        if first is None:
            return
        if node.op_type == "Transpose" and _order(node) == _TO_LAST and first in self.last:
            self._replace(node, self.last[first])
        elif node.op_type == "Transpose" and _order(node) == _TO_FIRST:
            self.last[node.outputs[0]] = first
        elif node.op_type in _ELEMENTWISE and any(value in self.last for value in node.inputs) and _one_shape(node):
            inputs = [self._channels_last(value, node) for value in node.inputs if value is not None]
            attributes = list(node.attributes.values())
            self._replace_channels_last(node, self._node(node, node.op_type, inputs, f"{node.name}/last", attributes))

    def _quantise(self, node: ir.Node, layer: _Layer, data: ir.Value) -> tuple[tuple[ir.Value, ...], float]:
        """``data`` in unsigned 8-bit integers with its scale and zero point, and the scale as a number."""
        step, middle = layer.scale, _MIDDLE
        producers = (data.producer(), layer.data.producer())  # ``data`` may be a transpose of it
        if any(p is not None and p.op_type == "Gelu" for p in producers):
            step, middle = grid_after_gelu(127 * layer.scale)
        scale = self._constant(f"{layer.name}/input_scale", np.float32(step))
        zero = self._constant(f"{layer.name}/input_zero", np.uint8(middle))
        narrow = self._node(node, "QuantizeLinear", [data, scale, zero], f"{layer.name}/quantise")
        narrow.shape, narrow.dtype = data.shape, ir.DataType.UINT8
        return (narrow, scale, zero), step

    def _multiply(self, node: ir.Node, layer: _Layer, data: tuple[ir.Value, ...]) -> ir.Value:
        (narrow, scale, zero), weights = data, self._weights(layer, np.ascontiguousarray(layer.weight.T))
        inputs = [narrow, weights[0], scale, weights[1], zero, weights[2]]
        if layer.bias is not None:
            inputs.append(self._constant(f"{layer.name}/bias", layer.bias))
        result = self._node(node, "MatMulIntegerToFloat", inputs, layer.name)
        result.dtype = ir.DataType.FLOAT
        return result

    def _weights(self, layer: _Layer, weight: np.ndarray) -> list[ir.Value]:
        zeros = np.zeros(len(layer.weight_scales), np.int8)
        arrays = {"weight": weight, "weight_scale": layer.weight_scales, "weight_zero": zeros}
        return [self._constant(f"{layer.name}/{name}", array) for name, array in arrays.items()]

    def _attend(self, call: ir.Node, parts: Sequence[ir.Value]) -> None:
        bias, result = call.inputs[1], call.outputs[0]
        assert bias is not None and bias.shape is not None and result.shape is not None
        _, heads, tokens, _ = bias.shape.numpy()
        dim = result.shape[-1]
        by_window = self._constant(f"{call.name}/by_window", np.array([-1, tokens, dim], np.int64))
        in_rows = self._constant(f"{call.name}/in_rows", np.array([-1, dim], np.int64))
        inputs = [self._node(call, "Reshape", [p, by_window], f"{call.name}/{i}") for i, p in enumerate(parts)]
        attributes = [ir.AttrInt64(name, heads) for name in ("q_num_heads", "kv_num_heads")]
        attributes.append(ir.AttrFloat32("scale", 1.0))  # it is in the weights of q
        windows = self._node(call, "Attention", [*inputs, bias], f"{call.name}", attributes)
        self._replace(call, self._node(call, "Reshape", [windows, in_rows], f"{call.name}/rows"))
        self.model.opset_imports[""] = _OPSET
        for function in self.model.functions.values():
            function.opset_imports[""] = _OPSET
        self.attentions += 1

    def _channels_last(self, value: ir.Value, before: ir.Node) -> ir.Value:
        if value not in self.last:
            order = [ir.AttrInt64s("perm", _TO_LAST)]
            self.last[value] = self._node(before, "Transpose", [value], f"{value.name}/channels_last", order)
            self.last[value].shape, self.last[value].type = _permuted(value.shape, _TO_LAST), value.type
        return self.last[value]

    def _replace_channels_last(self, node: ir.Node, last: ir.Value) -> None:
        """``last`` is what ``node`` yields, channels last; who wants it channels first reads a transpose of it."""
        last.shape, last.dtype = _permuted(node.outputs[0].shape, _TO_LAST), ir.DataType.FLOAT
        order = [ir.AttrInt64s("perm", _TO_FIRST)]
        first = self._node(node, "Transpose", [last], f"{node.name}/channels_first", order)
        self.last[first] = last
        self._replace(node, first)

    def _replace(self, node: ir.Node, new: ir.Value) -> None:
        old = node.outputs[0]
        if new.shape is None:
            new.shape, new.type = old.shape, old.type
        if old.is_graph_output():
            old.name, new.name = f"{old.name}/replaced", old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _node(
        self, before: ir.Node, operator: str, inputs: Sequence[ir.Value], name: str, attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        props = {BLOCK: before.metadata_props[BLOCK]} if BLOCK in before.metadata_props else {}
        domain = _MICROSOFT if operator in _OWN else ""
        node = ir.Node(domain, operator, inputs, attributes=attributes, name=name, metadata_props=props)
        node.outputs[0].name = f"{name}/{operator}"
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self.graph.initializers[name] = value
        return value


def grid_after_gelu(largest: float) -> tuple[float, int]:
    """Step and zero point of the 256 values from Gelu's minimum up to ``largest``."""
    step = float(np.float32((largest - _GELU_LOWEST) / 255))
    return step, round(-_GELU_LOWEST / step)


def _layer(node: ir.Node) -> _Layer | None:
    """``node`` as a quantised layer; None if it is none."""
    if node.op_type not in ("Conv", "Gemm") or node.domain:
        return None
    wide, weight = (_dequantised(value) for value in node.inputs[:2])
    quantise = wide.inputs[0].producer() if wide is not None and wide.inputs[0] is not None else None
    if wide is None or weight is None or quantise is None:
        return None
    block = node.metadata_props.get(BLOCK, node.name or "")
    scale, zero, steps, scales = (_number(v) for v in (*quantise.inputs[1:3], *weight.inputs[:2]))
    zeros = _number(weight.inputs[2]) if len(weight.inputs) > 2 else np.zeros(1)
    bias = _number(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = weight.attributes["axis"].value if "axis" in weight.attributes else 1
    transposed = node.op_type == "Conv" or ("transB" in node.attributes and node.attributes["transB"].value == 1)
    signed = zero.dtype == steps.dtype == np.int8 and not zero.any() and not zeros.any()
    if not signed or scale.size != 1 or scales.shape != steps.shape[:1] or axis != 0 or not transposed:
        raise FasterViTError(
            f"{block}: not quantised as ONNX Runtime's CPU form needs it: int8 with zero point 0, one scale for the "
            "input and one per output for the weights, which come outputs first"
        )
    data = quantise.inputs[0]
    assert data is not None
    return _Layer(node.name or block, block, data, float(scale.item()), steps, scales, bias)


def _dequantised(value: ir.Value | None) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _number(value: ir.Value | None) -> np.ndarray:
    if value is None or value.const_value is None:
        raise FasterViTError(f"{value.name if value is not None else 'an input'} of a quantised layer is no constant")
    return value.const_value.numpy()


def _part(layer: _Layer, index: int) -> _Layer:
    """q, k or v of a layer that yields all three."""
    weight, scales = (np.split(array, 3)[index] for array in (layer.weight, layer.weight_scales))
    bias = np.split(layer.bias, 3)[index] if layer.bias is not None else None
    return replace(layer, name=f"{layer.name}/{'qkv'[index]}", weight=weight, weight_scales=scales, bias=bias)


def _with_room_for_bias(layer: _Layer, step: float) -> _Layer:
    """The bias joins the int32 sum, which it would overflow where weights are next to nothing: those get coarser."""
    if layer.bias is None:
        return layer
    least = np.abs(layer.bias.astype(np.float64)) / (step * _LARGEST_BIAS)
    scales = np.maximum(layer.weight_scales, least).astype(np.float32)
    ratio = (layer.weight_scales.astype(np.float64) / scales).reshape(-1, 1, 1, 1)
    return replace(layer, weight=np.rint(layer.weight * ratio).astype(np.int8), weight_scales=scales)


def _one_shape(node: ir.Node) -> bool:
    shapes = [value.shape if value is not None else None for value in node.inputs]
    return shapes[0] is not None and len(shapes[0]) == 4 and all(shape == shapes[0] for shape in shapes)


def _order(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()


def _permuted(shape: ir.Shape | None, order: Sequence[int]) -> ir.Shape | None:
    return ir.Shape([shape[i] for i in order]) if shape is not None else None
