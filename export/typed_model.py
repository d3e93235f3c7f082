"""A model in fp32 in, the same model computing in one precision out."""

from __future__ import annotations

import torch
from torch import nn

from fastervit_trt.export.precision import Float

__all__ = ["TypedModel"]


class TypedModel(nn.Module):
    """``model`` computing in one precision between float32 images (B, 3, H, W) and float32 outputs.

    Tensors of another type are replaced in ``model``, not converted in place: a module that shares them keeps its own.
    """

    def __init__(self, model: nn.Module, precision: Float) -> None:
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
