"""Calls in, seconds out: warmed up until stable, budgeted in seconds, every sample kept; and what the samples say."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "STABLE",
    "Rounds",
    "Timer",
    "WarmUp",
    "calls_for",
    "drift",
    "interleaved",
    "is_stable",
    "warm_up",
]

# Two halves of a measurement, or windows of a warm-up, that differ by less are the same speed. Clocks that ramp, heat
# and other processes show up as 10 % and more; what repeats on a quiet machine stays within 2 %.
STABLE = 0.05

_WARM_UP_SECONDS = 0.3
_WARM_UP_CALLS = 3
_MIN_CALLS_PER_ROUND = 3

_WINDOW_SECONDS = 0.1  # so that the least warm-up has several
_WINDOWS = 3  # alike in a row: two may be by chance
_MIN_CALL_SECONDS = 1e-9  # a clock may stand still between two calls


@dataclass(frozen=True)
class WarmUp:
    """How a runner came to its speed."""

    seconds: float  # that it took
    calls: int  # samples asked for
    settled: bool  # False: the call time still changed when the most seconds were over
    call_seconds: float  # median of the last window, to pace the slices by


def warm_up(
    sample: Callable[[int], list[float]],
    *,
    least_seconds: float = _WARM_UP_SECONDS,
    most_seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> WarmUp:
    """Call until the call time is stable.

    The first call stands alone: it compiles, tunes, allocates. Then windows of 0.1 s (of one call where calls are
    longer) follow until the medians of the last three lie within :data:`STABLE` of each other and ``least_seconds``
    are over since that call. A window has at most twice the calls of the one before, as the call time that its length
    is reckoned from may be wrong; those that have not grown to 0.1 s are not compared.

    Args:
        sample: runs so many batches and gives the seconds of each, as ``Runner.latency`` does.
        least_seconds: clocks of GPUs take this long to rise; allocators and caches are faster.
        most_seconds: no window begins later; at least three are compared, so that slow calls have a chance to settle.
    """
    start = clock()
    sample(1)
    begun = now = clock()
    calls, count, pace, medians = 1, 1, now - start, list[float]()
    while True:
        wanted = calls_for(_WINDOW_SECONDS, pace, least=1)
        count = min(2 * count, wanted)
        call = statistics.median(sample(count))
        calls, before, now = calls + count, now, clock()
        pace = (now - before) / count  # more than the samples say where something is done between them
        if count == wanted:
            medians.append(call)
        last = medians[-_WINDOWS:]
        alike = len(last) == _WINDOWS and max(last) <= min(last) * (1 + STABLE)
        if (alike and now - begun >= least_seconds) or (len(last) == _WINDOWS and now - start >= most_seconds):
            return WarmUp(now - start, calls, alike, call)


def calls_for(seconds: float, call_seconds: float, streams: int = 1, *, least: int = _MIN_CALLS_PER_ROUND) -> int:
    """How many samples fill a slice of ``seconds``.

    Args:
        call_seconds: per batch, as samples say it; with several streams a sample takes that many batches.
        least: samples whatever they take, as a slice of one or two has no median to speak of.
    """
    return max(least, math.ceil(seconds / (max(call_seconds, _MIN_CALL_SECONDS) * streams)))


def drift(rounds: Sequence[Sequence[float]]) -> float:
    """Median of the second half of the time over that of the first, minus 1.

    Rounds take equal time, but not equally many calls: the halves are halves of the rounds (the middle one of an odd
    number is cut in its own middle, and so is a single one), and each round weighs the same in its half. A round in
    which the machine was slow would otherwise count less than one in which it was fast.

    Args:
        rounds: samples in seconds, in order of time; two at least in all.

    Raises:
        ValueError: fewer than two samples.
    """
    filled = [list(samples) for samples in rounds if samples]
    if sum(map(len, filled)) < 2:
        raise ValueError("drift needs at least two samples")
    middle, odd = divmod(len(filled), 2)
    first, second = filled[:middle], filled[middle + odd :]
    if odd:
        cut = filled[middle]
        first, second = [*first, cut[: len(cut) // 2]], [cut[len(cut) // 2 :], *second]
    return _median_of_equals(second) / _median_of_equals(first) - 1


def is_stable(drift_of_time: float) -> bool:
    """Whether the two halves of a measurement are the same speed; nothing is where the drift is not a number."""
    return abs(drift_of_time) <= STABLE


def _median_of_equals(rounds: Sequence[Sequence[float]]) -> float:
    """Median of the samples of ``rounds`` in which every round weighs the same; of equal lengths the usual median."""
    samples = np.concatenate([np.asarray(samples, float) for samples in rounds if samples])
    weights = np.concatenate([np.full(len(samples), 1 / len(samples)) for samples in rounds if samples])
    order = np.argsort(samples)
    below = np.cumsum(weights[order])
    half = below[-1] / 2
    # Where exactly half the weight ends at a sample, the median lies between it and the next.
    low = int(np.searchsorted(below, half * (1 - 1e-9)))
    high = int(np.searchsorted(below, half * (1 + 1e-9)))
    return float(samples[order[low]] + samples[order[high]]) / 2


@dataclass(frozen=True)
class Rounds:
    """Samples of one runner, by round, in seconds per batch; speaks in columns of :class:`BenchmarkRow`."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def samples(self) -> list[float]:
        return [sample for samples in self.rounds for sample in samples]

    @property
    def drift(self) -> float:
        return drift(self.rounds)

    @property
    def stable(self) -> bool:
        return is_stable(self.drift)

    def latency_columns(self) -> dict[str, Any]:
        """``latency_p20_ms`` to ``latency_p99_ms``, ``latency_samples`` and ``latency_drift``."""
        percentiles = (20, 50, 80, 90, 95, 99)
        times = np.percentile(self.samples, percentiles)
        columns = {f"latency_p{p}_ms": float(value) * 1e3 for p, value in zip(percentiles, times, strict=True)}
        return {**columns, "latency_samples": len(self.samples), "latency_drift": self.drift}

    def throughput_columns(self, batch: int) -> dict[str, Any]:
        """``throughput_img_per_s`` at the median call and its percentiles; 20 % of the calls exceed the 80th."""
        slow, median, fast = (batch / float(np.percentile(self.samples, p)) for p in (80, 50, 20))
        return {
            "throughput_img_per_s": median,
            "throughput_p20_img_per_s": slow,
            "throughput_p80_img_per_s": fast,
            "throughput_samples": len(self.samples),
            "throughput_drift": self.drift,
        }


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
