"""What every backend gives: batches of a size it serves go in, outputs come out, possibly later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastervit_trt.export.batch import BatchRange

if TYPE_CHECKING:
    import torch

__all__ = ["Done", "Session", "Ticket"]


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

    def close(self) -> None:
        """Give everything back; results handed out or under way stay valid."""
