"""Free memory and a graph's size in, what a build may use out; said before minutes are spent, not after them.

Building takes several times the weights. On a Jetson the GPU has no memory of its own: builder, kernels under test and
everything else on the board share one, and what runs out takes the whole process, or the board, with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil

from fastervit_trt.deploy.doctor.gpu import free_memory_mib
from fastervit_trt.errors import FasterViTError

__all__ = ["FreeMemory", "MemoryPlan", "plan_memory"]

_MIB = 1 << 20
# Fitted to TensorRT-RTX builds of FasterViT-0 to -6 in fp16 (benchmarks/results/export-scale-fp16.csv), within 8 % of
# each: graphs of 58 to 2664 MB, peaks of 577 to 8902 MiB.
_BUILDER_MIB, _BUILDER_PER_GRAPH = 400, 3.2
# What TensorRT takes on the GPU besides the workspace: context, weights twice while they are rearranged, activations.
# Assumed, not measured: no such build has been seen by this project yet.
_DEVICE_MIB, _DEVICE_PER_GRAPH = 600, 2.5
_LEAST_WORKSPACE_MIB = 64
_SHARE = 0.5  # of what is left over that kernels under test may take, so that the estimate may be wrong


@dataclass(frozen=True)
class FreeMemory:
    """MiB that can be had; ``device`` is None where that is not known, and equals the host's where they share it."""

    host: int
    swap: int
    device: int | None = None

    @classmethod
    def detect(cls) -> FreeMemory:
        """This machine's; the driver of a GPU that shares the host's memory says nothing."""
        return cls(psutil.virtual_memory().available // _MIB, psutil.swap_memory().free // _MIB, free_memory_mib())


@dataclass(frozen=True)
class MemoryPlan:
    """What a build is expected to take and the workspace it may use, all MiB; ``hint`` says how to get more."""

    needed_host: int
    needed_device: int
    free: FreeMemory
    workspace: int | None
    hint: str | None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def plan_memory(
    graph_bytes: int,
    free: FreeMemory,
    memory: Literal["unified", "device", "host"],
    *,
    workspace_mib: int | None,
    on_gpu: bool,
) -> MemoryPlan:
    """What the build of an engine may use here.

    Args:
        graph_bytes: of the graph with its weights.
        memory: whether GPU and host share one.
        workspace_mib: the most a kernel may use; None leaves it to what is free.
        on_gpu: kernels are timed on this machine's GPU, as TensorRT does and TensorRT-RTX does not.

    Raises:
        FasterViTError: there is too little to begin; says how to add swap.
    """
    graph = graph_bytes / _MIB
    host = round(_BUILDER_MIB + _BUILDER_PER_GRAPH * graph)
    device = round(_DEVICE_MIB + _DEVICE_PER_GRAPH * graph) if on_gpu else 0
    shared = memory == "unified"
    needed = host + (device if shared else 0)  # of the memory that the host sees
    # Swap holds what the builder keeps on the host; what the GPU works on cannot be swapped out.
    room_on_host = free.host + free.swap - needed
    pool = free.host - device if shared else free.device
    left = None if pool is None else pool - (0 if shared else device)
    missing = max(-room_on_host, 0)
    if missing:
        raise FasterViTError(
            f"building takes about {needed} MiB and {free.host} MiB of memory and {free.swap} MiB of swap are free; "
            f"{_swap_hint(missing)}"
        )
    if on_gpu and left is not None and left < _LEAST_WORKSPACE_MIB:
        raise FasterViTError(
            f"building takes about {device + _LEAST_WORKSPACE_MIB} MiB on the GPU and {max(pool or 0, 0)} MiB are free "
            "there; end what else runs on it"
        )
    workspace = workspace_mib
    if on_gpu and left is not None:
        most = max(_LEAST_WORKSPACE_MIB, int(left * _SHARE))
        workspace = most if workspace_mib is None else min(workspace_mib, most)
    return MemoryPlan(host, device, free, workspace, _hint(free, needed, workspace_mib, workspace))


def _hint(free: FreeMemory, needed: int, wanted: int | None, workspace: int | None) -> str | None:
    """What to say where there is enough to begin, but less than would be good."""
    if wanted is not None and workspace is not None and workspace < wanted:
        lowered = f"memory is tight, so kernels may use {workspace} MiB instead of {wanted}"
        return f"{lowered}; for faster ones, {_swap_hint(wanted - workspace)}"
    return f"memory is tight and swap will be used; {_swap_hint(needed - free.host)}" if free.host < needed else None


def _swap_hint(missing_mib: int) -> str:
    gigabytes = max(1, -(-missing_mib // 1024))
    return (
        f"end other programs, or add swap: sudo fallocate -l {gigabytes}G /swapfile && sudo chmod 600 /swapfile && "
        "sudo mkswap /swapfile && sudo swapon /swapfile"
    )
