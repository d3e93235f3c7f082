"""Images of many requests in, their outputs out: what waits is executed together, first come, first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from fastervit_trt.deploy.serving.refusal import RefusedError

__all__ = ["Answer", "Batcher"]

_Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Answer:
    """Outputs of one request, and the seconds it waited and was executed for."""

    outputs: tuple[np.ndarray, ...]
    queue_s: float
    infer_s: float


@dataclass(eq=False)
class _Job:
    images: np.ndarray
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Executes in a thread of its own; a request that is larger than a batch is executed alone.

    Args:
        run: float32 (B, 3, H, W) → the outputs, each (B, …).
        largest: images put together for one execution.
        delay_s: seconds the first of them may wait for others.
        executed: is told the number of images and the seconds of every execution.
    """

    def __init__(self, run: _Run, *, largest: int, delay_s: float, executed: Callable[[int, float], None]) -> None:
        self._run, self._largest, self._delay_s, self._executed = run, largest, delay_s, executed
        self._waiting = deque[_Job]()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, images: np.ndarray) -> Future[Answer]:
        """Queue a request; cancelling the future takes it out again, unless its execution has begun.

        Raises:
            RefusedError: the server is stopping.
        """
        job = _Job(images)
        with self._changed:
            if self._closed:
                raise RefusedError(503, "the server is stopping")
            self._waiting.append(job)
            self._changed.notify()
        job.future.add_done_callback(lambda future: self._forget(job) if future.cancelled() else None)
        return job.future

    def hurry(self) -> None:
        """Wait for company no more."""
        with self._changed:
            self._delay_s = 0.0
            self._changed.notify()

    def close(self) -> None:
        """Execute what waits, take no more, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            begun = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if begun:
                self._execute(begun)

    def _next(self) -> list[_Job]:
        """The requests of the next execution, in the order they came; none when there will be no more."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                left = self._waiting[0].since + self._delay_s - time.perf_counter()
                if left <= 0 or self._closed or self._is_full():
                    return self._taken()
                self._changed.wait(left)

    def _is_full(self) -> bool:
        return sum(len(job.images) for job in self._waiting) >= self._largest

    def _taken(self) -> list[_Job]:
        jobs = [self._waiting.popleft()]
        images = len(jobs[0].images)
        while self._waiting and images + len(self._waiting[0].images) <= self._largest:
            jobs.append(self._waiting.popleft())
            images += len(jobs[-1].images)
        return jobs

    def _execute(self, jobs: list[_Job]) -> None:
        begin = time.perf_counter()
        try:
            outputs = self._run(jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs]))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # what one of them does to the engine is not for the others to suffer
                self._execute([job])
            return
        seconds, start = time.perf_counter() - begin, 0
        self._executed(sum(len(job.images) for job in jobs), seconds)
        for job in jobs:
            stop = start + len(job.images)
            job.future.set_result(Answer(tuple(o[start:stop] for o in outputs), begin - job.since, seconds))
            start = stop

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()
