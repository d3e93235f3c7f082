"""Batches in device memory in, results in device memory out: contexts that run one after the other, and their graphs.

A captured graph is valid as long as the context it was captured from stays as it was, so each graph has a context of
its own; all contexts of a lane share one activation memory, which is NVIDIA's advice (NVIDIA/TensorRT issue 3798:
"the best practice is to use one execution context per captured graph, and to share memory across the contexts").
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from fastervit_trt.engines.runtime.device import Device, Graph, Stream, held
from fastervit_trt.engines.runtime.tensorrt_api import Program
from fastervit_trt.errors import FasterViTError

__all__ = ["Lane"]

_SIGHTINGS = 64  # combinations of addresses remembered, which PyTorch's tensors bring ever new ones of
_Key = tuple[int, ...]


@dataclass(frozen=True)
class _Captured:
    graph: Graph
    context: Any


class Lane:
    """Executions of one program in order, whatever streams they come from.

    Args:
        graphs: to keep at most, of what comes again with the same batch size and addresses.
        on_failure: told why there will be no graphs after all.
    """

    def __init__(
        self, device: Device, program: Program, stream: Stream, graphs: int, on_failure: Callable[[str], None]
    ) -> None:
        self._device, self._program, self._on_failure = device, program, on_failure
        self._most_graphs = graphs
        self._bound: _Key | None = None
        self._captured: OrderedDict[_Key, _Captured] = OrderedDict()
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        with ExitStack() as undo:
            size = program.activation_bytes
            self._activations = held(undo, device.allocate(size)).address if size else 0
            self._idle = held(undo, device.event())
            self._plain: Any = program.context(self._activations, stream)
            self._held = undo.pop_all()

    def run(self, stream: Stream, batch: int, images: int, outputs: Sequence[int]) -> None:
        """Enqueue one batch, after the one before it in this lane."""
        with self.turn(stream):
            self.execute(stream, batch, images, outputs)

    @contextmanager
    def turn(self, stream: Stream) -> Iterator[None]:
        """Within, the lane is this stream's: after what others had enqueued before, and before what they will."""
        stream.wait(self._idle)
        try:
            yield
        finally:
            self._idle.record(stream)

    def execute(self, stream: Stream, batch: int, images: int, outputs: Sequence[int]) -> None:
        """Enqueue one batch and nothing else, within :meth:`turn`."""
        self._run(stream, (batch, images, *outputs))

    def free(self) -> None:
        """Give everything back; nothing may be running."""
        while self._captured:
            self._forget_oldest()
        self._plain = None
        self._held.close()

    def _run(self, stream: Stream, key: _Key) -> None:
        captured = self._captured.get(key)
        if captured is not None:
            self._captured.move_to_end(key)
            captured.graph.launch(stream)
        elif self._most_graphs and self._comes_again(key):
            self._run_and_capture(stream, key)
        else:
            if key != self._bound:
                self._bound = None  # in case binding fails halfway
                self._bind(self._plain, key)
                self._bound = key
            self._program.enqueue(self._plain, stream)

    def _run_and_capture(self, stream: Stream, key: _Key) -> None:
        """Run once as usual, which gives the results and brings the context up to date with its shapes: a capture
        must not hold that. Then capture what follows from there.
        """
        try:
            context = self._program.context(self._activations, stream)
        except FasterViTError as error:  # no memory left for one more
            self._do_without_graphs(error)
            self._run(stream, key)
            return
        self._bind(context, key)
        self._program.enqueue(context, stream)
        try:
            graph = self._device.capture(stream, lambda: self._program.enqueue(context, stream))
        except Exception as error:  # TensorRT's refusal or CUDA's: without a graph all works as before
            stream.synchronise()  # the context may not go while it runs
            self._do_without_graphs(error)
            return
        if len(self._captured) >= self._most_graphs:
            self._forget_oldest()  # which is done: making a context waited for all before it
        self._captured[key] = _Captured(graph, context)

    def _do_without_graphs(self, error: Exception) -> None:
        self._most_graphs = 0
        self._on_failure(str(error))

    def _comes_again(self, key: _Key) -> bool:
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _SIGHTINGS:
            self._seen.popitem(last=False)
        return False

    def _forget_oldest(self) -> None:
        key, captured = self._captured.popitem(last=False)
        self._seen.pop(key, None)
        captured.graph.free()

    def _bind(self, context: Any, key: _Key) -> None:
        batch, images, *outputs = key
        self._program.bind(context, batch, images, outputs)
