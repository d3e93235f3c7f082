"""How much may be under way: requests that wait for their answer, and the bytes that all of them hold."""

from __future__ import annotations

import threading
from types import TracebackType

from fastervit_trt.deploy.serving.refusal import RefusedError

__all__ = ["Admission", "Lease"]


class Admission:
    """What the server has taken on; more is refused with status 429 instead of filling the memory.

    Bytes count as they arrive; a request counts from when its body is complete, so that clients that are slow to send
    theirs keep no place in the queue.

    Args:
        requests: complete requests that may wait for their answer.
        size: bytes that bodies, and what they decode to, may take up together.
    """

    def __init__(self, requests: int, size: int) -> None:
        self.requests, self.size = requests, size
        self._lock = threading.Lock()
        self._waiting = self._held = 0

    @property
    def waiting(self) -> int:
        """Complete requests that have no answer yet."""
        return self._waiting

    @property
    def held(self) -> int:
        """Bytes in use."""
        return self._held

    def lease(self) -> Lease:
        """A share of it for one request, given back when its ``with`` block ends."""
        return Lease(self)

    def take(self, *, requests: int = 0, size: int = 0) -> None:
        """Count more; negative numbers give back.

        Raises:
            RefusedError: that would be too many, and nothing was counted.
        """
        with self._lock:
            if requests > 0 and self._waiting + requests > self.requests:
                raise RefusedError(429, f"{self._waiting} requests are waiting already; try again later")
            if size > 0 and self._held + size > self.size:
                raise RefusedError(
                    429, f"requests under way hold {self._held} of {self.size} bytes; try again later, or send less"
                )
            self._waiting += requests
            self._held += size


class Lease:
    """What one request has taken so far; may grow from any thread."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._requests = self._size = 0
        self._over = False

    def grow(self, size: int) -> None:
        """Take ``size`` more bytes.

        Raises:
            RefusedError: there are not so many left.
        """
        self._admission.take(size=size)
        self._size += size
        if self._over:  # a thread that works on though the client has gone away
            self._give_back()

    def wait_in_queue(self) -> None:
        """Count as a waiting request.

        Raises:
            RefusedError: the queue is full.
        """
        self._admission.take(requests=1)
        self._requests += 1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over = True
        self._give_back()

    def _give_back(self) -> None:
        requests, size = self._requests, self._size
        self._requests = self._size = 0
        self._admission.take(requests=-requests, size=-size)
