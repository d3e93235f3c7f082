"""The precisions a graph can be typed in. TensorRT 11 builds networks strongly typed: precision belongs to the graph.

Images enter and logits leave as float32 in every precision: callers need not care, the casts are part of the graph,
and at 224 px the input is under 0.1 % of what FasterViT-0 moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastervit_trt.errors import FasterViTError

__all__ = ["PRECISIONS", "Precision", "TypedModel", "get_precision"]


@dataclass(frozen=True)
class Precision:
    """One floating-point type for weights and activations of the whole graph.

    LayerNorm keeps its statistics in float32 (ONNX ``stash_type``), and position tables and folded weights are
    computed in float32 and rounded once.
    """

    name: str
    dtype: torch.dtype
    rounding: float  # largest relative error of one rounding (half a unit in the last place)
    opset: int  # ONNX opset of the graph: the lowest in which every operator has the type


# 20 has Gelu as one operator, and is the newest that TensorRT 10.3 (JetPack 6) reads. Conv and pooling take bfloat16
# from 22 on.
_OPSET, _OPSET_BF16 = 20, 22

PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("fp32", torch.float32, 2.0**-24, _OPSET),
        Precision("fp16", torch.float16, 2.0**-11, _OPSET),
        Precision("bf16", torch.bfloat16, 2.0**-8, _OPSET_BF16),
    )
}


def get_precision(name: str) -> Precision:
    """The precision called ``name``.

    Raises:
        FasterViTError: not one of :data:`PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise FasterViTError(f"unknown precision '{name}'; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


class TypedModel(nn.Module):
    """``model`` computing in one precision between float32 images (B, 3, H, W) and float32 outputs.

    Tensors of another type are replaced in ``model``, not converted in place: a module that shares them keeps its own.
    """

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.model = model
        for module in model.modules():
            _retype(module, precision.dtype)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.model(images.to(self.precision.dtype))
        return outputs.float() if isinstance(outputs, torch.Tensor) else tuple(output.float() for output in outputs)


def _retype(module: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype is not dtype:
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(module, name, buffer.to(dtype))
