"""What TensorRT's engine inspector says of an engine in, the kernels one inference launches out; 10.x and 11.x.

The text is ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)`` of an engine that was built with
``ProfilingVerbosity.DETAILED``. What is known of it, and from where, is in tests/engines/recorded/README.md; in short:

* 10.x gives a tensor's layout and type in one field (``Format/Datatype``), 11.x in two (``Format``, ``Datatype``).
  Layers of the library spell the type within the layout (``Row major linear FP16 format``), Myelin alone (``Half``).
* With a dynamic batch 10.x withholds both from layers of the library, unless the inspector was given an execution
  context whose input shapes are set. Their type is ``unknown`` then; the type of their weights is told all the same.
* Myelin, the compiler, lists a layer a kernel: ``kgen`` and ``fusion`` are generated and named after what they fuse,
  ``gemm`` and ``correlation`` are the library's. Older releases cut the names of operations to three letters.
* Profiles after the first repeat the layers, each with ``[profile N]`` in its name.

A layer is taken for one launch. The library may need two (split-K), an opaque ``{ForeignNode[…]}`` needs many.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fastervit_trt.engines.kernels import EngineKernels, Kernel, KernelTensor, Kind, kind_of_generated
from fastervit_trt.errors import FasterViTError

__all__ = ["kernels_of_inspection"]

# Shapes and constants are the host's or the builder's, signals order streams: no kernels.
_NO_KERNELS = {
    *("assertion", "constant", "devicetoshapehost", "noop", "shape", "shape_call", "shapehosttodevice"),
    *("signal", "signal_and_wait", "signal_wait", "wait"),
}
_BRANCHES = {"jmp", "cjmp"}  # If and Loop: how often a layer runs depends on data
_HOST = ("int64", "bool")  # sizes and conditions: the network has no activations of these types

# Spellings of Myelin, of weights, and within the library's layouts, in lower case.
_TYPES = {
    **dict.fromkeys(("float", "fp32", "float32"), "fp32"),
    **dict.fromkeys(("half", "fp16", "float16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bf16"),
    **dict.fromkeys(("fp8", "float8", "fp8e4m3", "e4m3"), "fp8"),
    **dict.fromkeys(("fp4", "fp4e2m1"), "fp4"),
    **{name: name for name in ("int4", "int8", "int32", "int64", "uint8", "bool", "e8m0")},
}
_UNKNOWN = re.compile(r"dynamic shapes|^unknown|^none$|^$", re.IGNORECASE)

# Three letters (TensorRT 9, 10) and four (later): the same operations.
_LONGER = {operation[:3]: operation for operation in "Cast Conc Gath Mean Move Repl Resh Scat Slic Sqrt Tran".split()}

_ATTENTION = re.compile(r"_ge(mm|mv)_mha|fmha|multi_?head_?attention", re.IGNORECASE)
# The fused operators of an export, where a layer computes just that call, not what is within it.
_FUSED = re.compile(r"/((?:Fused)?(?:Window|Carrier)(?:Attention|Partition\w*|Reverse\w*))_\d+$")
_LIBRARY = (  # the first that is in the layer's type
    (r"conv|correlation|depsep", Kind.CONVOLUTION, "Corr"),
    (r"gemm|matrixmultiply|fullyconnected", Kind.GEMM, "Fc"),
    (r"softmax", Kind.SOFTMAX, ""),
    (r"norm", Kind.NORMALISATION, ""),
    (r"pool|reduce|topk|cumulative", Kind.REDUCTION, ""),
    (r"cast", Kind.CAST, ""),
    (r"shuffle|slice|concat|gather|scatter|copy|memset|padding|resize|identity|squeeze|transpose", Kind.MOVEMENT, ""),
    (r"pointwise|elementwise|activation|unary|scale|select|quantize|^add$", Kind.POINTWISE, ""),
)
# Why TensorRT put a "Reformat" layer in, where it was not for a layout.
_ORIGINS = {"QDQ": Kind.POINTWISE, "CONCAT": Kind.MOVEMENT, "IDENTITY": Kind.MOVEMENT}


def kernels_of_inspection(text: str, label: str, profile: int = 0) -> EngineKernels:
    """The kernels an engine launches per inference.

    Args:
        text: the inspector's JSON.
        label: what messages call the engine.
        profile: which optimisation profile's, where it was built with several.

    Raises:
        FasterViTError: not such a text, without details, without this profile, or with branches (If, Loop).
    """
    layers = _of_profile(_layers(text, label), label, profile)
    if any(_type_of(layer) in _BRANCHES for layer in layers):
        raise FasterViTError(f"{label} branches, so how many kernels it launches depends on its input")
    launched = (layer for layer in layers if _type_of(layer) not in _NO_KERNELS and not _is_on_host(layer))
    return EngineKernels(tuple(map(_kernel, launched)), ())


def _layers(text: str, label: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(text, strict=False)  # separators in "Metadata" are bare control characters
        layers = content["Layers"]
    except (ValueError, TypeError, KeyError):
        raise FasterViTError(
            f"{label}: TensorRT's engine inspector gave no list of layers, but {text[:80]!r}"
        ) from None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise FasterViTError(
            f"{label} was built without details of its layers; build it again with detailed profiling verbosity"
        )
    return list(layers)


def _of_profile(layers: list[dict[str, Any]], label: str, profile: int) -> list[dict[str, Any]]:
    """The layers of one profile; the first one's have no mark."""
    marks = [re.search(r"\[profile +(\d+)\]", str(layer.get("Name"))) for layer in layers]
    numbers = [int(mark[1]) if mark else 0 for mark in marks]
    if profile not in numbers:
        raise FasterViTError(f"{label} has {max(numbers) + 1} optimisation profiles, so none has number {profile}")
    return [layer for layer, number in zip(layers, numbers, strict=True) if number == profile]


def _type_of(layer: dict[str, Any]) -> str:
    return str(layer.get("LayerType", "")).lower()


def _is_on_host(layer: dict[str, Any]) -> bool:
    tensors = [*(layer.get("Inputs") or []), *(layer.get("Outputs") or [])]
    return bool(tensors) and all(str(tensor.get("Location", "")).lower() == "host" for tensor in tensors)


def _kernel(layer: dict[str, Any]) -> Kernel:
    nodes = _nodes(layer)
    generated, operations = _generated(layer)
    kind, name, operations = _classify(layer, nodes, generated, operations)
    held = [*_tensors(layer, "Constants", constant=True), *_weights(layer)]
    inputs, outputs = [*_tensors(layer, "Inputs"), *held], _tensors(layer, "Outputs")
    tensors = (tuple(tensor for tensor in side if tensor.type not in _HOST) for side in (inputs, outputs))
    return Kernel(kind, name, layer.get("TacticName") or None, operations, nodes, *tensors)


def _classify(
    layer: dict[str, Any], nodes: tuple[str, ...], generated: str, operations: tuple[str, ...]
) -> tuple[Kind, str, tuple[str, ...]]:
    """Kind, name and operations; a layer of the library is named by its type, a plugin by its own."""
    type_, tactic = str(layer.get("LayerType", "")), str(layer.get("TacticName", ""))
    if "plugin" in type_.lower() or layer.get("PluginType"):
        return Kind.PLUGIN, str(layer.get("PluginType") or type_), ()
    # Myelin runs a plugin as a "custom_layer", as it does with parts of TensorRT's own.
    fused = [operator[1] for node in nodes if (operator := _FUSED.search(node))]
    if type_ == "custom_layer" and fused:
        return Kind.PLUGIN, fused[0], ()
    if found := _ATTENTION.search(f"{generated} {tactic}"):
        return Kind.ATTENTION, generated if _ATTENTION.search(generated) else tactic or found[0], ()
    if "reformat" in type_.lower():
        return _ORIGINS.get(str(layer.get("Origin")), Kind.REFORMAT), type_, ()
    if generated:
        return kind_of_generated(generated, operations), generated, operations
    for pattern, kind, operation in _LIBRARY:
        if re.search(pattern, type_.lower()):
            activation = str(layer.get("Activation", "NONE")).capitalize()
            return kind, type_, tuple(o for o in (operation, activation) if o and o != "None")
    return Kind.OTHER, type_, ()


def _generated(layer: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Name and operations of a generated kernel: ``__myl_ReshTran_myl0_3`` → ``__myl_ReshTran``, (Resh, Tran)."""
    for text in (_unmarked(layer.get("Name")), str(layer.get("TacticName", ""))):
        bare = re.sub(r"(_mye\d+)?_myl\d+_\d+$|_0x[0-9a-f]+$", "", text)
        if bare.startswith("_ge") and _ATTENTION.match(bare):
            return bare, ()
        if match := re.fullmatch(r"__myl_(?:bb\d+_\d+_)?([A-Z]\w*)", bare):
            operations = re.findall(r"[A-Z][a-z0-9]*", match[1].removesuffix("Etc"))
            return bare, tuple(_LONGER.get(operation, operation) for operation in operations)
    return "", ()


def _nodes(layer: dict[str, Any]) -> tuple[str, ...]:
    """ONNX nodes by the layer's metadata; without, by its name. A reformat belongs to the layer that it serves."""
    nodes = re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))
    if not nodes:
        around = r"^Reformatting CopyNode for \w+ Tensor \d+ to |(_mye\d+)?_myl\d+_\d+$"
        name = re.sub(around, "", _unmarked(layer.get("Name")))
        nodes = [part for part in re.split(r"\s*\+\s*", name) if re.fullmatch(r"[\w.]+/\w+", part)]
    return tuple(dict.fromkeys(nodes))


def _unmarked(name: object) -> str:
    """The name without the mark of its profile."""
    return re.sub(r"\s*\[profile +\d+\]", "", str(name or ""))


def _tensors(layer: dict[str, Any], field: str, *, constant: bool = False) -> list[KernelTensor]:
    return [_tensor(tensor, constant) for tensor in layer.get(field) or [] if isinstance(tensor, dict)]


def _tensor(tensor: dict[str, Any], constant: bool) -> KernelTensor:
    fields = {key.lower(): value for key, value in tensor.items()}
    name = _unmarked(fields.get("name"))
    text = next((str(fields[key]) for key in ("datatype", "format/datatype", "format") if fields.get(key)), "")
    sides = tuple(None if side < 0 else int(side) for side in fields.get("dimensions") or ())
    # Myelin's own: weights, factors of a product, tables that were computed when it was built.
    constant = constant or re.search(r"_dconst$|_alpha$|_beta$|_constant[A-Z]\w*$", name) is not None
    return KernelTensor(name, _type_in(text), sides, constant)


def _type_in(text: str) -> str:
    """The type in "Half", in "Row major linear FP16 format"; as it is spelt where it is none we know."""
    if _UNKNOWN.search(text):
        return "unknown"
    return next((_TYPES[word] for word in re.findall(r"\w+", text.lower()) if word in _TYPES), text)


def _weights(layer: dict[str, Any]) -> list[KernelTensor]:
    """Weights that a layer of the library holds itself: ``{"Type": "Half", "Count": 9408}``."""
    found = []
    for field in ("Weights", "Bias"):
        held = layer.get(field)
        if isinstance(held, dict) and held.get("Count"):
            count, rows = int(held["Count"]), int(layer.get("OutMaps") or 0)
            shape = (rows, count // rows) if field == "Weights" and rows else (count,)
            found.append(KernelTensor(field.lower(), _type_in(str(held.get("Type", ""))), shape, constant=True))
    return found
