"""A network in, what one forward pass of it costs out: multiply-adds, peak memory, seconds."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import psutil
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fastervit_trt.export.deploy import bake_position_tables

__all__ = ["MultiplyAdds", "call_seconds", "free_bytes", "multiply_adds", "peak_bytes"]

_MEMORY = "[memory]"  # what the profiler calls an allocation, and with a negative size the end of one
_QUIET = "99"  # above every level: the profiler tells stderr when it starts and stops otherwise
_FLOP = 2  # per multiply-add


@dataclass(frozen=True)
class MultiplyAdds:
    """Of one image. Normalisation, activations, softmax and additions are no matrix arithmetic and left out.

    Attributes:
        convolutions: of stem, convolution blocks and downsamplers, or of the patches.
        linear: projections and MLPs: proportional to the number of tokens.
        attention: q kᵀ and the weighted sum of v, wherever attention is: what grows with the square of the tokens if
            all see all.
    """

    convolutions: int
    linear: int
    attention: int

    @property
    def total(self) -> int:
        return self.convolutions + self.linear + self.attention

    @property
    def attention_share(self) -> float:
        return self.attention / self.total


def multiply_adds(model: nn.Module, in_chans: int, resolution: tuple[int, int]) -> MultiplyAdds:
    """Counted by PyTorch from the shapes of every product, on a copy of ``model`` (training form) without data.

    Position tables are constants of a trained model, so their MLPs are not counted: the deploy form has none.
    """
    holder = nn.Sequential(copy.deepcopy(model)).eval()
    bake_position_tables(holder)
    image = torch.empty(1, in_chans, *resolution, device="meta")
    counter = FlopCounterMode(display=False)
    # As products that the counter knows, instead of a fused kernel that it may not know.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        holder.to("meta")(image)
    counts = {str(op).rpartition(".")[2]: flop // _FLOP for op, flop in counter.get_flop_counts()["Global"].items()}
    convolutions, attention = counts.pop("convolution", 0), counts.pop("bmm", 0)
    return MultiplyAdds(convolutions, sum(counts.values()), attention)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors alive at one moment of ``call``, beside those from before, as PyTorch's allocators say.

    On a CPU replayed from the profiler's record of every allocation, so it is exact and the same on every machine: the
    growth of the resident set without what malloc keeps for later. Scratch memory of oneDNN is not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", _QUIET)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == _MEMORY]
    return max(accumulate((event.nbytes() for event in events), initial=0))


def free_bytes(device: torch.device) -> int:
    """Memory that is still to be had on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def call_seconds(call: Callable[[], object], device: torch.device, seconds: float, least: int) -> list[float]:
    """Seconds of each call for about ``seconds``, at least ``least`` of them, after one that is not counted.

    On a GPU between CUDA events, so that launching is hidden where the GPU is busy, as in a stream of images.
    """
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < least or time.perf_counter() < end:
        samples.append(_cuda_seconds(call, device) if device.type == "cuda" else _host_seconds(call))
    return samples


def _host_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
