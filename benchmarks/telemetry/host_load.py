"""Which CPUs this process may use, and how busy others kept them between two moments."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

__all__ = ["CpuTimes", "affinity", "affinity_text"]

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # stolen by another guest is as busy as it gets


def affinity() -> list[int]:
    """Logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def affinity_text(cpus: Sequence[int]) -> str:
    """As Linux writes it: ``[0, 1, 2, 3, 8]`` → ``"0-3,8"``."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU time up to a moment.

    Attributes:
        busy: of all processes on all CPUs.
        busy_here: of all processes on the CPUs this one may use.
        own: of this process and its children.
    """

    at: float
    busy: float
    busy_here: float
    own: float

    @classmethod
    def now(cls, cpus: Sequence[int]) -> CpuTimes:
        """Up to now; ``cpus`` as of :func:`affinity`."""
        each = [sum(getattr(one, name, 0.0) for name in _BUSY) for one in psutil.cpu_times(percpu=True)]
        here = sum(each[cpu] for cpu in cpus if cpu < len(each))
        return cls(time.perf_counter(), sum(each), here, _own_seconds())

    def others_since(self, before: CpuTimes) -> tuple[float, float]:
        """Seconds of CPU time that other processes used since: on all CPUs, and on those this one may use."""
        own = self.own - before.own
        return max(self.busy - before.busy - own, 0.0), max(self.busy_here - before.busy_here - own, 0.0)


def _own_seconds() -> float:
    this = psutil.Process()
    seconds = sum(this.cpu_times()[:4])  # user, system, and those of children that have ended
    for child in this.children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.Error:  # has ended meanwhile
            continue
    return float(seconds)
