"""How a call is timed on a GPU: graph replays over rotating inputs, between events, in turn with its peers."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu.state import GpuState, StateProbe

__all__ = [
    "Clock",
    "CudaClock",
    "HostClock",
    "Lap",
    "Timings",
    "clock_for",
    "input_sets",
    "latency_seconds",
    "take_turns",
]

ROUNDS = 5
_MIN_SAMPLE_SECONDS = 0.5e-3  # an event's resolution is half a microsecond, and two in a row are a few apart
_MIN_SAMPLES = 3  # of a round
_WARM_UP_CALLS = 3
_MIN_SETS, _MAX_SETS = 2, 64
_CACHES = 2  # inputs and results in turn take at least as many times the L2 cache


@dataclass(frozen=True)
class Lap:
    """Something to run again and again: ``calls`` calls, one per set of inputs."""

    run: Callable[[], object]
    calls: int
    captured: bool
    keeps: object = None  # what must stay in memory for it


@dataclass(frozen=True)
class Timings:
    """Samples of one lap, by round, in seconds per call; and the GPU in the middle of it."""

    rounds: Sequence[Sequence[float]]

    @property
    def samples(self) -> list[float]:
        return [sample for samples in self.rounds for sample in samples]

    @property
    def medians(self) -> list[float]:
        return [float(np.median(samples)) for samples in self.rounds]


class Clock(Protocol):
    """Times on one device."""

    def lap(
        self, call: Callable[..., Tensor | tuple[Tensor, ...]], sets: Sequence[tuple[Any, ...]], *, capture: bool
    ) -> Lap: ...

    def samples(self, lap: Lap, count: int, repeats: int) -> list[float]:
        """``count`` times ``repeats`` runs of ``lap``, in seconds per call."""
        ...

    def synchronize(self) -> None: ...


class CudaClock:
    """Between CUDA events; laps are CUDA graphs where they can be captured.

    Args:
        stream: to capture on. Graphs that are to run at the same time need one each: cuBLAS has a workspace per stream.
    """

    def __init__(self, stream: torch.cuda.Stream | None = None) -> None:
        self._stream = stream

    def lap(
        self, call: Callable[..., Tensor | tuple[Tensor, ...]], sets: Sequence[tuple[Any, ...]], *, capture: bool
    ) -> Lap:
        # Compilers, libraries' handles and allocations come before the capture, on a stream like that of the capture.
        stream = self._stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(_WARM_UP_CALLS):
                call(*sets[i % len(sets)])
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if not capture:
            return Lap(lambda: [call(*x) for x in sets], len(sets), captured=False)
        graph = torch.cuda.CUDAGraph()
        # Compilers have threads of their own.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            results = [call(*x) for x in sets]  # all alive: one written over and over would stay in the cache
        return Lap(graph.replay, len(sets), captured=True, keeps=results)

    def samples(self, lap: Lap, count: int, repeats: int) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            for _ in range(repeats):
                lap.run()
            mark.record()
        marks[-1].synchronize()
        spans = itertools.pairwise(marks)
        return [first.elapsed_time(second) / 1e3 / (repeats * lap.calls) for first, second in spans]

    def synchronize(self) -> None:
        torch.cuda.synchronize()


class HostClock:
    """Wall clock on a CPU, where the same stages are tested."""

    def lap(
        self, call: Callable[..., Tensor | tuple[Tensor, ...]], sets: Sequence[tuple[Any, ...]], *, capture: bool
    ) -> Lap:
        return Lap(lambda: [call(*x) for x in sets], len(sets), captured=False)

    def samples(self, lap: Lap, count: int, repeats: int) -> list[float]:
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            for _ in range(repeats):
                lap.run()
            taken.append((time.perf_counter() - start) / (repeats * lap.calls))
        return taken

    def synchronize(self) -> None:
        pass


def clock_for(device: str) -> Clock:
    """Events where there are some."""
    return CudaClock() if device == "cuda" else HostClock()


def input_sets(bytes_per_call: int, cache_bytes: int) -> int:
    """How many sets of inputs and results take :data:`_CACHES` times the cache; tiny ones stop short of it."""
    return min(max(math.ceil(_CACHES * cache_bytes / max(bytes_per_call, 1)) + 1, _MIN_SETS), _MAX_SETS)


def take_turns(
    laps: Mapping[str, Lap], seconds: float, clock: Clock, rounds: int = ROUNDS
) -> tuple[dict[str, Timings], GpuState]:
    """Time every lap for ``seconds`` in slices, in turn, so that a GPU whose clocks drift drifts for all alike."""
    pace = {name: _pace(lap, seconds / rounds, clock) for name, lap in laps.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in laps}
    probe: StateProbe | None = None
    for i in range(rounds):
        for name, lap in laps.items():
            clock.samples(lap, 1, 1)  # something else ran before
            taken[name].append(clock.samples(lap, *pace[name]))
        if i == rounds // 2:
            probe = StateProbe()  # answers while the next rounds run
    return {name: Timings(samples) for name, samples in taken.items()}, probe.read() if probe else GpuState()


def latency_seconds(lap: Lap, seconds: float, clock: Clock) -> float:
    """Host clock around one run and its end, median: what one caller waits for."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _MIN_SAMPLES or time.perf_counter() < end:
        clock.synchronize()
        start = time.perf_counter()
        lap.run()
        clock.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) / lap.calls


def _pace(lap: Lap, seconds: float, clock: Clock) -> tuple[int, int]:
    """How many samples of how many runs fill ``seconds``."""
    clock.samples(lap, 1, _WARM_UP_CALLS)
    run = min(clock.samples(lap, 3, 1)) * lap.calls
    repeats = max(1, math.ceil(_MIN_SAMPLE_SECONDS / max(run, 1e-9)))
    return max(_MIN_SAMPLES, int(seconds / max(run * repeats, 1e-9))), repeats
