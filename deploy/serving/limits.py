"""What one server takes on at most, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from fastervit_trt.errors import FasterViTError

__all__ = ["MOST_CLASSES", "MOST_JSON_BYTES", "MOST_PIXELS", "MOST_TENSORS", "Limits"]

MOST_JSON_BYTES = 16 << 20  # numbers in JSON take ten times as much in Python; as binary data they take what they are
MOST_TENSORS = 16  # inputs, or outputs, that a request names
MOST_CLASSES = 1 << 20
MOST_PIXELS = 50_000_000  # of a picture: 150 MB decoded, beyond most cameras
_BODIES = 4  # of the largest size that may be in memory at the same time
_MOST_MIB = 4096


@dataclass(frozen=True)
class Limits:
    """All limits a user may set.

    Attributes:
        batch: images put together for one execution.
        queue: complete requests that wait for their answer.
        body: bytes of one request, compressed and not.
        delay_s: seconds a request may wait for others to share its execution.
        timeout_s: seconds a body may take to arrive, and again the answer to come about.
    """

    batch: int
    queue: int
    body: int
    delay_s: float
    timeout_s: float

    @classmethod
    def checked(
        cls, *, batch: int, queue: int, max_body_mib: float, delay_ms: float, timeout_s: float, largest: int
    ) -> Limits:
        """The limits, where they make sense.

        Args:
            largest: batch the graph serves.

        Raises:
            FasterViTError: names the option that does not.
        """
        if not 1 <= batch <= largest:
            raise FasterViTError(f"--batch {batch} is not between 1 and {largest}, the largest batch of the export")
        if queue < 1:
            raise FasterViTError(f"--queue {queue} leaves no room for a request; pass 1 or more")
        if not 0 < max_body_mib <= _MOST_MIB:
            raise FasterViTError(f"--max-body {max_body_mib} MiB is not between 0 and {_MOST_MIB}")
        if not 0 <= delay_ms <= 60_000:
            raise FasterViTError(f"--delay {delay_ms} ms is not between 0 and 60000")
        if not 0 < timeout_s <= 3600:
            raise FasterViTError(f"--timeout {timeout_s} s is not between 0 and 3600")
        return cls(batch, queue, int(max_body_mib * (1 << 20)), delay_ms / 1000, float(timeout_s))

    @property
    def memory(self) -> int:
        """Bytes that all requests under way may hold together."""
        return _BODIES * self.body
