"""What pixels cost: FasterViT and networks of equal width at growing sizes in, time, memory and multiply-adds out.

``fastervit-bench resolution`` runs it. All cells are open at once and take turns in rounds, every network at one size,
then at the next, so that ratios between networks and between sizes come from the same minutes. Every network is in its
deploy form (BatchNorm folded, position tables constant) in PyTorch, the one runtime that all of them have here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fastervit_trt.benchmarks.studies.resolution_cost import call_seconds, free_bytes, multiply_adds, peak_bytes
from fastervit_trt.benchmarks.studies.resolution_peers import NETWORKS, make_network
from fastervit_trt.benchmarks.studies.resolution_rows import Cell, Conditions
from fastervit_trt.benchmarks.telemetry.host_load import CpuTimes, affinity
from fastervit_trt.console import progress_bar
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.host import cpu_name
from fastervit_trt.models.config import FasterViTConfig, with_resolution
from fastervit_trt.models.factory import resolve_config

__all__ = ["SIZES", "Plan", "measure_resolutions", "this_device"]

# From the paper's size to four times as many pixels twice over. Stage 2 sees a sixteenth of a side, in windows of 7
# tokens: 224, 448 and 896 fill their windows, the others are padded.
SIZES = (224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
_LEAST_CALLS = 2  # of a round
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        model: a registered FasterViT, whose widths, depths and heads all networks have.
        sizes: sides of square images in pixels.
        seconds: of a network at a size, in all; large images take longer.
    """

    model: str = "faster_vit_0_224"
    sizes: tuple[int, ...] = SIZES
    networks: tuple[str, ...] = tuple(NETWORKS)
    batch: int = 1
    precision: str = "fp32"
    seconds: float = 2.0
    rounds: int = 5
    threads: int = 1

    def check(self, device: torch.device) -> FasterViTConfig:
        """The configuration at the largest size, from which every smaller one can be reached.

        Raises:
            FasterViTError: unknown model or network, impossible sizes or one alone, a precision that this device lacks.
        """
        if len(set(self.sizes)) < 2:
            raise FasterViTError("growth needs two sizes at least; name more with --sizes, as 224,448")
        if unknown := [name for name in self.networks if name not in NETWORKS]:
            raise FasterViTError(f"there is no network '{unknown[0]}'; choose from {', '.join(NETWORKS)}")
        if self.precision not in _DTYPES:
            raise FasterViTError(f"precision '{self.precision}' is none of {', '.join(_DTYPES)}")
        if self.precision != "fp32" and device.type == "cpu":
            raise FasterViTError(f"{self.precision} is measured on a GPU and there is none; leave --precision out")
        config = resolve_config(self.model)
        for size in self.sizes:
            with_resolution(config, (size, size))
        return with_resolution(config, (max(self.sizes),) * 2)


@dataclass
class _Open:
    """A cell that can be called."""

    cell: Cell
    model: nn.Module
    images: torch.Tensor

    def __call__(self) -> object:
        with torch.inference_mode():
            return self.model(self.images)


def this_device() -> torch.device:
    """The first GPU where PyTorch finds one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def measure_resolutions(plan: Plan, device: torch.device) -> tuple[list[Cell], Conditions]:
    """Every network of ``plan`` at every size; what does not fit into memory has a note instead of times.

    Raises:
        FasterViTError: as :meth:`Plan.check`.
    """
    config = plan.check(device)
    torch.set_num_threads(plan.threads)
    cells: list[Cell] = []
    calls: list[_Open] = []
    with progress_bar() as progress:
        opening = progress.add_task("opening", total=len(plan.networks) * len(set(plan.sizes)))
        for found in _open_all(plan, config, device):
            if isinstance(found, _Open):
                calls.append(found)
            cells.append(found.cell if isinstance(found, _Open) else found)
            progress.advance(opening)
        calls.sort(key=lambda call: call.cell.resolution)  # neighbours in time: the networks at one size
        timing = progress.add_task("timing in turns", total=plan.rounds * len(calls))
        for _ in range(plan.rounds):
            for call in calls:
                _take_turn(call, device, plan.seconds / plan.rounds)
                progress.advance(timing)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return cells, Conditions(plan.model, plan.batch, plan.precision, name, device.type, plan.threads)


def _take_turn(call: _Open, device: torch.device, seconds: float) -> None:
    cpus = affinity()
    before = CpuTimes.now(cpus)
    call.cell.rounds.append(call_seconds(call, device, seconds, _LEAST_CALLS))
    after = CpuTimes.now(cpus)
    call.cell.others.append(after.others_since(before)[1] / (after.at - before.at))


def _open_all(plan: Plan, config: FasterViTConfig, device: torch.device) -> Iterator[_Open | Cell]:
    for name in plan.networks:
        base = make_network(name, config).eval()
        before: Cell | None = None
        for size in sorted(set(plan.sizes)):
            base.set_resolution((size, size))
            found = _open(plan, name, base, size, before, device)
            before = found.cell if isinstance(found, _Open) else found
            yield found


def _open(plan: Plan, name: str, base: nn.Module, size: int, before: Cell | None, device: torch.device) -> _Open | Cell:
    """The cell, called once and its memory taken; only its description where there is no room for it."""
    channels = resolve_config(plan.model).in_chans
    model = deploy_form(base)[0]
    cell = Cell(name, size, sum(p.numel() for p in model.parameters()), multiply_adds(base, channels, (size, size)))
    cell.note = "" if before is None else _too_large(before, size, device)
    if cell.note:
        return cell
    dtype = _DTYPES[plan.precision]
    images = torch.randn(plan.batch, channels, size, size, generator=torch.Generator().manual_seed(0))
    found = _Open(cell, model, images.to(device, dtype))
    try:
        if device.type == "cuda":
            found.model = copy.deepcopy(model).to(device, dtype)  # it shares tensors with the next size's
        found()  # libraries prepare themselves
        cell.memory_bytes = peak_bytes(found, device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if "memory" not in str(error):
            raise
        cell.note = f"out of memory on {device.type}"
        return cell
    return found


def _too_large(before: Cell, size: int, device: torch.device) -> str:
    """Why the next size is not tried: memory can grow with the square of the pixels, and a system may kill for it."""
    if before.memory_bytes is None:
        return f"not tried: {before.resolution} had no room"
    needed, free = before.memory_bytes * (size / before.resolution) ** 4, free_bytes(device)
    if needed <= free:
        return ""
    return f"not tried: may need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
