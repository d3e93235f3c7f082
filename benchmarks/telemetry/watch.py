"""The device that is timed in, what it and the machine did meanwhile out, and what of that casts doubt on the time."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil

from fastervit_trt.benchmarks.backends.runner import DeviceFacts
from fastervit_trt.benchmarks.telemetry.gpu_sample import GpuSample, GpuSource, merged
from fastervit_trt.benchmarks.telemetry.host_load import CpuTimes, affinity, affinity_text
from fastervit_trt.benchmarks.telemetry.jetson import Jetson
from fastervit_trt.benchmarks.telemetry.nvml import NvmlGpu
from fastervit_trt.benchmarks.telemetry.throttle import IDLE, doubtful
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import cpu_name, peak_rss_mib

__all__ = ["Telemetry"]

_INTERVAL_S = 0.1  # asking takes some 100 µs of one CPU core; drivers renew what they say every 20 to 100 ms
_BUSY_OTHERS = 0.1  # of a core, for each that this process may use
_CLOCK_FELL = 0.05
_COUNTER_SECONDS = 1.0  # the energy counter is renewed up to every 100 ms: over less time than this it is too coarse


class Telemetry:
    """Watches between :meth:`start` and :meth:`stop` only, so that slices of others in between do not count.

    Args:
        device: that runs what is timed; of a CPU only the load of other processes is watched.
        family: the process whose descendants may be on the GPU, too, because they wait for their turn; this one by
            default.
        root: of the file system that a Jetson's sensors are in.
    """

    def __init__(
        self,
        device: DeviceFacts,
        *,
        family: int | None = None,
        root: Path = Path("/"),
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._device, self._family, self._root, self._interval_s = device, family or os.getpid(), root, interval_s
        self._cpus = affinity()
        self._load_before = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        self._nvml: NvmlGpu | None = None
        self._jetson: Jetson | None = None
        self._blind = ""
        self._samples: list[GpuSample] = []
        self._seconds = self._others = self._others_here = self._counted_mj = 0.0
        self._images = self._other_processes = 0
        self._gpu_memory_mib: int | None = None
        self._started: tuple[CpuTimes, int | None] | None = None
        self._lock, self._watching, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._held = ExitStack()

    def __enter__(self) -> Telemetry:
        if self._device.kind == "gpu":
            self._jetson = Jetson.find(self._root)
            try:
                self._nvml = NvmlGpu(self._device.ordinal)
                self._held.callback(self._nvml.close)
            except FasterViTError as error:
                self._blind = str(error)
            if self._sources:
                thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)
                thread.start()
                self._held.callback(thread.join)
                self._held.callback(self._leave)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._started is not None:
            self.stop()
        self._held.close()

    def start(self) -> None:
        """What is timed runs from now on."""
        assert self._started is None, "already started"
        self._started = CpuTimes.now(self._cpus), self._nvml.energy_mj() if self._nvml else None
        self._watching.set()

    def stop(self) -> None:
        """It runs no longer."""
        assert self._started is not None, "not started"
        with self._lock:  # no sample may be taken once somebody else has the GPU
            self._watching.clear()
        (before, energy), self._started = self._started, None
        if self._nvml is not None:
            self._count_energy(energy, self._nvml.energy_mj())
            self._look_at_processes(self._nvml.processes())
        now = CpuTimes.now(self._cpus)
        others, others_here = now.others_since(before)
        self._seconds += now.at - before.at
        self._others += others
        self._others_here += others_here

    def add_images(self, count: int) -> None:
        """So many were executed while it was watched."""
        self._images += count

    def context(self) -> dict[str, Any]:
        """Columns of :class:`~fastervit_trt.benchmarks.rows.BenchmarkRow` that are known before anything is timed."""
        nvml = self._nvml
        driver = (nvml.driver if nvml else "", self._jetson.release if self._jetson else "")
        return {
            "affinity": affinity_text(self._cpus),
            "load_before": self._load_before,
            "cpu": cpu_name(),
            "driver": ", ".join(text for text in driver if text),
            "cuda": nvml.cuda if nvml else "",
            "compute_capability": self._device.compute_capability or (nvml.compute_capability if nvml else ""),
        }

    def summary(self) -> dict[str, Any]:
        """Columns of :class:`~fastervit_trt.benchmarks.rows.BenchmarkRow` that were watched; None: not known."""
        sm_clocks, power_w = self._values("sm_clock_mhz"), self._power_w()
        reasons = [reason for reason in self._reasons() if reason != IDLE]
        return {
            "other_load": round(self._others / self._seconds, 3) if self._seconds else None,
            "sm_clock_mhz": _rounded(np.median, sm_clocks, 0),
            "sm_clock_low_mhz": _rounded(np.min, sm_clocks, 0),
            "memory_clock_mhz": _rounded(np.median, self._values("memory_clock_mhz"), 0),
            "power_w": round(power_w, 1) if power_w is not None else None,
            "temperature_c": _rounded(np.max, self._values("temperature_c"), 1),
            "throttle": " + ".join(reasons),
            "energy_mj_per_image": self._energy_mj_per_image(power_w),
            "flags": "; ".join(self._flags(sm_clocks)),
            "gpu_memory_mib": self._gpu_memory_mib,
            "peak_rss_mib": peak_rss_mib(),
        }

    @property
    def _sources(self) -> list[GpuSource]:
        return [source for source in (self._nvml, self._jetson) if source is not None]

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._watching.wait()
            if self._closed.wait(self._interval_s):  # the first moments of a slice are not what it is like
                return
            with self._lock:
                if self._watching.is_set():
                    self._samples.append(merged([source.sample() for source in self._sources]))

    def _leave(self) -> None:
        self._closed.set()
        self._watching.set()

    def _count_energy(self, before: int | None, after: int | None) -> None:
        if before is not None and after is not None:
            self._counted_mj += after - before

    def _look_at_processes(self, found: dict[int, int | None]) -> None:
        own, family = _pids(os.getpid()), _pids(self._family)
        mine = [memory for pid, memory in found.items() if pid in own]
        if not mine and len(found) == 1:
            mine = list(found.values())  # this one, whose number outside of the container is another
        known = len(found.keys() & family) if found.keys() & own else len(family)
        self._other_processes = max(self._other_processes, len(found) - max(known, 1))
        used = [memory for memory in mine if memory is not None]
        if used:
            self._gpu_memory_mib = max(self._gpu_memory_mib or 0, sum(used))

    def _values(self, name: str) -> list[float]:
        values = [getattr(sample, name) for sample in self._samples]
        return [value for value in values if value is not None]

    def _reasons(self) -> Counter[str]:
        """How many samples have each."""
        return Counter(reason for sample in self._samples for reason in sample.throttle)

    def _power_w(self) -> float | None:
        if self._counted_mj and self._seconds >= _COUNTER_SECONDS:
            return self._counted_mj / 1e3 / self._seconds
        sampled = self._values("power_w")
        return float(np.mean(sampled)) if sampled else None

    def _energy_mj_per_image(self, power_w: float | None) -> float | None:
        if power_w is None or not self._images:
            return None
        return round(power_w * 1e3 * self._seconds / self._images, 3)

    def _flags(self, sm_clocks: Sequence[float]) -> list[str]:
        flags = []
        if self._device.kind == "gpu" and not sm_clocks:
            why = self._blind or ("it does not say" if self._samples else "too short to look")
            flags.append(f"clocks of the GPU are not known ({why})")
        reasons = self._reasons()
        flags += [f"{reason} in {reasons[reason] / len(self._samples):.0%} of samples" for reason in doubtful(reasons)]
        if (fell := _fall(sm_clocks)) > _CLOCK_FELL:
            flags.append(f"clocks of the GPU fell by {fell:.0%}")
        if self._seconds and self._others_here / self._seconds > _BUSY_OTHERS * len(self._cpus):
            cores = self._others_here / self._seconds
            flags.append(f"other processes used {cores:.2f} of the {len(self._cpus)} CPUs it had")
        if self._other_processes:
            flags.append(f"{self._other_processes} other process{'es' * (self._other_processes > 1)} on the GPU")
        return flags


def _pids(process: int) -> set[int]:
    """Of a process and all its descendants."""
    try:
        return {process, *(child.pid for child in psutil.Process(process).children(recursive=True))}
    except psutil.Error:
        return {process}


def _fall(values: Sequence[float]) -> float:
    """By how much the median of the last third is below that of the first, as a share of it."""
    third = len(values) // 3
    if not third:
        return 0.0
    first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
    return 1 - last / first if first else 0.0


def _rounded(function: Any, values: Sequence[float], digits: int) -> float | None:
    return round(float(function(values)), digits) if values else None
