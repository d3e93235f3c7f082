"""Fused operators in ONNX: calls of domain ``fastervit``, and for each operator a function that says what it means.

A TensorRT with the plugin library takes a call for the plugin, where the kernels serve it; every other runtime takes
the function, whose body the exporter makes from ``plugins.reference``. The calls of an operator differ in sizes, its
function is one: constants in which the bodies differ become attributes of the calls. (ONNX's ``overload`` would allow
several bodies, but TensorRT-RTX 1.7 ignores it and gives every call the same one.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import values

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import UNSERVED, fused_calls, shape_at
from fastervit_trt.plugins.limits import unserved_call
from fastervit_trt.plugins.names import DOMAIN, PLUGIN_VERSION
from fastervit_trt.plugins.operators import OPERATORS, SCALARS, Operator

__all__ = ["Trace", "add_functions", "exporter_translations"]

# A function of tensors, an example of each, and whether its leading axis grows with the batch → its ONNX graph.
Trace = Callable[[Callable[..., torch.Tensor], Sequence[torch.Tensor], Sequence[bool]], ir.Model]

_VERSION = 1  # of the domain's operators
_EXAMPLE_BATCH = 2
_CONSTANT_NAMES = {
    ("Reshape", 1): "shape",
    ("Slice", 1): "starts",
    ("Slice", 2): "ends",
    ("Slice", 3): "axes",
    ("Slice", 4): "steps",
    ("Gather", 1): "indices",
}

_DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

_Use = tuple[int, int]  # node of a body, input of the node
_TRACED: dict[Any, bytes] = {}  # operator, opset and signature → the model that is its body


def exporter_translations() -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=…)``: torch operators become calls of ONNX operators."""
    by_torch_name: dict[str, list[Operator]] = {}
    for operator in OPERATORS:
        by_torch_name.setdefault(operator.torch_name, []).append(operator)
    namespace = getattr(torch.ops, DOMAIN)
    return {getattr(namespace, name).default: _translation(variants) for name, variants in by_torch_name.items()}


def add_functions(model: ir.Model, trace: Trace) -> None:
    """Give ``model`` the functions of the fused operators it calls, and the calls what plugins and functions need.

    Calls that the kernels do not serve name no plugin, so that TensorRT takes the function, and say why.

    Raises:
        FasterViTError: the bodies of one operator differ in more than constants.
    """
    for operator in OPERATORS:
        calls = [node for node in fused_calls(model) if node.op_type == operator.onnx_name]
        bodies: dict[Any, ir.Graph] = {}
        for call in calls:
            if _signature(operator, call) not in bodies:
                bodies[_signature(operator, call)] = _body(operator, call, model.opset_imports[""], trace)
        if not bodies:
            continue
        varying = _varying_constants(operator, list(bodies.values()))
        for call in calls:
            for use, name in varying.items():
                call.attributes[name] = ir.AttrInt64s(name, _constant(bodies[_signature(operator, call)], use) or [])
            if (reason := _unserved(operator, call)) is not None:
                call.metadata_props[UNSERVED] = reason
                continue
            call.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
            call.attributes["plugin_version"] = ir.AttrString("plugin_version", PLUGIN_VERSION)
        function = _function(operator, next(iter(bodies.values())), varying)
        model.functions[function.identifier()] = function


def _translation(variants: Sequence[Operator]) -> Callable[..., Any]:
    opset = values.Opset(DOMAIN, _VERSION)
    onnx_operators = {variant.onnx_name: values.Op(opset, variant.onnx_name, _schema(variant)) for variant in variants}
    names = variants[0].arguments

    def translate(*args: Any) -> Any:
        given = dict(zip(names, args, strict=True))
        optional = {name for variant in variants for name in variant.without}
        left_out = {name for name in optional if given[name] is None or (name in SCALARS and given[name] == 0)}
        variant = next(v for v in variants if set(v.without) == left_out)
        scalars = {name: given[name] for name in variant.attributes}
        return onnx_operators[variant.onnx_name](*(given[name] for name in variant.inputs), **scalars)

    return translate


def _schema(operator: Operator) -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    kinds = {"int": schema.AttrType.INT, "float": schema.AttrType.FLOAT}
    return schema(
        operator.onnx_name,
        DOMAIN,
        _VERSION,
        inputs=[schema.FormalParameter(name, "T") for name in operator.inputs],
        outputs=[schema.FormalParameter("result", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[schema.Attribute(name, kinds[kind]) for name, kind in operator.attributes.items()],
    )


def _unserved(operator: Operator, call: ir.Node) -> str | None:
    shapes = dict(zip(operator.inputs, map(_example_shape, call.inputs), strict=True))
    return unserved_call(operator, _DTYPES[_torch_dtype(call.inputs[0])], shapes, _scalars(operator, call))


def _scalars(operator: Operator, call: ir.Node) -> dict[str, int | float]:
    return {name: call.attributes[name].value for name in operator.attributes}


def _signature(operator: Operator, call: ir.Node) -> Any:
    """What the body of a call depends on: sizes, types and attributes, not the batch."""
    inputs = tuple((_example_shape(value), _torch_dtype(value)) for value in call.inputs)
    return inputs, tuple(call.attributes[name].value for name in operator.attributes)


def _body(operator: Operator, call: ir.Node, opset: int, trace: Trace) -> ir.Graph:
    """A copy of the body; traced once for all the exports of a process, which takes longer than the model itself."""
    key = (operator, opset, _signature(operator, call))
    if key not in _TRACED:
        _TRACED[key] = ir.to_proto(_traced(operator, call, trace)).SerializeToString()
    return ir.from_proto(onnx.load_from_string(_TRACED[key])).graph


def _traced(operator: Operator, call: ir.Node, trace: Trace) -> ir.Model:
    attributes = _scalars(operator, call)
    examples = [torch.zeros(_example_shape(v), dtype=_torch_dtype(v)) for v in call.inputs]

    def definition(*tensors: torch.Tensor) -> torch.Tensor:
        return operator.call(tensors, attributes)

    return trace(definition, examples, [name in operator.batched for name in operator.inputs])


def _example_shape(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None
    return shape_at(value, _EXAMPLE_BATCH)


def _torch_dtype(value: ir.Value | None) -> torch.dtype:
    assert value is not None and value.dtype is not None, value
    return {
        ir.DataType.FLOAT: torch.float32,
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.BFLOAT16: torch.bfloat16,
    }[value.dtype]


def _varying_constants(operator: Operator, bodies: list[ir.Graph]) -> dict[_Use, str]:
    """The uses of constants in which ``bodies`` differ, each with the attribute that shall hold it."""
    first, *others = bodies
    for other in others:
        for mine, its in zip_longest(_structure(first), _structure(other)):
            if mine != its:
                raise FasterViTError(
                    f"torch {torch.__version__} exports {operator.onnx_name} in two forms, {mine} and {its}, which one "
                    "ONNX function cannot hold; use the torch version of requirements/constraints.txt and report this"
                )
    varying: dict[_Use, str] = {}
    numbers: Counter[str] = Counter()
    for index, node in enumerate(first):
        for position in range(len(node.inputs)):
            use = (index, position)
            if _constant(first, use) is None or all(_constant(b, use) == _constant(first, use) for b in others):
                continue
            kind = _CONSTANT_NAMES.get((node.op_type, position), f"input{position}")
            varying[use] = f"{node.op_type.lower()}_{numbers[node.op_type]}_{kind}"
        numbers[node.op_type] += 1
    return varying


def _structure(body: ir.Graph) -> Iterator[tuple[Any, ...]]:
    """Each node of ``body`` without its constants: operator, attributes, and where its inputs come from."""
    places = {value: f"input {i}" for i, value in enumerate(body.inputs)}
    for index, node in enumerate(body):
        places.update({value: f"node {index} output {i}" for i, value in enumerate(node.outputs)})
        attributes = sorted((a.name, str(a.value)) for a in node.attributes.values())
        yield node.op_type, attributes, [places.get(v, "constant") if v is not None else None for v in node.inputs]


def _constant(body: ir.Graph, use: _Use) -> list[int] | None:
    value = body[use[0]].inputs[use[1]]
    return None if value is None or value.const_value is None else value.const_value.numpy().tolist()


def _function(operator: Operator, body: ir.Graph, varying: dict[_Use, str]) -> ir.Function:
    """``body`` as a function: every constant a node of its own, the varying ones taken from the call."""
    uses = [
        (i, j) for i, node in enumerate(body) for j in range(len(node.inputs)) if _constant(body, (i, j)) is not None
    ]
    nodes = list(body)
    for index, position in uses:
        node = nodes[index]
        old = node.inputs[position]
        assert old is not None and old.const_value is not None
        name = varying.get((index, position))
        content = ir.AttrTensor("value", ir.tensor(old.const_value.numpy())) if name is None else _reference(name)
        constant = ir.Node("", "Constant", [], attributes=[content], name=f"{node.name}/input{position}")
        constant.outputs[0].name = f"{node.name}/input{position}"
        constant.outputs[0].type, constant.outputs[0].shape = old.type, old.shape
        node.replace_input_with(position, constant.outputs[0])
        body.insert_before(node, constant)
    body.initializers.clear()
    for name, value in zip(operator.inputs, body.inputs, strict=True):
        value.name = name
    attributes = [ir.Attr(name, _kind(kind), None) for name, kind in operator.attributes.items()]
    attributes += [ir.Attr(name, ir.AttributeType.INTS, None) for name in varying.values()]
    return ir.Function(DOMAIN, operator.onnx_name, graph=body, attributes=attributes)


def _reference(name: str) -> ir.Attr:
    return ir.RefAttr("value_ints", name, ir.AttributeType.INTS)


def _kind(kind: str) -> ir.AttributeType:
    return ir.AttributeType.FLOAT if kind == "float" else ir.AttributeType.INT
