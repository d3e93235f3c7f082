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
* A dynamic batch adds a host step (``shape_call``) and the host section ``shape_main``: no kernels. Where the builder
  uses several streams, ``signal`` and ``wait`` order them: no kernels either.

What a plan does not show: which library kernel runs a matrix product or a convolution, and whether it takes a second
launch (split-K): that is decided on the device. Times: a launch is a launch, whether it moves 1 kB or 1 GB. The engine
inspector would not tell more here: it needs an engine, and deserializing one needs a driver.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fastervit_trt.errors import FasterViTError

__all__ = ["Kind", "PlanKernel", "PlanKernels", "plan_kernels"]


class Kind(Enum):
    """What a kernel is there for; where it does several things, the first of these that applies."""

    ATTENTION = "attention"  # softmax(q·kᵀ + bias)·v in one kernel
    GEMM = "gemm"  # with whatever is fused into it
    CONVOLUTION = "convolution"
    NORMALISATION = "normalisation"  # with the additions and rearrangements around it
    SOFTMAX = "softmax"  # of an attention that was not fused
    REDUCTION = "reduction"  # and pooling
    MOVEMENT = "movement"  # transposes, slices, concatenations, copies; possibly arithmetic on the way
    POINTWISE = "pointwise"  # arithmetic only, every element in its place
    OTHER = "other"


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

# Operation abbreviations as the names of generated kernels spell them.
_SOFTMAX = {"Exp", "Sum"}
_REDUCTIONS = {"Mean", "Sum", "Maxr", "Minr", "Topk", "Cums"}
_REARRANGEMENTS = {"Tran", "Conc", "Slic", "Gath", "Scat", "Repl"}
_COPIES = {"Cast", "Move", "Resh"}  # movement where nothing else happens: every kernel loads, converts and stores


@dataclass(frozen=True)
class PlanKernel:
    """One kernel launch."""

    kind: Kind
    name: str  # as in the plan: "__myl_FcAddAdd", or "fully_connected" for a library kernel with nothing fused
    source: str | None  # name and hash of the generated kernel; None: chosen from the library on the device
    operations: tuple[str, ...]  # ("Fc", "Add", "Add"); empty for attention
    nodes: tuple[str, ...]  # ONNX nodes it computes, as far as the plan keeps them


@dataclass(frozen=True)
class PlanKernels:
    """The launches of one inference, in order."""

    kernels: tuple[PlanKernel, ...]
    targets: tuple[str, ...]  # ("sm89",)

    @property
    def launches(self) -> int:
        return len(self.kernels)

    @property
    def generated(self) -> int:
        """Launches of kernels whose source is in the plan."""
        return sum(kernel.source is not None for kernel in self.kernels)

    @property
    def distinct_generated(self) -> int:
        """How many different generated kernels those launches are."""
        return len({kernel.source for kernel in self.kernels} - {None})

    def count(self, kind: Kind) -> int:
        return sum(kernel.kind is kind for kernel in self.kernels)

    def names(self, kind: Kind) -> Counter[str]:
        """Kernel name → launches: which operations are fused into what."""
        return Counter(kernel.name for kernel in self.kernels if kernel.kind is kind)


def plan_kernels(plan: bytes | Path) -> PlanKernels:
    """The kernels that ``plan`` (a file, or its content) launches per inference.

    Raises:
        FasterViTError: not a plan, built for several profiles, or with branches (If, Loop).
    """
    label = f"'{plan}'" if isinstance(plan, Path) else "this"
    with _content(plan) as content:
        listings = list(_listings(content))
    if not listings:
        raise FasterViTError(f"{label} is no TensorRT-RTX plan, or of a version that lists its kernels differently")
    if len(listings) > 1:
        raise FasterViTError(f"{label} has {len(listings)} listings of kernels; build it with one optimisation profile")
    targets, lines = listings[0]
    steps = [(match[1], line) for line in lines if (match := re.match(r"\s*(\w+)=\{ ", line))]
    if any(operator in _BRANCHES for operator, _ in steps):
        raise FasterViTError(f"{label} branches, so how many kernels it launches depends on its input")
    kernels = tuple(_kernel(operator, line) for operator, line in steps if operator not in _NO_KERNELS)
    return PlanKernels(kernels, targets)


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


def _listings(content: bytes | mmap.mmap) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(targets, lines of ``main``) of every program; not of the fragments, which describe what a fused kernel does."""
    start = 0
    while (start := content.find(b"header {\n", start)) >= 0:
        header, start = _section(content, start)
        targets = re.search(r"accelerators=\{([^}]*)\}", header)
        main = content.find(b"\nmain {\n", start)
        if targets is None or main < 0:
            continue
        body, start = _section(content, main + 1)
        if targets[1] != "*":  # a fragment is for any device; a step of the program refers to it
            yield tuple(targets[1].split()), body.splitlines()


def _section(content: bytes | mmap.mmap, start: int) -> tuple[str, int]:
    """The lines from ``start`` to the closing brace in the first column, and where they end."""
    end = content.find(b"\n}", start)
    end = end if end >= 0 else start + 1
    return content[start:end].decode("utf-8", "replace"), end


def _kernel(operator: str, line: str) -> PlanKernel:
    nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", line))
    if operator in _LIBRARY_STEPS:
        kind, operation = _LIBRARY_STEPS[operator]
        activations = re.findall(r" (relu|gelu|gelu_erf|tanh|sigmoid|swish|leaky_relu)=true", line)
        return PlanKernel(kind, operator, None, (operation, *(name.capitalize() for name in activations)), nodes)
    if operator not in _GENERATED_STEPS:
        return PlanKernel(Kind.OTHER, operator, None, (), nodes)
    name = _field(line, "name") or operator
    operations = tuple(re.findall(r"[A-Z][a-z0-9]*", name.removesuffix("Etc")))
    return PlanKernel(_kind(name, operations), name, _field(line, "fqn"), operations, nodes)


def _field(line: str, key: str) -> str | None:
    match = re.search(rf" {key}=(\S+)", line)
    return match[1] if match else None


def _kind(name: str, operations: tuple[str, ...]) -> Kind:
    present = set(operations)
    if "_gemm_mha" in name:
        return Kind.ATTENTION
    if present & {"Fc", "Corr", "Deconv"}:
        return Kind.GEMM if "Fc" in present else Kind.CONVOLUTION
    if "Sqrt" in present or "Gnor" in present:
        return Kind.NORMALISATION
    if present >= _SOFTMAX:
        return Kind.SOFTMAX
    if present & _REDUCTIONS:
        return Kind.REDUCTION
    if present & _REARRANGEMENTS or present <= _COPIES:
        return Kind.MOVEMENT
    return Kind.POINTWISE
