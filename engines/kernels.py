"""What one inference launches, however it was read: kernels with their types and the ONNX nodes they compute.

TensorRT-RTX's plans (plan.py) and what TensorRT's engine inspector says (inspector.py) are read into this one form, on
which the audit, the proof of precision and the benchmarks work.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

__all__ = ["EngineKernels", "Kernel", "KernelTensor", "Kind", "kind_of_generated"]


class Kind(Enum):
    """What a kernel is there for; where it does several things, the first of these that applies."""

    ATTENTION = "attention"  # softmax(q·kᵀ + bias)·v in one kernel
    PLUGIN = "plugin"  # one of ours
    GEMM = "gemm"  # with whatever is fused into it
    CONVOLUTION = "convolution"
    NORMALISATION = "normalisation"  # with the additions and rearrangements around it
    SOFTMAX = "softmax"  # of an attention that was not fused
    REDUCTION = "reduction"  # and pooling
    REFORMAT = "reformat"  # another memory layout or type, put in by TensorRT: no operator of the graph asks for it
    CAST = "cast"  # another type and nothing else
    MOVEMENT = "movement"  # transposes, slices, concatenations, copies; possibly arithmetic on the way
    POINTWISE = "pointwise"  # arithmetic only, every element in its place
    OTHER = "other"


# Operation abbreviations as Myelin, the compiler in all three TensorRTs, spells them in the names of its kernels.
_SOFTMAX = {"Exp", "Sum"}
_REDUCTIONS = {"Mean", "Sum", "Maxr", "Minr", "Topk", "Cums"}
_REARRANGEMENTS = {"Tran", "Conc", "Slic", "Gath", "Scat", "Repl"}
_COPIES = {"Cast", "Move", "Resh"}  # movement where nothing else happens: every kernel loads, converts and stores


@dataclass(frozen=True)
class KernelTensor:
    """A tensor a kernel reads or writes."""

    name: str
    type: str  # fp32, fp16, bf16, int8, fp8, int32, int64, bool; as TensorRT spells it where it is another
    shape: tuple[int | None, ...]  # None: a side that depends on the batch
    constant: bool = False  # weights, scales, tables

    @property
    def is_matrix(self) -> bool:
        """Whether it can be an operand of a product; constant vectors and numbers are biases and scales."""
        if not self.constant:
            return len(self.shape) >= 2
        return sum(side != 1 for side in self.shape) >= 2


@dataclass(frozen=True)
class Kernel:
    """One kernel launch."""

    kind: Kind
    name: str  # as TensorRT has it: "__myl_FcAddAdd"; "fully_connected" for a library kernel with nothing fused
    source: str | None  # name and hash of a generated kernel, or the tactic; None: chosen on the device
    operations: tuple[str, ...]  # ("Fc", "Add", "Add"); empty where the name does not tell
    nodes: tuple[str, ...]  # ONNX nodes it computes, as far as TensorRT keeps them
    inputs: tuple[KernelTensor, ...] = ()  # shapes and other host numbers left out
    outputs: tuple[KernelTensor, ...] = ()


@dataclass(frozen=True)
class EngineKernels:
    """The launches of one inference, in order."""

    kernels: tuple[Kernel, ...]
    targets: tuple[str, ...]  # ("sm89",); empty where an engine does not tell

    @property
    def launches(self) -> int:
        return len(self.kernels)

    @property
    def generated(self) -> int:
        """Launches of kernels that the compiler generated."""
        return sum(kernel.source is not None for kernel in self.kernels)

    @property
    def distinct_generated(self) -> int:
        return len({kernel.source for kernel in self.kernels if kernel.source is not None})

    def count(self, kind: Kind) -> int:
        return sum(kernel.kind is kind for kernel in self.kernels)

    def names(self, kind: Kind) -> Counter[str]:
        """Kernel name → launches: which operations are fused into what."""
        return Counter(kernel.name for kernel in self.kernels if kernel.kind is kind)


def kind_of_generated(name: str, operations: tuple[str, ...]) -> Kind:
    """The kind of a kernel Myelin generated, from its name, e.g. ``__myl_FcAddAdd`` of ("Fc", "Add", "Add")."""
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
        return Kind.CAST if present == {"Cast"} else Kind.MOVEMENT
    return Kind.POINTWISE
