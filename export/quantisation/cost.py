"""What a unit costs per image in 16 and in 8 bits: a roofline of the target, or times that were measured.

A layer takes the longer of its arithmetic at the tensor cores' peak and its bytes at the memory's. Only the order and
the ratios of such times are used, to decide what to quantise first; what an engine gains is for measurement to say.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.quantisation.operands import Operand, operands

__all__ = ["ROOFLINES", "Roofline", "UnitCost", "modelled_costs", "read_costs"]


@dataclass(frozen=True)
class Roofline:
    """Peaks of one GPU; dense, of the data sheet."""

    gpu: str
    tflops_16: float  # fp16 and bf16 with tensor cores
    tops_8: float  # int8, and fp8 where there is one
    gb_per_s: float


# NVIDIA's data sheets of T4, A100 40 GB PCIe, A10 and L4; one GPU stands for its compute capability.
ROOFLINES = {
    "7.5": Roofline("T4", 65, 130, 320),
    "8.0": Roofline("A100", 312, 624, 1555),
    "8.6": Roofline("A10", 125, 250, 600),
    "8.9": Roofline("L4", 121, 242, 300),
}


@dataclass(frozen=True)
class UnitCost:
    """Time of a unit's quantisable layers, in microseconds per image."""

    us_16: float
    us_8: float
    source: str  # "modelled, L4" or the file they were read from

    @property
    def saved_us(self) -> float:
        return self.us_16 - self.us_8


@torch.inference_mode()
def modelled_costs(model: nn.Module, images: torch.Tensor, roofline: Roofline) -> dict[str, UnitCost]:
    """Unit → its cost, from the shapes that ``images`` (B, 3, H, W) make in ``model`` (a deploy form)."""
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    with _shapes(model) as seen:
        model(images)
    for operand in operands(model):
        inputs, outputs = seen[operand.block]
        weights, batch = operand.module.weight.numel(), len(images)
        macs = outputs * operand.module.weight[0].numel()
        for i, (peak, width) in enumerate(((roofline.tflops_16, 2), (roofline.tops_8, 1))):
            moved = inputs * width + outputs * 2 + weights * width
            micros = max(2 * macs / (peak * 1e6), moved / (roofline.gb_per_s * 1e3))
            times[operand.unit][i] += micros / batch
    return {unit: UnitCost(a, b, f"modelled, {roofline.gpu}") for unit, (a, b) in times.items()}


def read_costs(path: Path, units: list[str]) -> dict[str, UnitCost]:
    """Measured costs: a CSV with the columns ``unit``, ``us_16`` and ``us_8``, microseconds per image.

    Raises:
        FasterViTError: unreadable, units of the model are missing, or times that cannot be.
    """
    try:
        with path.open(newline="") as stream:
            rows = {
                row["unit"]: UnitCost(float(row["us_16"]), float(row["us_8"]), path.name)
                for row in csv.DictReader(stream)
            }
    except FileNotFoundError:
        raise FasterViTError(f"block times '{path}' do not exist; leave them out to use modelled ones") from None
    except (KeyError, ValueError, TypeError) as error:
        raise FasterViTError(
            f"'{path}' is no table of block times ({type(error).__name__}: {error}); it needs the columns unit, us_16 "
            "and us_8"
        ) from error
    if missing := [unit for unit in units if unit not in rows]:
        raise FasterViTError(f"'{path}' has no time of {missing[0]} ({len(missing) - 1} more missing)")
    for unit in units:
        if not all(0 < micros < math.inf for micros in (rows[unit].us_16, rows[unit].us_8)):
            raise FasterViTError(f"'{path}' gives {unit} a time that must be a number above 0, in microseconds")
    return {unit: rows[unit] for unit in units}


@contextmanager
def _shapes(model: nn.Module) -> Iterator[dict[str, tuple[int, int]]]:
    """Within, block → numbers of values in and out, of every call of an operand."""
    seen: dict[str, tuple[int, int]] = {}

    def watch(operand: Operand) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[operand.block] = (inputs[0].numel(), output.numel())

        return operand.module.register_forward_hook(hook)

    with ExitStack() as stack:
        for operand in operands(model):
            stack.callback(watch(operand).remove)
        yield seen
