"""What the stages of a GPU run share in making their peers: this project's kernels, compilers, inputs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu.compare import Way, Work
from fastervit_trt.benchmarks.gpu.timing import input_sets
from fastervit_trt.plugins.kernels import Kernels
from fastervit_trt.plugins.library import find_library
from fastervit_trt.plugins.operators import OPERATORS

__all__ = [
    "COMPILED",
    "DEFINED",
    "PAD_HEADS_TO",
    "as_compiled",
    "as_is",
    "chunked",
    "compiled",
    "defined_in_pytorch",
    "kernels",
    "leave_out_checks",
    "number_of_sets",
    "random_tensor",
    "require_kernels",
]

# Without CUDA graphs of its own: every peer is captured as ours is, which leaves out Python altogether.
COMPILED = "torch.compile, max-autotune; captured"
_MODE = "max-autotune-no-cudagraphs"
DEFINED = "operators as PyTorch code"

PAD_HEADS_TO = 8  # what the kernels serve in fp16

_CHUNKS_OF = 1 << 26  # elements


@functools.cache
def kernels() -> Kernels:
    """The compiled kernels.

    Raises:
        FasterViTError: there are none; a peer that needs them fails with that.
    """
    return Kernels(find_library("kernels"))


def leave_out_checks() -> None:
    """For the rest of this process, transformers' detectors do not ask at every call whether shapes agree.

    The answer is waited for on a GPU, so no CUDA graph can hold it, and a compiler cuts the network there. This is
    transformers' own switch for production (``torch_compilable_check`` in its ``utils/import_utils.py``).
    """
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By inductor, at its best."""
    return torch.compile(function, mode=_MODE, dynamic=False)


def require_kernels(device: str) -> None:
    """Where operators run on them.

    Raises:
        FasterViTError: there are none, and operators would be PyTorch code.
    """
    if device == "cuda":
        kernels()


def defined_in_pytorch(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` with ``torch.ops.fastervit.*`` as their definitions, which a compiler can look into."""

    def wrapped(*args: Any) -> Any:
        namespace = torch.ops.fastervit
        registered = {operator.torch_name: getattr(namespace, operator.torch_name) for operator in OPERATORS}
        try:
            for operator in OPERATORS:
                setattr(namespace, operator.torch_name, operator.reference)
            return call(*args)
        finally:
            for name, function in registered.items():
                setattr(namespace, name, function)

    return wrapped


def as_is(function: Callable[..., Tensor]) -> Callable[[Work], Way]:
    """Opens ``function`` on the inputs of a work."""
    return lambda work: Way(function, work.sets)


def as_compiled(function: Callable[..., Tensor]) -> Callable[[Work], Way]:
    """The same, compiled."""
    return lambda work: Way(compiled(function), work.sets)


def number_of_sets(bytes_per_call: int, device: str) -> int:
    """How many sets of inputs and results the cache does not hold."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    return input_sets(bytes_per_call, cache)


def random_tensor(shape: tuple[int, ...], seed: int, device: str, scale: float = 1.0) -> Tensor:
    """Normal fp16 numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device) * scale).half()


def chunked(function: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """``function`` of the rows of ``x`` in pieces of so many whole ``multiple``s that float64 fits the memory."""
    rows = max(_CHUNKS_OF // max(x[0].numel() * multiple, 1), 1) * multiple
    return torch.cat(list(_pieces(function, x, rows)))


def _pieces(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Iterator[Tensor]:
    for piece in x.split(rows):
        yield function(piece)
