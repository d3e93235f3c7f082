"""A GPU that is as unkind as CUDA allows: it does nothing before it must, in any order that streams and events permit.

Device memory is NaN until written, copies read and write host memory when they execute and not when they are asked
for, memory that was freed is gone, and captured work is recorded, not executed. What code has not waited for, it gets
wrong here. Its clock advances by what executes, one thing at a time: a GPU that is full.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastervit_trt.engines.runtime.device import CaptureFailedError
from fastervit_trt.errors import FasterViTError

__all__ = ["COPY", "FILL", "Op", "SimDevice", "SimEvent", "SimStream", "SimulatorError"]

# Seconds on the GPU's clock; powers of two, so that sums and differences are exact.
COPY, FILL = 2.0**-7, 8.0
_GAP = 4096  # between allocations, so that running over the end of one hits nothing


class SimulatorError(AssertionError):
    """Something that on a GPU is undefined behaviour."""


@dataclass
class Op:
    """A piece of work, once it is ready."""

    run: Callable[[], None]
    ready: Callable[[], bool] = lambda: True


class SimEvent:
    def __init__(self, device: SimDevice, timed: bool) -> None:
        self.device, self.timed, self.at = device, timed, 0.0
        self.recorded = self.completed = 0
        self.freed = False

    def record(self, stream: SimStream) -> None:
        self.device.use(self)
        self.recorded += 1
        version = self.recorded

        def complete() -> None:
            self.completed = max(self.completed, version)
            self.at = self.device.clock

        stream.push(Op(complete))

    def synchronise(self) -> None:
        self.device.use(self)
        version = self.recorded
        self.device.run_until(lambda: self.completed >= version)

    def seconds_till(self, later: SimEvent) -> float:
        for event in (self, later):
            self.device.use(event)
            if not event.timed or not event.recorded or event.completed < event.recorded:
                raise SimulatorError("asked for the time of an event that has none, or none yet")
        return later.at - self.at

    def free(self) -> None:
        self.device.let_go(self)


class SimStream:
    def __init__(self, device: SimDevice, handle: int) -> None:
        self.device, self.handle = device, handle
        self.queue: deque[Op] = deque()
        self.recording: list[Op] | None = None
        self.freed = False

    def push(self, op: Op) -> None:
        self.device.use(self)
        if self.recording is not None:
            self.recording.append(op)
            return
        self.queue.append(op)
        self.device.progress()

    def wait(self, event: SimEvent) -> None:
        self.device.use(event)
        version = event.recorded
        self.push(Op(lambda: None, lambda: event.completed >= version))

    def synchronise(self) -> None:
        self.device.use(self)
        if self.recording is not None:
            raise SimulatorError("a stream that captures cannot be waited for")
        self.device.run_until(lambda: not self.queue)

    def free(self) -> None:
        if self.queue:
            raise SimulatorError("a stream was freed with work on it")
        self.device.let_go(self)


class SimMemory:
    def __init__(self, device: SimDevice, address: int, size: int) -> None:
        self.device, self.address = device, address
        self.bytes = np.full(-(-size // 4), np.nan, np.float32).view(np.uint8)[:size]
        self.freed = False

    def free(self) -> None:
        self.device.let_go(self)
        del self.device.memory[self.address]


class SimPinned:
    def __init__(self, device: SimDevice, shape: tuple[int, ...]) -> None:
        self.device, self.freed = device, False
        self.array = np.full(shape, np.nan, np.float32)

    def free(self) -> None:
        self.device.let_go(self)
        self.array[...] = np.nan
        self.device.pinned_arrays.remove(self)


class SimGraph:
    def __init__(self, device: SimDevice, ops: list[Op]) -> None:
        self.device, self.ops, self.freed, self.launches = device, ops, False, 0

    def launch(self, stream: SimStream) -> None:
        self.device.use(self)
        self.launches += 1
        for op in self.ops:
            stream.push(Op(op.run, op.ready))

    def free(self) -> None:
        self.device.let_go(self)


@dataclass
class SimDevice:
    """A :class:`~fastervit_trt.engines.runtime.device.Device`.

    Args:
        seed: of the order of execution, and of how much executes before anybody waits.
        refuses_capture: what capturing fails with.
    """

    seed: int
    refuses_capture: str | None = None
    allocations: int | None = None  # that succeed
    name: str = "Simulated GPU"
    capability: str = "8.9"
    ordinal: int = 0
    l2_bytes: int = 1000
    seconds_per_image: float = 2.0**-4  # of execution, if the cache is not empty
    clock: float = 0.0
    cold: bool = False  # whether the cache is empty
    fills: list[tuple[int, int]] = field(default_factory=list)  # address, size
    depth: int = 0  # of nested ``active``
    memory: dict[int, SimMemory] = field(default_factory=dict)
    adopted: list[tuple[int, np.ndarray]] = field(default_factory=list)
    pinned_arrays: list[SimPinned] = field(default_factory=list)
    streams: dict[int, SimStream] = field(default_factory=dict)
    graphs: list[SimGraph] = field(default_factory=list)
    alive: int = 0  # of everything that must be freed
    largest_backlog: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._eagerness = self._random.choice([0.0, 0.3, 0.9])
        self._next = 1 << 20

    @contextmanager
    def active(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def allocate(self, size: int) -> SimMemory:
        assert size > 0
        if self.allocations is not None:
            if not self.allocations:
                raise FasterViTError("GPU 0 has not enough memory")
            self.allocations -= 1
        self._next += _GAP
        memory = self._new(SimMemory(self, self._next, size))
        self.memory[memory.address] = memory
        self._next += size + -size % 256
        return memory

    def pinned(self, shape: tuple[int, ...]) -> SimPinned:
        pinned = self._new(SimPinned(self, shape))
        self.pinned_arrays.append(pinned)
        return pinned

    def stream(self) -> SimStream:
        stream = self._new(SimStream(self, 7 + 13 * len(self.streams)))
        self.streams[stream.handle] = stream
        return stream

    def event(self, *, timed: bool = False) -> SimEvent:
        return self._new(SimEvent(self, timed))

    def fill(self, address: int, size: int, stream: SimStream) -> None:
        def write() -> None:
            self._view(address, size)[:] = 0
            self.fills.append((address, size))
            self.clock += FILL
            self.cold = True

        stream.push(Op(write))

    def execute(self, images: int) -> None:
        """Let the time of an execution pass; from an empty cache it takes twice as long."""
        self.clock += images * self.seconds_per_image * (2 if self.cold else 1)
        self.cold = False

    def copy_in(self, address: int, source: np.ndarray, stream: SimStream) -> None:
        self._page_locked(source)

        def copy() -> None:
            self.write(address, source)
            self.clock += COPY

        stream.push(Op(copy))

    def copy_out(self, target: np.ndarray, address: int, stream: SimStream) -> None:
        self._page_locked(target)

        def copy() -> None:
            target[...] = self.read(address, target.shape)
            self.clock += COPY

        stream.push(Op(copy))

    def capture(self, stream: SimStream, launch: Callable[[], None]) -> SimGraph:
        self.use(stream)
        if self.refuses_capture is not None:
            raise CaptureFailedError(self.refuses_capture)
        stream.recording = []
        try:
            launch()
        finally:
            ops, stream.recording = stream.recording, None
        graph = self._new(SimGraph(self, ops))
        self.graphs.append(graph)
        return graph

    def read(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._view(address, 4 * int(np.prod(shape))).view(np.float32).reshape(shape).copy()

    def write(self, address: int, values: np.ndarray) -> None:
        assert values.dtype == np.float32
        self._view(address, values.nbytes)[:] = np.ascontiguousarray(values).view(np.uint8).ravel()

    def adopt(self, array: np.ndarray) -> None:
        """Memory of somebody else, PyTorch's for one, becomes the device's under its own address."""
        self.adopted.append((array.__array_interface__["data"][0], array.view(np.uint8).reshape(-1)))

    def run_until(self, done: Callable[[], bool]) -> None:
        """Execute, in any order allowed, no more than it takes."""
        while not done():
            if not self._step():
                raise SimulatorError("nothing can go on: streams wait for what never comes")

    def progress(self) -> None:
        """Execute a little unasked, or nothing, as GPUs do."""
        backlog = sum(len(stream.queue) for stream in self.streams.values())
        self.largest_backlog = max(self.largest_backlog, backlog)
        while self._random.random() < self._eagerness and self._step():
            pass

    def run_only(self, stream: SimStream) -> int:
        """Execute on one stream as far as that goes without the others; how much is left on it."""
        while stream.queue and stream.queue[0].ready():
            stream.queue.popleft().run()
        return len(stream.queue)

    def use(self, thing: Any) -> None:
        if not self.depth:
            raise SimulatorError(f"{type(thing).__name__} used while the GPU's context is not current")
        if thing.freed:
            raise SimulatorError(f"{type(thing).__name__} used after it was freed")

    def let_go(self, thing: Any) -> None:
        self.use(thing)
        thing.freed = True
        self.alive -= 1

    def _new(self, thing: Any) -> Any:
        self.use(thing)
        self.alive += 1
        return thing

    def _step(self) -> bool:
        ready = [s for s in self.streams.values() if s.queue and s.queue[0].ready()]
        if not ready:
            return False
        self._random.choice(ready).queue.popleft().run()
        return True

    def _page_locked(self, array: np.ndarray) -> None:
        if not any(np.shares_memory(array, pinned.array) for pinned in self.pinned_arrays):
            raise SimulatorError("asynchronous copies need page-locked memory")

    def _view(self, address: int, size: int) -> np.ndarray:
        own = [(memory.address, memory.bytes) for memory in self.memory.values()]
        for start, content in own + self.adopted:
            if start <= address and address + size <= start + len(content):
                return content[address - start :][:size]
        raise SimulatorError(f"access of {size} bytes at {address:#x}: no such memory, or freed")
