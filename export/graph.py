"""Exported graphs as files and lists of nodes: what their parts are called, flattened, saved; without PyTorch.

What builds and runs engines on a device reads graphs through this module alone, so that it need not load PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common
import sympy

from fastervit_trt.models.tasks.heads import LOGITS
from fastervit_trt.plugins.names import DOMAIN

__all__ = [
    "BLOCK",
    "GRAPH_FILE",
    "INPUT",
    "OUTPUT",
    "UNSERVED",
    "fused_calls",
    "inline_call",
    "inline_functions",
    "save_onnx",
    "shape_at",
]

GRAPH_FILE = "model.onnx"  # and, past what protobuf holds, its weights in model.onnx.data
INPUT, OUTPUT = "images", LOGITS  # a backbone has outputs "stage0" … "stage3" instead; of tasks: models.tasks.heads
BLOCK = "fastervit.block"  # metadata of every node: the module it belongs to
UNSERVED = f"{DOMAIN}.unserved"  # metadata of a call: why there is no plugin for it

# protobuf refuses messages of 2 GiB, and holds several copies of what it does take; past this the weights go into
# model.onnx.data beside the graph.
_EXTERNAL_DATA_BYTES = 1_000_000_000


def save_onnx(model: ir.Model, folder: Path) -> list[Path]:
    """Write ``model.onnx`` (and ``model.onnx.data`` when weights exceed what protobuf holds); the files written."""
    path = folder / GRAPH_FILE
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size < _EXTERNAL_DATA_BYTES:
        ir.save(model, path)
        return [path]
    ir.save(model, path, external_data=f"{GRAPH_FILE}.data")
    return [path, folder / f"{GRAPH_FILE}.data"]


def fused_calls(model: ir.Model) -> list[ir.Node]:
    """The calls of fused operators, in order."""
    return [node for node in model.graph if node.domain == DOMAIN]


def inline_functions(model: ir.Model) -> None:
    """Replace every call by what it means: the flat graph, for runtimes that put functions before plugins."""
    for call in fused_calls(model):
        inline_call(model, call)
    model.functions.clear()
    model.opset_imports.pop(DOMAIN, None)
    ir.passes.common.DeduplicateInitializersPass()(model)


def inline_call(model: ir.Model, call: ir.Node) -> None:
    """Replace one call by what it means; its function stays, for the calls that are left."""
    graph, function = model.graph, model.functions[call.op_identifier()]
    actual: dict[ir.Value | None, ir.Value | None] = dict(zip(function.inputs, call.inputs, strict=True)) | {None: None}
    for node in function:
        if node.op_type == "Constant":
            actual[node.outputs[0]] = _initializer(graph, call, node)
            continue
        copy = ir.Node(
            node.domain,
            node.op_type,
            [actual[value] for value in node.inputs],
            attributes=list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{call.name}/{node.name}",
            metadata_props={name: text for name, text in call.metadata_props.items() if name != UNSERVED},
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type, new.name = old.type, f"{call.name}/{old.name}"
            actual[old] = new
        graph.insert_before(call, copy)
    for old, result in zip(call.outputs, function.outputs, strict=True):
        new_value = actual[result]
        assert new_value is not None
        new_value.shape, new_value.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, new_value, replace_graph_outputs=True)
        old.name, new_value.name = f"{name}/call", name
    graph.remove(call, safe=True)


def _initializer(graph: ir.Graph, call: ir.Node, constant: ir.Node) -> ir.Value:
    (attribute,) = constant.attributes.values()
    if attribute.is_ref():
        assert attribute.ref_attr_name is not None
        tensor = ir.tensor(list(call.attributes[attribute.ref_attr_name].value), dtype=ir.DataType.INT64)
    else:
        tensor = attribute.value
    name = f"{call.name}/{constant.outputs[0].name}"
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
    )
    graph.initializers[name] = value
    return value


def shape_at(value: ir.Value, batch: int) -> tuple[int, ...]:
    """The shape of ``value``, with numbers for what depends on the batch: ``212*batch``."""
    assert value.shape is not None, value
    return tuple(dim if isinstance(dim, int) else _evaluated(str(dim.value), batch) for dim in value.shape)


def _evaluated(dimension: str, batch: int) -> int:
    expression = sympy.sympify(dimension)
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))
