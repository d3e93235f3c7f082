"""A batch of images in, the time of its executions out: it stays in device memory, and CUDA events tell the time.

The same batch is executed again and again, as trtexec does it. It is not varied to keep it out of the L2 cache: between
two executions of a whole network its own activations pass through that cache. Who wants the cache empty asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import numpy as np

from fastervit_trt.engines.runtime.completions import seconds_between
from fastervit_trt.engines.runtime.device import Device, Event, Memory, Pinned, Stream, held
from fastervit_trt.engines.runtime.lane import Lane
from fastervit_trt.engines.runtime.session import Clock
from fastervit_trt.errors import FasterViTError

__all__ = ["EMPTY_CACHE_ALONE", "EXTRA", "CacheFlush", "Resident"]

_FLOAT_BYTES = 4
_CACHES = 2  # sizes of the L2 cache that are written to empty it
_AHEAD = 2  # batches under way in a stream, one executing and one waiting: trtexec, too, enqueues one ahead
_SETTLING = 3  # executions before any is timed: as it comes, captured, and the captured once
_LAUNCH_BOUND = 0.8  # of the time spent on enqueueing; trtexec warns from there on
EXTRA = (
    2  # batches of each stream that are not counted: while the first run streams fill, while the last run they drain
)
EMPTY_CACHE_ALONE = "an empty cache can be had with one stream only: others would fill it meanwhile; pass streams=1"


class CacheFlush:
    """Writes to so much memory that nothing else stays in the GPU's L2 cache; within ``active`` of ``device``."""

    def __init__(self, device: Device) -> None:
        self._device, self._size = device, max(_CACHES * device.l2_bytes, 1)
        self._memory = device.allocate(self._size)

    def enqueue(self, stream: Stream) -> None:
        self._device.fill(self._memory.address, self._size, stream)

    def free(self) -> None:
        self._memory.free()


@dataclass(frozen=True)
class _Place:
    """Where one stream has its batch."""

    lane: Lane
    stream: Stream
    source: Pinned
    images: Memory
    targets: tuple[Pinned, ...]
    outputs: tuple[Memory, ...]


class Resident:
    """:class:`~fastervit_trt.engines.runtime.session.Timed` on the lanes of a session, one stream for each.

    Args:
        output_shapes: of one image.
        images: float32 (B, 3, H, W).
        transfers: copies to and from page-locked memory, on the same stream, are timed, too.
        cold_cache: the L2 cache is emptied before each batch, which is not timed.
        why_no_graphs: asked when all has run once.

    Raises:
        FasterViTError: ``cold_cache`` with several lanes, or too little memory.
    """

    clock: Clock = "CUDA events"

    def __init__(
        self,
        device: Device,
        lanes: Sequence[Lane],
        output_shapes: Sequence[tuple[int, ...]],
        images: np.ndarray,
        *,
        transfers: bool,
        cold_cache: bool,
        why_no_graphs: Callable[[], str] = str,
    ) -> None:
        if cold_cache and len(lanes) > 1:
            raise FasterViTError(EMPTY_CACHE_ALONE)
        self._device, self._batch, self._transfers = device, len(images), transfers
        self._marks: list[Event] = []
        with device.active(), ExitStack() as undo:
            self._flush = held(undo, CacheFlush(device)) if cold_cache else None
            self._places = [self._place(undo, lane, output_shapes, images) for lane in lanes]
            undo.callback(self._wait)  # before anything is freed
            self._settle()
            reason = why_no_graphs()
            self.note = self._known = f"without CUDA graphs: {reason}" if reason else ""
            self._held = undo.pop_all()

    def latency(self, count: int) -> list[float]:
        """Seconds of each of ``count`` batches on the first stream, every one waited for before the next."""
        place = self._places[0]
        with self._device.active(), place.lane.turn(place.stream):
            ((start, end),) = self._events(2)
            return [self._alone(place, start, end) for _ in range(count)]

    def throughput(self, count: int) -> list[float]:
        """``count`` samples in seconds per batch, with two batches under way in every stream."""
        with self._device.active(), ExitStack() as turns:
            for place in self._places:
                turns.enter_context(place.lane.turn(place.stream))
            return self._one_by_one(count) if self._flush else self._side_by_side(count)

    def results(self) -> list[tuple[np.ndarray, ...]]:
        """What the last execution in each stream gave, float32 (B, …) per output."""
        with self._device.active():
            for place in self._places:
                self._copy_out(place)
                place.stream.synchronise()
            return [tuple(target.array.copy() for target in place.targets) for place in self._places]

    def close(self) -> None:
        """Wait for what is under way and give the memory back. Closing twice is allowed."""
        with self._device.active():
            self._held.close()
            while self._marks:
                self._marks.pop().free()

    def _place(
        self, undo: ExitStack, lane: Lane, output_shapes: Sequence[tuple[int, ...]], images: np.ndarray
    ) -> _Place:
        device = self._device
        shapes = [(self._batch, *shape) for shape in output_shapes]
        place = _Place(
            lane,
            held(undo, device.stream()),
            held(undo, device.pinned(images.shape)),
            held(undo, device.allocate(_FLOAT_BYTES * images.size)),
            tuple(held(undo, device.pinned(shape)) for shape in shapes),
            tuple(held(undo, device.allocate(_FLOAT_BYTES * int(np.prod(shape)))) for shape in shapes),
        )
        place.source.array[...] = images
        return place

    def _settle(self) -> None:
        for place in self._places:
            with place.lane.turn(place.stream):
                self._device.copy_in(place.images.address, place.source.array, place.stream)
                for _ in range(_SETTLING):
                    self._execute(place)
                place.stream.synchronise()

    def _alone(self, place: _Place, start: Event, end: Event) -> float:
        if self._flush:
            self._flush.enqueue(place.stream)
            place.stream.synchronise()  # or the launches of what is timed would hide behind it
        start.record(place.stream)
        self._run(place)
        end.record(place.stream)
        end.synchronise()
        return start.seconds_till(end)

    def _one_by_one(self, count: int) -> list[float]:
        """Each batch between two events of its own, as the cache is emptied in between."""
        assert self._flush is not None
        (place,) = self._places
        starts, ends = self._events(count, 2)
        for i in range(count):
            if i >= _AHEAD:
                ends[i - _AHEAD].synchronise()
            self._flush.enqueue(place.stream)
            starts[i].record(place.stream)
            self._run(place)
            ends[i].record(place.stream)
        ends[-1].synchronise()
        return [start.seconds_till(end) for start, end in zip(starts, ends, strict=True)]

    def _side_by_side(self, count: int) -> list[float]:
        (begin, *_), *done = self._events(count + EXTRA, 1 + len(self._places))
        begin.record(self._places[0].stream)
        for place in self._places[1:]:
            place.stream.wait(begin)
        enqueueing = 0.0
        for i in range(count + EXTRA):
            for place, marks in zip(self._places, done, strict=True):
                if i >= _AHEAD:
                    marks[i - _AHEAD].synchronise()
                start = time.perf_counter()
                self._run(place)
                marks[i].record(place.stream)
                enqueueing += time.perf_counter() - start
        self._wait()
        moments = [[begin.seconds_till(mark) for mark in marks] for marks in done]
        self._judge(enqueueing, max(map(max, moments)))
        return seconds_between(chain.from_iterable(moments), len(moments))[:count]

    def _judge(self, enqueueing: float, seconds: float) -> None:
        share = enqueueing / seconds
        slow = f"the host spent {min(share, 1):.0%} of the time on launches and may be the limit"
        self.note = "; ".join(text for text in (self._known, slow if share > _LAUNCH_BOUND else "") if text)

    def _run(self, place: _Place) -> None:
        if self._transfers:
            self._device.copy_in(place.images.address, place.source.array, place.stream)
        self._execute(place)
        if self._transfers:
            self._copy_out(place)

    def _execute(self, place: _Place) -> None:
        outputs = [memory.address for memory in place.outputs]
        place.lane.execute(place.stream, self._batch, place.images.address, outputs)

    def _copy_out(self, place: _Place) -> None:
        for target, memory in zip(place.targets, place.outputs, strict=True):
            self._device.copy_out(target.array, memory.address, place.stream)

    def _wait(self) -> None:
        for place in self._places:
            place.stream.synchronise()

    def _events(self, count: int, groups: int = 1) -> list[list[Event]]:
        """Timed events in ``groups`` of ``count``, made once and used again."""
        while len(self._marks) < count * groups:
            self._marks.append(self._device.event(timed=True))
        return [self._marks[i * count : (i + 1) * count] for i in range(groups)]
