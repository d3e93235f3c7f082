"""A model in fp32 in, the same model computing in one precision out."""

from __future__ import annotations

import torch
from torch import nn

from fastervit_trt.export.precision import Float

__all__ = ["TypedModel", "TypedTaskModel", "typed_model"]


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


class TypedTaskModel(TypedModel):
    """A detector or segmenter in its deploy form: behind the outputs also what they were decided from, as computed."""

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Of what follows the outputs."""
        return self.model.raw_names  # type: ignore[return-value]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raw = self.model.raw(images.to(self.precision.dtype))  # type: ignore[operator]
        return *(output.float() for output in self.model.decide(*raw)), *raw  # type: ignore[operator]

    def raw(self, images: torch.Tensor, picked: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """What the outputs are decided from, as float32, with the queries ``picked`` where given."""
        raw = self.model.raw(images.to(self.precision.dtype), picked)  # type: ignore[operator]
        return tuple(tensor.float() for tensor in raw)


def typed_model(model: nn.Module, precision: Float) -> TypedModel:
    """``model``, a deploy form, computing in ``precision``."""
    return (TypedTaskModel if hasattr(model, "raw_names") else TypedModel)(model, precision)


def _retype(module: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype is not dtype:
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(module, name, buffer.to(dtype))
