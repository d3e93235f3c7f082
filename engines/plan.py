"""A serialized TensorRT-RTX plan in, the kernels one inference launches out; read from the file, without a GPU.

A plan is compiled ahead of time but not to machine code: it holds the execution listing in plain text (section
``main`` below a ``header`` that names the GPU generations) and the CUDA source of the kernels the compiler generated.
Each line of the listing is one step: ``function`` a generated kernel, ``fully_connected``, ``corrltn`` and poolings one
of the library's kernels, ``runtime_fusion`` a library kernel with operations fused into it. The format is undocumented;
what follows was established by building graphs with TensorRT-RTX 1.7.1, most of it again in tests/engines/test_plan.py:

* A step appears once per execution: a layer repeated 1, 2, 5 times gives 1, 2, 5 times its steps, with weights shared
  or not; a kernel *definition* appears once per ``binary`` number, however often it is launched.
* ``fqn`` ends in a hash of the generated source: equal hashes, equal kernels, even under different ``binary`` numbers.
* Names list the fused operations in order (``__myl_AddReshTranReshMove``); long ones are cut and end in ``Etc``.
* With several compute capabilities there is one listing for all; with several profiles, one listing for each.
* Section ``descriptors`` declares every tensor that a step names, with its sides (names where they depend on the batch)
  and its type: what is read and written in which precision is in the plan.
* A dynamic batch adds a host step (``shape_call``) and the host section ``shape_main``: no kernels. Where the builder
  uses several streams, ``signal`` and ``wait`` order them: no kernels either.

What a plan does not show: which library kernel runs a matrix product or a convolution, and whether it takes a second
launch (split-K): that is decided on the device. Times: a launch is a launch, whether it moves 1 kB or 1 GB. The engine
inspector would not tell more here: it needs an engine, and deserializing one needs a driver.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fastervit_trt.engines.kernels import EngineKernels, Kernel, KernelTensor, Kind, kind_of_generated
from fastervit_trt.errors import FasterViTError

__all__ = ["plan_kernels"]


_NO_KERNELS = {"shape_call", "signal", "wait"}  # shapes are computed on the host; the others order two streams
_BRANCHES = {"jmp", "cjmp"}  # If and Loop: how often a step runs depends on data
_LIBRARY_STEPS = {
    "fully_connected": (Kind.GEMM, "Fc"),
    "corrltn": (Kind.CONVOLUTION, "Corr"),
    "deconvolution": (Kind.CONVOLUTION, "Deconv"),
    "avgpool": (Kind.REDUCTION, "Avgpool"),
    "maxpool": (Kind.REDUCTION, "Maxpool"),
}
_GENERATED_STEPS = {"function", "runtime_fusion", "runtime_function"}

_TYPES = {"half": "fp16", "float": "fp32", "fp8_e4m3": "fp8"}
_HOST = ("int64", "bool")  # sizes and conditions, computed beside the network: it has no activations of these types


def plan_kernels(plan: bytes | Path, profile: int = 0) -> EngineKernels:
    """The kernels that ``plan`` (a file, or its content) launches per inference.

    Args:
        profile: which optimisation profile's, where it was built with several.

    Raises:
        FasterViTError: not a plan, without this profile, or with branches (If, Loop).
    """
    label = f"'{plan}'" if isinstance(plan, Path) else "this"
    with _content(plan) as content:
        listings = list(_listings(content))
    if not listings:
        raise FasterViTError(f"{label} is no TensorRT-RTX plan, or of a version that lists its kernels differently")
    if not 0 <= profile < len(listings):
        raise FasterViTError(f"{label} has {len(listings)} optimisation profiles, so none has number {profile}")
    targets, tensors, lines = listings[profile]
    steps = [(match[1], line) for line in lines if (match := re.match(r"\s*(\w+)=\{ ", line))]
    if any(operator in _BRANCHES for operator, _ in steps):
        raise FasterViTError(f"{label} branches, so how many kernels it launches depends on its input")
    kernels = tuple(_kernel(operator, line, tensors) for operator, line in steps if operator not in _NO_KERNELS)
    return EngineKernels(kernels, targets)


@contextmanager
def _content(plan: bytes | Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a plan; files are mapped, for they can be larger than the memory left."""
    if isinstance(plan, bytes):
        yield plan
        return
    if not plan.is_file():
        raise FasterViTError(f"'{plan}' is no file")
    if plan.stat().st_size == 0:  # cannot be mapped
        yield b""
        return
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _listings(content: bytes | mmap.mmap) -> Iterator[tuple[tuple[str, ...], dict[str, KernelTensor], list[str]]]:
    """(targets, tensors, lines of ``main``) of every program; fragments describe what a fused kernel does within."""
    start = 0
    while (start := content.find(b"header {\n", start)) >= 0:
        header, start = _section(content, start)
        targets = re.search(r"accelerators=\{([^}]*)\}", header)
        main = content.find(b"\nmain {\n", start)
        if targets is None or main < 0:
            continue
        declared, (body, end) = content[start:main].decode("utf-8", "replace"), _section(content, main + 1)
        start = end
        if targets[1] != "*":  # a fragment is for any device; a step of the program refers to it
            yield tuple(targets[1].split()), _tensors(declared), body.splitlines()


def _tensors(declared: str) -> dict[str, KernelTensor]:
    """Name → tensor; a ``sub_tensor`` is a view with a shape of its own, and called after what it is a view of."""
    found, bases = {}, {}
    for kind, line in re.findall(r"^ *(tensor|sub_tensor|const_tensor)=\{ (.*) \}$", declared, re.MULTILINE):
        name, type_ = re.search(r' name="([^"]*)"', line), re.search(r" type=(\w+)", line)
        if name is None or type_ is None:
            continue
        sides = re.search(r" ?dims=\{([^}]*)\}", line)
        shape = tuple(int(s) if s.isdigit() else None for s in (sides[1].split() if sides else ()))
        constant = kind == "const_tensor" or "const_payload_size" in line
        found[name[1]] = KernelTensor(name[1], _TYPES.get(type_[1], type_[1]), shape, constant)
        if kind == "sub_tensor" and (base := re.search(r'\bbase="([^"]*)"', line)) is not None:
            bases[name[1]] = base[1]
    for view in bases:
        whole = view
        while whole in bases:
            whole = bases[whole]
        constant = found[view].constant or (whole in found and found[whole].constant)
        found[view] = replace(found[view], name=whole, constant=constant)
    return found


def _section(content: bytes | mmap.mmap, start: int) -> tuple[str, int]:
    """The lines from ``start`` to the closing brace in the first column, and where they end."""
    end = content.find(b"\n}", start)
    end = end if end >= 0 else start + 1
    return content[start:end].decode("utf-8", "replace"), end


def _kernel(operator: str, line: str, tensors: dict[str, KernelTensor]) -> Kernel:
    nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", line))
    inputs, outputs = (_arguments(line, key, tensors) for key in ("input", "output"))
    if operator in _LIBRARY_STEPS:
        kind, operation = _LIBRARY_STEPS[operator]
        activations = re.findall(r" (relu|gelu|gelu_erf|tanh|sigmoid|swish|leaky_relu)=true", line)
        fused = (operation, *(name.capitalize() for name in activations))
        return Kernel(kind, operator, None, fused, nodes, inputs, outputs)
    if operator not in _GENERATED_STEPS:
        return Kernel(Kind.OTHER, operator, None, (), nodes, inputs, outputs)
    name = _field(line, "name") or operator
    operations = tuple(re.findall(r"[A-Z][a-z0-9]*", name.removesuffix("Etc")))
    return Kernel(kind_of_generated(name, operations), name, _field(line, "fqn"), operations, nodes, inputs, outputs)


def _arguments(line: str, key: str, tensors: dict[str, KernelTensor]) -> tuple[KernelTensor, ...]:
    """Declared tensors among the arguments of a step, numbers of the host left out."""
    listed = re.search(rf" {key}(?:_args)?=\{{([^}}]*)\}}", line)
    names = re.findall(r'"([^"]*)"', listed[1]) if listed else []
    found = (tensors[name] for name in names if name in tensors)
    return tuple(tensor for tensor in found if tensor.type not in _HOST)


def _field(line: str, key: str) -> str | None:
    match = re.search(rf" {key}=(\S+)", line)
    return match[1] if match else None
