"""Ranges and weights in, the scales that graph and simulation share out: rounded once, upwards, to the graph's type."""

from __future__ import annotations

import torch

from fastervit_trt.export.precision import Float, Quantised

__all__ = ["activation_scale", "quantised_weights", "weight_scales"]


def activation_scale(largest: float, precision: Quantised) -> torch.Tensor:
    """Scale of a tensor with range [-largest, largest]: () of the base type."""
    return _rounded_up(torch.tensor(largest / precision.largest, dtype=torch.float64), precision.base)


def weight_scales(weight: torch.Tensor, axis: int, precision: Quantised) -> torch.Tensor:
    """A scale per output channel, which are along ``axis`` of ``weight``: (channels,) of the base type."""
    others = [i for i in range(weight.ndim) if i != axis]
    return _rounded_up(weight.double().abs().amax(others) / precision.largest, precision.base)


def quantised_weights(weight: torch.Tensor, axis: int, scales: torch.Tensor, precision: Quantised) -> torch.Tensor:
    """``weight`` (any shape) in steps of ``scales`` (channels,), as the 8-bit type."""
    steps = weight.double() / scales.double().reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    if precision.dtype is torch.int8:
        return steps.round().clamp(-precision.largest, precision.largest).to(torch.int8)
    return steps.clamp(-precision.largest, precision.largest).float().to(precision.dtype)


def _rounded_up(scale: torch.Tensor, base: Float) -> torch.Tensor:
    """At least ``scale``, so that nothing is clipped for a rounding, and never 0, which nothing can be divided by."""
    smallest = torch.finfo(base.dtype).smallest_normal * torch.finfo(base.dtype).eps  # the smallest subnormal number
    rounded = scale.to(base.dtype)
    higher = (scale * (1 + 2 * base.rounding) + smallest).to(base.dtype)
    return torch.where(rounded.double() < scale, higher, rounded).clamp(min=smallest)
