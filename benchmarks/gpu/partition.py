"""Stage ``partition``: maps into windows and back, in both layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.cases import Case, WindowsCase
from fastervit_trt.benchmarks.gpu.compare import BASELINE, Peer, Way, Work, run_comparison
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.ways import COMPILED
from fastervit_trt.plugins import reference

__all__ = ["PEERS", "prepare", "run"]


def prepare(case: Case, device: str) -> Work:
    """Maps, or tokens, in several draws; tables, gamma and the carriers that lie over tokens once."""
    assert isinstance(case, WindowsCase)
    nearest = reference.nearest_carrier(case.carriers_per_window, case.window).to(device)
    table = gpu_ways.random_tensor((1, case.rows, case.channels), 1, device)
    gamma = gpu_ways.random_tensor((case.channels,), 2, device)
    sets: list[tuple[Tensor, ...]] = []
    for seed in range(gpu_ways.number_of_sets(case.bytes, device)):
        if case.direction == "reverse":
            tok_WnNC = gpu_ways.random_tensor((case.windows, case.rows, case.channels), 10 + seed, device)
            sets.append((tok_WnNC, gamma, nearest) if case.propagates else (tok_WnNC,))
            continue
        maps = [_map(case, case.height, case.width, 10 + seed, device)]
        if case.carriers_per_window:
            side = int(case.carriers_per_window**0.5)
            grid = case.height // case.window * side, case.width // case.window * side
            maps.append(_map(case, *grid, 1000 + seed, device))
        sets.append((*maps, table))
    return Work(
        case,
        device,
        sets,
        lambda *tensors: _definition(case, *(x.double() if x.is_floating_point() else x for x in tensors)),
        lambda *tensors: _definition(case, *tensors),
    )


def run(job: Job, report: Report) -> None:
    """Every case of the job by every peer."""
    run_comparison(job, report, PEERS, prepare)


def _map(case: WindowsCase, height: int, width: int, seed: int, device: str) -> Tensor:
    x_BCHW = gpu_ways.random_tensor((case.batch, case.channels, height, width), seed, device)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    return x_BCHW.contiguous(memory_format=layout)


def _definition(case: WindowsCase, *tensors: Tensor) -> Tensor:
    if case.direction == "partition":
        x_BCHW, *carriers, table = tensors
        return reference.window_partition(x_BCHW, carriers[0] if carriers else None, table, case.window)
    tok_WnNC, *propagated = tensors
    tok_WnTC = tok_WnNC[:, case.carriers_per_window :]
    if propagated:
        # The reference would copy the indices to the GPU, which a capture forbids.
        gamma, nearest = propagated
        tok_WnTC = tok_WnTC + gamma * tok_WnNC.index_select(1, nearest)
    return reference.window_reverse(tok_WnTC, None, 0, case.window, case.height, case.width)


def _laid_out(case: WindowsCase, *tensors: Tensor) -> Tensor:
    """The definition, its result as the next layer wants it."""
    result = _definition(case, *tensors)
    if case.direction == "partition":
        return result.contiguous()
    return result.contiguous(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)


def _ours(work: Work) -> Way:
    case, kernels = _case(work), gpu_ways.kernels()

    def call(*tensors: Tensor) -> Tensor:
        if case.direction == "partition":
            x_BCHW, *carriers, table = tensors
            return kernels.window_partition(x_BCHW, carriers[0] if carriers else None, table, case.window)
        tok_WnNC, *propagated = tensors
        scale = propagated[0] if propagated else None
        sizes = (case.carriers_per_window, case.window, case.height, case.width)
        return kernels.window_reverse(tok_WnNC, scale, *sizes, channels_last=case.channels_last)

    return Way(call, work.sets)


def _eager(work: Work) -> Way:
    case = _case(work)
    return Way(lambda *tensors: _laid_out(case, *tensors), work.sets)


def _compile(work: Work) -> Way:
    return Way(gpu_ways.compiled(_eager(work).call), work.sets)


def _case(work: Work) -> WindowsCase:
    assert isinstance(work.case, WindowsCase)
    return work.case


PEERS = [
    Peer(BASELINE, "this project's kernel", _ours),
    Peer("eager", "the definition in PyTorch", _eager),
    Peer("compile", COMPILED, _compile, alone=True),
]
