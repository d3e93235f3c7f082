"""Images in, the ranges of a deploy form's activations out: hooks on its layers, histograms, no data kept.

In float32, before any type is chosen: one calibration serves every precision, calibrator and choice of blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.export.quantisation.calibrators import Histogram
from fastervit_trt.export.quantisation.operands import operands, window_attentions
from fastervit_trt.export.quantisation.ranges import CalibrationKey, RangeRow, Ranges

__all__ = ["OUTPUT_OF", "calibrate"]

OUTPUT_OF = "{}:output"  # name of the range of what a layer yields

Tap = Callable[[str, torch.Tensor], None]


@torch.inference_mode()
def calibrate(model: nn.Module, batches: Iterable[np.ndarray], key: CalibrationKey) -> Ranges:
    """The ranges of ``model`` (deploy form, fp32) on ``batches`` of images (B, 3, H, W).

    Raises:
        FasterViTError: no images, or activations that are not finite (with the first block that has them).
    """
    seen: dict[str, Histogram] = defaultdict(Histogram)
    images = 0

    def tap(name: str, x: torch.Tensor) -> None:
        seen[name].add(x)
        if seen[name].non_finite:
            raise FasterViTError(
                f"calibration: {seen[name].non_finite} activations at {name} are not finite, within images {images} to "
                f"{images + len(x_BCHW) - 1}; check the checkpoint and the preprocessing"
            )

    with _taps(model, tap):
        for x_BCHW in batches:
            if not np.isfinite(x_BCHW).all():
                raise FasterViTError(
                    f"calibration: images {images} to {images + len(x_BCHW) - 1} have pixels that are "
                    "not finite; check the preprocessing"
                )
            model(torch.from_numpy(x_BCHW))
            images += len(x_BCHW)
    if images == 0:
        raise FasterViTError("calibration needs images; give --calibration-data a folder of them")
    return Ranges(key, {name: RangeRow.choose(histogram) for name, histogram in seen.items()})


@contextmanager
def _taps(model: nn.Module, tap: Tap) -> Iterator[None]:
    """Within, ``tap`` sees the inputs and outputs of all operands, residual streams, and q, k and v."""
    with ExitStack() as stack:
        for operand in operands(model):
            _tap_input(stack, operand.module, operand.block, tap)
            if not operand.block.endswith((".qkv", ".fc1")):  # nobody quantises those where they come out
                _tap_output(stack, operand.module, OUTPUT_OF.format(operand.block), tap)
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                _tap_input(stack, module, block_of_module(name), tap)
        for block, attention in window_attentions(model).items():
            _tap_qkv(stack, attention.qkv, block, tap)
        yield


def _tap_input(stack: ExitStack, module: nn.Module, name: str, tap: Tap) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tap(name, inputs[0])

    stack.callback(module.register_forward_pre_hook(hook).remove)


def _tap_output(stack: ExitStack, module: nn.Module, name: str, tap: Tap) -> None:
    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        tap(name, output)

    stack.callback(module.register_forward_hook(hook).remove)


def _tap_qkv(stack: ExitStack, module: nn.Module, block: str, tap: Tap) -> None:
    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        for name, part in zip("qkv", output.chunk(3, dim=1), strict=True):
            tap(f"{block}:{name}", part)

    stack.callback(module.register_forward_hook(hook).remove)
