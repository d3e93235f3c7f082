"""What running an engine asks of a GPU: memory, streams, events, copies, graphs. PyCUDA gives it, or a simulator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol, TypeVar

import numpy as np

__all__ = ["CaptureFailedError", "Device", "Event", "Graph", "Memory", "Pinned", "Stream", "held"]


class CaptureFailedError(Exception):
    """Work that cannot become a CUDA graph; running it without one remains possible."""


class _Freed(Protocol):
    def free(self) -> None: ...


_T = TypeVar("_T", bound=_Freed)


def held(holder: ExitStack, thing: _T) -> _T:
    """``thing``, to be freed when ``holder`` closes."""
    holder.callback(thing.free)
    return thing


class Memory(Protocol):
    """Device memory at ``address``, until freed."""

    @property
    def address(self) -> int: ...

    def free(self) -> None: ...


class Pinned(Protocol):
    """Page-locked host memory, which is copied without the host's help; nobody may hold ``array`` once it is freed."""

    @property
    def array(self) -> np.ndarray: ...

    def free(self) -> None: ...


class Event(Protocol):
    """A point in a stream. Waiting for one that was never recorded is waiting for nothing."""

    def record(self, stream: Stream) -> None: ...

    def synchronise(self) -> None: ...

    def seconds_till(self, later: Event) -> float:
        """On the GPU's own clock, from this one to ``later``; both timed, both reached, on whatever streams."""

    def free(self) -> None: ...


class Stream(Protocol):
    """Work in order; streams among each other have none but by events."""

    @property
    def handle(self) -> int: ...

    def wait(self, event: Event) -> None: ...

    def synchronise(self) -> None: ...

    def free(self) -> None: ...


class Graph(Protocol):
    """Captured work, launched as one."""

    def launch(self, stream: Stream) -> None: ...

    def free(self) -> None: ...


class Device(Protocol):
    """One GPU. All calls but ``active`` itself, and all calls of what they return, happen within ``active``."""

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> str:
        """As in "8.9"."""

    @property
    def ordinal(self) -> int: ...

    @property
    def l2_bytes(self) -> int:
        """Size of the second-level cache, which all streams share."""

    def active(self) -> AbstractContextManager[None]:
        """Within, the GPU's primary context is the thread's own; failures of CUDA become FasterViTErrors."""

    def allocate(self, size: int) -> Memory:
        """Device memory of ``size`` bytes, at least one."""

    def pinned(self, shape: tuple[int, ...]) -> Pinned:
        """Page-locked float32 memory."""

    def stream(self) -> Stream: ...

    def event(self, *, timed: bool = False) -> Event:
        """One that keeps its time costs a little more to record."""

    def fill(self, address: int, size: int, stream: Stream) -> None:
        """Enqueue writing ``size`` bytes of zeros."""

    def copy_in(self, address: int, source: np.ndarray, stream: Stream) -> None:
        """Enqueue a copy of page-locked memory to the device; it is read when the stream gets there."""

    def copy_out(self, target: np.ndarray, address: int, stream: Stream) -> None:
        """Enqueue a copy to page-locked memory."""

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Graph:
        """What ``launch`` enqueues on ``stream``, which is not executed now.

        Raises:
            CaptureFailedError: it cannot be captured, or nothing was.
        """
