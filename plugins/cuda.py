"""The operators of :mod:`reference` on CUDA tensors: compiled kernels, and PyTorch where there is none for a case.

Which of the two runs is decided on sizes and dtypes alone, before anything is launched, so that calls can be captured
into CUDA graphs. As with PyTorch's own kernels the first call comes before the capture: it loads the library.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins import reference
from fastervit_trt.plugins.kernels import ALIGNMENT, Kernels, UnsupportedError
from fastervit_trt.plugins.library import find_library

__all__ = [
    "carrier_attention",
    "fused_window_attention",
    "register_cuda_kernels",
    "window_attention",
    "window_partition",
    "window_reverse",
]


def register_cuda_kernels() -> None:
    """Make ``torch.ops.fastervit.*``, which :mod:`operators` defines, run on these functions for CUDA tensors."""
    functions = (window_partition, window_attention, fused_window_attention, carrier_attention, window_reverse)
    for function in functions:
        torch.library.register_kernel(f"fastervit::{function.__name__}", "cuda", function)


def window_partition(x_BCHW: Tensor, carriers_BCHW: Tensor | None, table_1NC: Tensor, window: int) -> Tensor:
    """:func:`reference.window_partition`; a map in torch.channels_last is read as it lies."""
    channels_last = not x_BCHW.is_contiguous() and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def kernel(kernels: Kernels) -> Tensor:
        carriers = None if carriers_BCHW is None else _ready(carriers_BCHW, layout)
        return kernels.window_partition(_ready(x_BCHW, layout), carriers, _ready(table_1NC), window)

    return _run(kernel, reference.window_partition, x_BCHW, carriers_BCHW, table_1NC, window)


def window_reverse(
    tok_WnNC: Tensor, gamma_C: Tensor | None, carriers: int, window: int, height: int, width: int
) -> Tensor:
    """:func:`reference.window_reverse`."""

    def kernel(kernels: Kernels) -> Tensor:
        gamma = None if gamma_C is None else _ready(gamma_C)
        return kernels.window_reverse(_ready(tok_WnNC), gamma, carriers, window, height, width)

    return _run(kernel, _window_reverse, tok_WnNC, gamma_C, carriers, window, height, width)


def window_attention(qkv_X3D: Tensor, bias_1hNN: Tensor) -> Tensor:
    """:func:`reference.window_attention`."""

    def kernel(kernels: Kernels) -> Tensor:
        return kernels.window_attention(_ready(qkv_X3D), _ready(bias_1hNN))

    return _run(kernel, reference.window_attention, qkv_X3D, bias_1hNN)


def fused_window_attention(
    x_XC: Tensor,
    norm_weight_C: Tensor,
    norm_bias_C: Tensor,
    qkv_weight_3DC: Tensor,
    qkv_bias_3D: Tensor,
    bias_1hNN: Tensor,
    proj_weight_CD: Tensor,
    proj_bias_C: Tensor,
    eps: float,
) -> Tensor:
    """:func:`reference.fused_window_attention`: the carrier kernel, to which every row of a window is a carrier."""
    weights = (norm_weight_C, norm_bias_C, qkv_weight_3DC, qkv_bias_3D, bias_1hNN, proj_weight_CD, proj_bias_C)
    tokens = bias_1hNN.shape[2]

    def kernel(kernels: Kernels) -> Tensor:
        return _attention_half(kernels, _ready(x_XC).unflatten(0, (-1, tokens)), None, weights, tokens, eps)

    return _run(kernel, reference.fused_window_attention, x_XC, *weights, eps)


def carrier_attention(
    tok_WnNC: Tensor,
    table_1GC: Tensor,
    norm_weight_C: Tensor,
    norm_bias_C: Tensor,
    qkv_weight_3DC: Tensor,
    qkv_bias_3D: Tensor,
    bias_1hGG: Tensor,
    proj_weight_CD: Tensor,
    proj_bias_C: Tensor,
    carriers: int,
    eps: float,
) -> Tensor:
    """:func:`reference.carrier_attention`."""
    weights = (norm_weight_C, norm_bias_C, qkv_weight_3DC, qkv_bias_3D, bias_1hGG, proj_weight_CD, proj_bias_C)

    def kernel(kernels: Kernels) -> Tensor:
        return _attention_half(kernels, _ready(tok_WnNC), _ready(table_1GC), weights, carriers, eps)

    return _run(kernel, reference.carrier_attention, tok_WnNC, table_1GC, *weights, carriers, eps)


def _attention_half(
    kernels: Kernels, tok_WnNC: Tensor, table_1GC: Tensor | None, weights: Iterable[Tensor], carriers: int, eps: float
) -> Tensor:
    norm_weight, norm_bias, qkv_weight, qkv_bias, bias, proj_weight, proj_bias = map(_ready, weights)
    qkv, proj = (qkv_weight, qkv_bias), (proj_weight, proj_bias)
    return kernels.carrier_attention(tok_WnNC, table_1GC, norm_weight, norm_bias, *qkv, bias, *proj, carriers, eps)


def _run(kernel: Callable[[Kernels], Tensor], definition: Callable[..., Tensor], *args: object) -> Tensor:
    """The result of ``kernel``, else of ``definition(*args)``."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    kernels = _kernels()
    if kernels is not None:
        try:
            _refuse_mixed(tensors)
            return kernel(kernels)
        except UnsupportedError as refusal:
            _warn(definition.__name__.lstrip("_"), str(refusal))
    result = definition(*args).contiguous()
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return result.clone() if result.untyped_storage().data_ptr() in memory else result  # as operators._register


def _refuse_mixed(tensors: list[Tensor]) -> None:
    dtypes = sorted({str(tensor.dtype) for tensor in tensors})
    if len(dtypes) > 1:  # as under torch.autocast
        raise UnsupportedError(f"tensors of {' and '.join(dtypes)}; one dtype for all is served")


def _ready(tensor: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """As kernels read it, copied only where it must be."""
    tensor = tensor.contiguous(memory_format=layout)
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _window_reverse(tok_WnNC: Tensor, gamma_C: Tensor | None, carriers: int, *sizes: int) -> Tensor:
    """The reference, less the copy of indices to the GPU, which a capture forbids."""
    if gamma_C is not None:
        nearest = _nearest_carrier(carriers, sizes[0], tok_WnNC.device)
        tok_WnNC = tok_WnNC[:, carriers:] + gamma_C * tok_WnNC.index_select(1, nearest)
        carriers = 0
    return reference.window_reverse(tok_WnNC, None, carriers, *sizes)


_nearest_carrier = functools.cache(reference.nearest_carrier)


@functools.cache
def _kernels() -> Kernels | None:
    try:
        return Kernels(find_library("kernels"))
    except FasterViTError as error:
        warnings.warn(f"FasterViT's operators run as PyTorch code on CUDA: {error}", stacklevel=1)
        return None


@functools.cache
def _warn(operator: str, reason: str) -> None:
    """Once per process and reason."""
    warnings.warn(f"fastervit::{operator} runs as PyTorch code on CUDA: {reason}", stacklevel=1)
