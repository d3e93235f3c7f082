"""Single calls of kernels, for a profiler or a sanitizer to see: ``python -m fastervit_trt.benchmarks.gpu.driver``.

Inputs are those of the stages ``core``, ``half`` and ``partition``, of FasterViT-0's stage 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import torch
import typer

from fastervit_trt.benchmarks.gpu import core as gpu_core
from fastervit_trt.benchmarks.gpu import half as gpu_half
from fastervit_trt.benchmarks.gpu import partition as gpu_partition
from fastervit_trt.benchmarks.gpu.cases import Case
from fastervit_trt.benchmarks.gpu.compare import Peer, Way, Work
from fastervit_trt.benchmarks.gpu.worklist import cases_of
from fastervit_trt.console import command_app, run_command, say
from fastervit_trt.errors import FasterViTError

__all__ = ["CALLS", "main", "open_call"]

app = command_app()

_MODEL = "faster_vit_0_224"
_SMALL_BATCH, _BATCH = 2, 128
_PREPARE: dict[str, tuple[Callable[[Case, str], Work], Sequence[Peer]]] = {
    "core": (gpu_core.prepare, gpu_core.PEERS),
    "half": (gpu_half.prepare, gpu_half.PEERS),
    "partition": (gpu_partition.prepare, gpu_partition.PEERS),
}

# Stage, part of the case's name, peer.
CALLS = {
    "attention-resident": ("core", "window", "ours resident"),
    "attention-streamed": ("core", "window", "ours streamed"),
    "attention-int8": ("core", "window", "ours int8"),
    "attention-triton": ("core", "window", "triton"),
    "half-fused": ("half", "window", "ours fused"),
    "half-staged": ("half", "window", "ours staged"),
    "carriers-fused": ("half", "carriers", "ours fused"),
    "partition": ("partition", "partition, channels-last", "ours"),
    "partition-planes": ("partition", "partition, planes", "ours"),
    "reverse": ("partition", "reverse, channels-last", "ours"),
    "reverse-planes": ("partition", "reverse, planes", "ours"),
}


def open_call(name: str, batch: int, device: str = "cuda") -> tuple[Case, Way]:
    """The case of a call, and how it is called.

    Raises:
        FasterViTError: no such call.
    """
    if name not in CALLS:
        raise FasterViTError(f"no call '{name}'; there are {', '.join(CALLS)}")
    stage, part, peer_name = CALLS[name]
    prepare, peers = _PREPARE[stage]
    case = next(c for c in cases_of(stage, [_MODEL], [batch]) if c.name.startswith(f"{_MODEL} stage 3 {part}"))
    peer = next(p for p in peers if p.name == peer_name)
    return case, peer.open(prepare(case, device))


@app.command()
@torch.no_grad()
def drive(
    calls: Annotated[list[str], typer.Argument(help=f"Of {', '.join(CALLS)}.")],
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = _BATCH,
    small: Annotated[bool, typer.Option("--small", help=f"Batch {_SMALL_BATCH}.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Of each call.")] = 2,
) -> None:
    """Run kernels on the GPU a few times."""
    for call in calls:
        case, way = open_call(call, _SMALL_BATCH if small else batch)
        for i in range(repeats):
            way.call(*way.sets[i % len(way.sets)])
        torch.cuda.synchronize()
        say(f"{call}: {case.name}, {case.shape}, {case.bytes / 1e6:.1f} MB, {case.flop / 1e9:.2f} GFLOP")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.gpu.driver``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
