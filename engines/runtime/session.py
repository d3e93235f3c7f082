"""What every backend gives: batches of a size it serves go in, outputs come out, possibly later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from fastervit_trt.export.batch import BatchRange

if TYPE_CHECKING:
    import torch

__all__ = ["Clock", "Done", "Session", "Ticket", "Timed"]

Clock = Literal["host", "CUDA events"]


class Ticket(Protocol):
    """What a batch was handed in for."""

    def result(self) -> tuple[np.ndarray, ...]:
        """The outputs, owned by the caller; waits for them."""


class Done:
    """A ticket where nothing is waited for."""

    def __init__(self, outputs: tuple[np.ndarray, ...]) -> None:
        self._outputs = outputs

    def result(self) -> tuple[np.ndarray, ...]:
        return self._outputs


class Timed(Protocol):
    """A batch that stays where it is executed, to be timed.

    Attributes:
        clock: what times are read from.
        note: what is to be known of them, as of the last call.
    """

    clock: Clock
    note: str

    def latency(self, count: int) -> list[float]:
        """Seconds of each of ``count`` batches, every one waited for before the next."""

    def throughput(self, count: int) -> list[float]:
        """``count`` samples in seconds per batch, with batches under way in every stream."""

    def results(self) -> list[tuple[np.ndarray, ...]]:
        """Outputs of the last execution in each stream."""

    def close(self) -> None:
        """Give the memory back; so does closing the session."""


class Session(Protocol):
    """A loaded graph or engine.

    Attributes:
        outputs: names in the graph's order.
        batch: sizes that ``submit`` takes.
        depth: batches worth handing in before the first result is taken.
        emulated: arithmetic is exact for the precision, speed means nothing.
        description: what runs, for reports.
    """

    outputs: tuple[str, ...]
    batch: BatchRange
    depth: int
    emulated: bool
    description: str

    def submit(self, images: np.ndarray) -> Ticket:
        """Start a batch (B, 3, H, W), float32; the images may be changed when this returns."""

    def run_on_gpu(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A batch of PyTorch's, on the session's GPU and contiguous, in the order of PyTorch's current stream.

        Raises:
            FasterViTError: the session is not on that GPU.
        """

    def timed(self, images: np.ndarray, *, transfers: bool, cold_cache: bool) -> Timed:
        """A batch to be timed; meanwhile nothing else may run on the session.

        Raises:
            FasterViTError: cannot be timed that way, or too little memory.
        """

    def close(self) -> None:
        """Give everything back; results handed out or under way stay valid."""
