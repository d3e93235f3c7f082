"""Wall-clock timing of a call: warmed up, budgeted in seconds, every sample kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Timer", "interleaved"]

_WARM_UP_SECONDS = 0.3
_WARM_UP_CALLS = 3
_MIN_CALLS_PER_ROUND = 3


@dataclass
class Timer:
    """Samples (seconds per call) of ``call``, which handles ``images`` images at once."""

    call: Callable[[], object]
    images: int
    samples: list[float] = field(default_factory=list)

    def warm_up(self, seconds: float = _WARM_UP_SECONDS) -> None:
        """Untimed calls until both a count and a duration are reached: allocators, caches and clocks settle."""
        end, calls = time.perf_counter() + seconds, 0
        while calls < _WARM_UP_CALLS or time.perf_counter() < end:
            self.call()
            calls += 1

    def run(self, seconds: float) -> None:
        end, calls = time.perf_counter() + seconds, 0
        while calls < _MIN_CALLS_PER_ROUND or time.perf_counter() < end:
            start = time.perf_counter()
            self.call()
            self.samples.append(time.perf_counter() - start)
            calls += 1

    def slice(self, seconds: float, percentile: float = 50) -> float:
        """One untimed call, as something else ran before, then :meth:`run`; seconds per call in this slice alone."""
        self.call()
        first = len(self.samples)
        self.run(seconds)
        return float(np.percentile(self.samples[first:], percentile))

    def latency_ms(self, percentile: float) -> float:
        return float(np.percentile(self.samples, percentile)) * 1e3

    def images_per_second(self, percentile: float = 50) -> float:
        """Throughput at a percentile of the call time; the median by default."""
        return self.images / float(np.percentile(self.samples, percentile))


def interleaved(
    timers: list[Timer],
    seconds: float,
    rounds: int = 5,
    warm_up_seconds: float = _WARM_UP_SECONDS,
    before_turn: Callable[[], object] = lambda: None,
) -> None:
    """Give every timer ``seconds`` in ``rounds`` slices, in turn, so that a drifting machine drifts for all alike."""
    for timer in timers:
        timer.warm_up(warm_up_seconds)
    for _ in range(rounds):
        for timer in timers:
            before_turn()
            timer.run(seconds / rounds)
