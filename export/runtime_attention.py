"""ONNX Runtime's own attention kernel in place of the function of ``WindowAttention``: what its name is good for there.

The function is arithmetic that every runtime has; on CPUs ONNX Runtime splits and transposes q, k and v for it on one
thread. Its ``Attention`` kernel (ONNX opset 23) does that on all. Not for a graph that is meant to travel: TensorRT 10
reads opset 20, and TensorRT-RTX takes no ``Attention`` in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fastervit_trt.export.graph import fused_calls

__all__ = ["use_runtime_attention"]

_OPSET = 23  # the first with Attention; the graph's other operators mean the same there


def use_runtime_attention(model: ir.Model) -> int:
    """Replace every float32 ``WindowAttention`` and the QKV projection before it, in place; how many were replaced.

    q, k and v come from a projection each, so that nothing has to be split.
    """
    calls = [call for call in fused_calls(model) if call.op_type == "WindowAttention" and _replaceable(call)]
    for call in calls:
        _replace(model.graph, call)
    if calls:
        model.opset_imports[""] = _OPSET
        for function in model.functions.values():
            function.opset_imports[""] = _OPSET
    return len(calls)


def _replaceable(call: ir.Node) -> bool:
    projection = call.inputs[0].producer() if call.inputs[0] is not None else None
    return (
        call.outputs[0].dtype is ir.DataType.FLOAT
        and projection is not None
        and projection.op_type == "Gemm"
        and all(value is not None and value.const_value is not None for value in projection.inputs[1:])
    )


def _replace(graph: ir.Graph, call: ir.Node) -> None:
    qkv, bias = call.inputs
    assert qkv is not None and bias is not None and bias.shape is not None
    _, heads, tokens, _ = bias.shape.numpy()
    projection = qkv.producer()
    assert projection is not None
    constants = [
        value.const_value.numpy() for value in projection.inputs[1:] if value is not None and value.const_value
    ]
    dim = constants[0].shape[0] // 3
    by_window = _constant(graph, f"{call.name}/by_window", np.array([-1, tokens, dim]))
    in_rows = _constant(graph, f"{call.name}/in_rows", np.array([-1, dim]))
    nodes, parts = [], []
    for i, part in enumerate("qkv"):
        weights = [_constant(graph, f"{call.name}/{part}_{j}", _third(c, i)) for j, c in enumerate(constants)]
        rows = ir.node("Gemm", [projection.inputs[0], *weights], {"transB": 1}, name=f"{projection.name}/{part}")
        windows = ir.node("Reshape", [rows.outputs[0], by_window], name=f"{call.name}/{part}")
        nodes += [rows, windows]
        parts.append(windows.outputs[0])
    attributes = {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0}
    attention = ir.node("Attention", [*parts, bias], attributes, name=call.name)
    result = ir.node("Reshape", [attention.outputs[0], in_rows], name=f"{call.name}/rows")
    for node in (added := [*nodes, attention, result]):
        node.metadata_props.update(call.metadata_props)
    graph.insert_before(call, added)
    ir.convenience.replace_all_uses_with(call.outputs[0], result.outputs[0])
    graph.remove([call, projection], safe=True)


def _third(array: np.ndarray, index: int) -> np.ndarray:
    return np.ascontiguousarray(np.split(array, 3)[index])


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.initializers[name] = value
    return value
