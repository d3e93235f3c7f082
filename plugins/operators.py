"""The operators of :mod:`reference` as ``torch.ops.fastervit.*``, and the names they wear in ONNX.

Importing this module registers them with ``torch.library``. The real implementation is the reference; on CUDA tensors
the compiled kernels, whose library is looked for when the first of them comes; the fake one tells ``torch.export`` and
``torch.compile`` what shape comes out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastervit_trt.plugins import reference
from fastervit_trt.plugins.cuda import register_cuda_kernels
from fastervit_trt.plugins.names import DOMAIN

__all__ = ["OPERATORS", "SCALARS", "Operator"]

SCALARS = ("carriers",)  # arguments that are left out by being 0 instead of None


@dataclass(frozen=True)
class Operator:
    """An operator as ONNX knows it. An ONNX function has one body, so an argument left out makes another operator."""

    onnx_name: str
    reference: Callable[..., Tensor]
    without: tuple[str, ...] = ()  # arguments of the reference that are None or 0 here

    @property
    def torch_name(self) -> str:
        return self.reference.__name__

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors, in order."""
        return tuple(name for name, kind in self._arguments() if "Tensor" in kind)

    @property
    def batched(self) -> tuple[str, ...]:
        """Names of the tensors that grow with the batch, as their layout says."""
        return tuple(name for name in self.inputs if name.rpartition("_")[2][0] in "BWX")

    @property
    def attributes(self) -> dict[str, str]:
        """Names of the scalars, each with its type: int or float."""
        return {name: kind for name, kind in self._arguments() if "Tensor" not in kind}

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the reference, all of them."""
        return tuple(inspect.signature(self.reference).parameters)

    def call(self, tensors: Sequence[Tensor], attributes: Mapping[str, int | float]) -> Tensor:
        """What the operator means."""
        given = {**dict(zip(self.inputs, tensors, strict=True)), **attributes}
        left_out = {name: None if name not in SCALARS else 0 for name in self.without}
        return self.reference(**given, **left_out)

    def _arguments(self) -> list[tuple[str, str]]:
        parameters = inspect.signature(self.reference).parameters.values()
        return [(p.name, str(p.annotation)) for p in parameters if p.name not in self.without]


OPERATORS: tuple[Operator, ...] = (
    Operator("WindowPartition", reference.window_partition, without=("carriers_BCHW",)),
    Operator("WindowPartitionWithCarriers", reference.window_partition),
    Operator("WindowAttention", reference.window_attention),
    Operator("FusedWindowAttention", reference.fused_window_attention),
    Operator("CarrierAttention", reference.carrier_attention),
    Operator("WindowReverse", reference.window_reverse, without=("gamma_C", "carriers")),
    Operator("WindowReverseWithCarriers", reference.window_reverse, without=("gamma_C",)),
    Operator("WindowReverseWithPropagation", reference.window_reverse),
)


def _register(definition: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    @functools.wraps(definition)
    def real(*args: object) -> Tensor:
        result = definition(*args).contiguous()  # as the fake says, and as kernels write
        memory = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        # Degenerate sizes (one window, one token) make some of them views, which an operator must not return.
        return result.clone() if result.untyped_storage().data_ptr() in memory else result

    schema = torch.library.infer_schema(definition, mutates_args=())
    name = f"{DOMAIN}::{definition.__name__}"
    torch.library.custom_op(name, real, mutates_args=(), schema=schema).register_fake(fake)


def _window_partition(x_BCHW: Tensor, carriers_BCHW: Tensor | None, table_1NC: Tensor, window: int) -> Tensor:
    batch, _, height, width = x_BCHW.shape
    return x_BCHW.new_empty(batch * (height // window) * (width // window), *table_1NC.shape[1:])


def _window_reverse(
    tok_WnNC: Tensor, gamma_C: Tensor | None, carriers: int, window: int, height: int, width: int
) -> Tensor:
    windows = (height // window) * (width // window)
    return tok_WnNC.new_empty(tok_WnNC.shape[0] // windows, tok_WnNC.shape[2], height, width)


def _window_attention(qkv_X3D: Tensor, bias_1hNN: Tensor) -> Tensor:
    return qkv_X3D.new_empty(qkv_X3D.shape[0], qkv_X3D.shape[1] // 3)


def _fused_window_attention(x_XC: Tensor, *rest: Tensor | float) -> Tensor:
    return x_XC.new_empty(x_XC.shape)


def _carrier_attention(tok_WnNC: Tensor, *rest: Tensor | int | float) -> Tensor:
    carriers = rest[-2]
    assert not isinstance(carriers, Tensor | float)
    return tok_WnNC.new_empty(tok_WnNC.shape[0] * carriers, tok_WnNC.shape[2])


_register(reference.window_partition, _window_partition)
_register(reference.window_reverse, _window_reverse)
_register(reference.window_attention, _window_attention)
_register(reference.fused_window_attention, _fused_window_attention)
_register(reference.carrier_attention, _carrier_attention)
register_cuda_kernels()
