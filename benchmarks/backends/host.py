"""Calls that run on the CPU in, a runner out: one call over all threads, or several side by side for throughput."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from fastervit_trt.benchmarks.backends.request import check_images
from fastervit_trt.benchmarks.backends.runner import Artifact, Clock, DeviceFacts, Outputs, Request
from fastervit_trt.engines.runtime.completions import completions_for, seconds_between
from fastervit_trt.export.batch import BatchRange, run_padded
from fastervit_trt.host import cpu_name

__all__ = ["Call", "HostRunner", "Lanes", "ThreadLanes"]

Call = Callable[[np.ndarray], Outputs]  # images (B, 3, H, W) → outputs (B, …), waited for


class Lanes(Protocol):
    """Several batches under way at once, one per lane."""

    count: int

    def prepare(self, images: np.ndarray) -> None:
        """Take the batch that every lane runs from now on, and run it once in each, one after the other."""

    def completions(self, total: int) -> list[float]:
        """Run ``total`` batches, a lane taking the next when it is done; when each was done, in seconds."""

    def close(self) -> None:
        """End its threads."""


class ThreadLanes:
    """A thread per call.

    Args:
        calls: one per lane; each is called by one thread at a time.
        enter: run by a thread before it takes its first batch, each time; what holds for threads is set there.
    """

    def __init__(self, calls: Sequence[Call], enter: Callable[[], object] = lambda: None) -> None:
        self.count = len(calls)
        self._calls, self._enter = calls, enter
        self._images = np.empty(0, np.float32)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")

    def prepare(self, images: np.ndarray) -> None:
        self._images = images
        together, one_by_one = threading.Barrier(self.count), threading.Lock()

        def first_call(call: Call) -> None:
            together.wait()
            with one_by_one:  # what compiles at its first call does not like company
                self._enter()
                call(images)

        list(self._pool.map(first_call, self._calls))

    def completions(self, total: int) -> list[float]:
        together, numbers, done = threading.Barrier(self.count), itertools.count(), list[float]()

        def work(call: Call) -> None:
            self._enter()
            together.wait()  # so that no thread is done before the last has come
            while next(numbers) < total:
                call(self._images)
                done.append(time.perf_counter())

        list(self._pool.map(work, self._calls))
        return done

    def close(self) -> None:
        self._pool.shutdown()


class HostRunner:
    """A :class:`Runner` whose clock is the host's.

    Args:
        alone: the call that has all threads.
        lanes: what throughput is measured on where several streams were asked for, else None.
        batch: sizes ``alone`` takes.
        on_close: gives back what the calls hold.
    """

    clock: Clock = "host"

    def __init__(
        self,
        request: Request,
        alone: Call,
        lanes: Lanes | None,
        *,
        artifact: Artifact,
        batch: BatchRange,
        emulated: bool = False,
        note: str = "",
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self.artifact, self.batch, self.emulated, self.note = artifact, batch, emulated, note
        self.device = DeviceFacts("cpu", cpu_name())
        self._request, self._alone, self._lanes, self._on_close = request, alone, lanes, on_close
        self._images: np.ndarray | None = None

    def outputs(self, images: np.ndarray) -> Outputs:
        return run_padded(self._alone, self.batch, images)

    def prepare(self, images: np.ndarray) -> None:
        self._images = check_images(self._request, images)
        self._alone(self._images)
        if self._lanes is not None:
            self._lanes.prepare(self._images)

    def latency(self, count: int) -> list[float]:
        assert self._images is not None, "prepare() first"
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            self._alone(self._images)
            taken.append(time.perf_counter() - start)
        return taken

    def throughput(self, count: int) -> list[float]:
        """With one stream the same as :meth:`latency`: a CPU is handed nothing ahead."""
        if self._lanes is None:
            return self.latency(count)
        streams = self._lanes.count
        return seconds_between(self._lanes.completions(completions_for(count, streams)), streams)

    def executed(self, count: int) -> int:
        return count if self._lanes is None else completions_for(count, self._lanes.count)

    def close(self) -> None:
        if self._lanes is not None:
            self._lanes.close()
        self._on_close()
