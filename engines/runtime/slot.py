"""A batch in host memory in, its outputs in host memory out: page-locked buffers, a stream, and whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from fastervit_trt.engines.runtime.device import Device, held
from fastervit_trt.engines.runtime.lane import Lane

__all__ = ["Slot", "SlotTicket"]

_FLOAT_BYTES = 4


class Slot:
    """Copies in, execution, copies out, all on one stream; while one slot executes, others copy.

    Args:
        image_shape: (3, H, W).
        output_shapes: of one image.
        batch: the largest.
    """

    def __init__(
        self,
        device: Device,
        lane: Lane,
        image_shape: tuple[int, ...],
        output_shapes: Sequence[tuple[int, ...]],
        batch: int,
    ) -> None:
        self._device, self._lane = device, lane
        self._ticket: SlotTicket | None = None
        shapes = [(batch, *shape) for shape in (image_shape, *output_shapes)]
        with ExitStack() as undo:
            self._stream = held(undo, device.stream())
            self._done = held(undo, device.event())
            self._pinned = [held(undo, device.pinned(shape)) for shape in shapes]
            self._memory = [held(undo, device.allocate(_FLOAT_BYTES * int(np.prod(shape)))) for shape in shapes]
            self._held = undo.pop_all()

    def submit(self, images: np.ndarray) -> SlotTicket:
        """Start a batch, at most the largest; results that nobody has taken from this slot yet are put aside first."""
        self.settle()
        batch, (source, *targets), (images_memory, *output_memory) = len(images), self._pinned, self._memory
        source.array[:batch] = images
        self._device.copy_in(images_memory.address, source.array[:batch], self._stream)
        self._lane.run(self._stream, batch, images_memory.address, [memory.address for memory in output_memory])
        for target, memory in zip(targets, output_memory, strict=True):
            self._device.copy_out(target.array[:batch], memory.address, self._stream)
        self._done.record(self._stream)
        self._ticket = SlotTicket(self, batch)
        return self._ticket

    def settle(self) -> None:
        """Wait for the batch under way, if any, and hand its results over."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            with self._device.active():
                self._done.synchronise()
            ticket.outputs = tuple(pinned.array[: ticket.batch].copy() for pinned in self._pinned[1:])

    def free(self) -> None:
        """Give everything back once what is under way is done; its results stay with their ticket."""
        self.settle()
        self._stream.synchronise()
        self._held.close()


class SlotTicket:
    """The outputs of a batch, in the slot's buffers until asked for or until the slot is needed again."""

    def __init__(self, slot: Slot, batch: int) -> None:
        self._slot, self.batch = slot, batch
        self.outputs: tuple[np.ndarray, ...] | None = None

    def result(self) -> tuple[np.ndarray, ...]:
        """Waits for them."""
        if self.outputs is None:
            self._slot.settle()
        assert self.outputs is not None
        return self.outputs
