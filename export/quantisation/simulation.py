"""What a quantised graph computes, in PyTorch: the reference its file is verified against, and what assignment tries.

Every quantised tensor is rounded to its grid and goes on in the type of the model. A convolution of such tensors in
floating point is the integer convolution times both scales: sums of products of 8-bit numbers are exact in float32 up
to 2^24, about a thousand channels, and rounded beyond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.export.packed import PackedWindowAttention
from fastervit_trt.export.precision import Quantised
from fastervit_trt.export.quantisation.calibration import OUTPUT_OF
from fastervit_trt.export.quantisation.calibrators import on_grid
from fastervit_trt.export.quantisation.cpu_form import grid_after_gelu
from fastervit_trt.export.quantisation.operands import Operand, operands, window_attentions
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.scales import activation_scale, quantised_weights, weight_scales

__all__ = ["chosen_operands", "simulated", "simulated_on_cpu", "stream_of"]

_AFTER_GELU = (".conv2", ".fc2")  # layers that read what Gelu yields
# The last layer of a residual branch → where the stream it is added to is seen.
_STREAM_OF = {"conv2": "conv1", "attn.proj": "norm1", "mlp.fc2": "norm2", "hat_mlp.fc2": "hat_norm2"}


def chosen_operands(model: nn.Module, precision: Quantised) -> list[Operand]:
    """The operands of ``model`` that ``precision`` quantises."""
    if precision.only is not None:
        return [o for o in operands(model) if o.block in precision.only]
    return [o for o in operands(model) if precision.heads or not o.in_head]


@contextmanager
def simulated(model: nn.Module, precision: Quantised, ranges: Ranges) -> Iterator[None]:
    """Within, ``model`` (a deploy form in any floating-point type) computes as its quantised graph does."""
    with ExitStack() as stack:
        chosen = chosen_operands(model, precision)
        for operand in chosen:
            _round_input(stack, operand.module, ranges.of(operand.block, precision), precision)
            _round_weight(stack, operand.module, precision)
        if precision.residual:
            _round_residuals(stack, model, chosen, precision, ranges)
        if precision.attention:
            blocks = {operand.block.removesuffix(".qkv") for operand in chosen}
            for block, attention in window_attentions(model).items():
                if block in blocks:
                    _round_attention(stack, attention, block, precision, ranges)
        yield


def _rounded(x: torch.Tensor, largest: float, precision: Quantised) -> torch.Tensor:
    return on_grid(x.float(), activation_scale(largest, precision).float(), type(precision)).to(x.dtype)


def _round_input(stack: ExitStack, module: nn.Module, largest: float, precision: Quantised) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_rounded(inputs[0], largest, precision), *inputs[1:])

    stack.callback(module.register_forward_pre_hook(hook).remove)


def _round_input_after_gelu(stack: ExitStack, module: nn.Module, largest: float) -> None:
    step, zero = grid_after_gelu(largest)

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (((inputs[0] / step).round() + zero).clamp(0, 255).sub(zero).mul(step), *inputs[1:])

    stack.callback(module.register_forward_pre_hook(hook).remove)


def _round_weight(stack: ExitStack, module: nn.Conv2d | nn.Linear, precision: Quantised) -> None:
    weight = module.weight
    scales = weight_scales(weight, 0, precision)
    steps = quantised_weights(weight, 0, scales, precision).float()
    rounded = (steps * scales.float().reshape([-1] + [1] * (weight.ndim - 1))).to(weight.dtype)
    module.weight = nn.Parameter(rounded, requires_grad=False)
    stack.callback(setattr, module, "weight", weight)


def _round_residuals(
    stack: ExitStack, model: nn.Module, chosen: list[Operand], precision: Quantised, ranges: Ranges
) -> None:
    modules = {block_of_module(name): module for name, module in model.named_modules()}
    for operand in chosen:
        if (stream := stream_of(operand.block)) is None:
            continue
        _round_stream(stack, modules[stream], ranges.of(stream, precision), precision)
        _round_output(stack, operand.module, ranges.of(OUTPUT_OF.format(operand.block), precision), precision)


@contextmanager
def simulated_on_cpu(model: nn.Module, precision: Quantised, ranges: Ranges) -> Iterator[None]:
    """Within, ``model`` (a deploy form) computes as the form of its graph for ONNX Runtime's CPU provider does."""
    with ExitStack() as stack:
        for operand in chosen_operands(model, precision):
            largest = ranges.of(operand.block, precision)
            if operand.block.endswith(_AFTER_GELU):
                _round_input_after_gelu(stack, operand.module, float(activation_scale(largest, precision)) * 127)
            else:
                _round_input(stack, operand.module, largest, precision)
            _round_weight(stack, operand.module, precision)
            if operand.kind == "convolution":
                output = ranges.of(OUTPUT_OF.format(operand.block), precision)
                _round_output(stack, operand.module, output, precision)
        yield


def stream_of(block: str) -> str | None:
    """Where the stream is seen that the residual branch ending in ``block`` is added to; None: no such end."""
    for end, start in sorted(_STREAM_OF.items(), key=lambda item: -len(item[0])):
        if block.endswith(f".{end}"):
            return block.removesuffix(end) + start
    return None


def _round_stream(stack: ExitStack, module: nn.Module, largest: float, precision: Quantised) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # In place, and before any hook that passes a copy on: the very tensor is what the branch is added to later.
        inputs[0].copy_(_rounded(inputs[0], largest, precision))

    stack.callback(module.register_forward_pre_hook(hook, prepend=True).remove)


def _round_output(stack: ExitStack, module: nn.Module, largest: float, precision: Quantised) -> None:
    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return _rounded(output, largest, precision)

    stack.callback(module.register_forward_hook(hook).remove)


def _round_attention(
    stack: ExitStack, attention: PackedWindowAttention, block: str, precision: Quantised, ranges: Ranges
) -> None:
    q_range, k_range, v_range = (ranges.of(f"{block}:{part}", precision) for part in "qkv")

    def forward(x_XC: torch.Tensor) -> torch.Tensor:
        heads, tokens = attention.bias.shape[1:3]
        qkv = attention.qkv(x_XC)
        dim = qkv.shape[1] // 3
        split = qkv.reshape(-1, tokens, 3 * heads, dim // heads).transpose(1, 2).split(heads, dim=1)
        q, k, v = (_rounded(x, r, precision) for x, r in zip(split, (q_range, k_range, v_range), strict=True))
        weights = _rounded((q @ k.transpose(2, 3) + attention.bias).softmax(dim=3), 1.0, precision)
        return attention.proj((weights @ v).transpose(1, 2).reshape(-1, dim))

    attention.forward = forward  # type: ignore[method-assign]
    stack.callback(delattr, attention, "forward")
