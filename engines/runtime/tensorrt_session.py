"""An engine's bytes in, a session on one GPU out: lanes that execute, slots that copy, PyTorch's tensors in place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from fastervit_trt.console import warn
from fastervit_trt.engines.runtime.device import Device, held
from fastervit_trt.engines.runtime.lane import Lane
from fastervit_trt.engines.runtime.resident import Resident
from fastervit_trt.engines.runtime.runtime_cache import RuntimeCache
from fastervit_trt.engines.runtime.slot import Slot, SlotTicket
from fastervit_trt.engines.runtime.tensorrt_api import Program, Source
from fastervit_trt.engines.runtime.torch_bridge import TorchBridge

if TYPE_CHECKING:
    import torch

__all__ = ["TensorRtSession"]

_SIZES = 4  # batch sizes that have a graph for each slot, at most


class TensorRtSession:
    """TensorRT or TensorRT-RTX.

    Args:
        trt: the module.
        outputs: names in the graph's order.
        streams: lanes, which execute at the same time.
        slots: of each lane; two copy and execute at the same time, three copy in, execute and copy out.
        spoken: how to call all this, without the batch.

    Raises:
        FasterViTError: the engine is refused, does not fit the manifest, or does not fit the GPU's memory.
    """

    emulated = False

    def __init__(
        self,
        device: Device,
        trt: Any,
        source: Source,
        outputs: Sequence[str],
        *,
        profile: int,
        streams: int,
        slots: int,
        cuda_graph: bool,
        spoken: str,
    ) -> None:
        self._device, self._graphs_refused = device, ""
        self._timed: list[Resident] = []
        self._cache = RuntimeCache.of(source.content, trt.__version__, device.name) if source.rtx else None
        with device.active():
            cached = self._cache.read() if self._cache else None
            self._program = Program(trt, source, profile, outputs, cuda_graph=cuda_graph, cached=cached)
            self._open(streams, slots, graphs=_SIZES * slots if cuda_graph and not source.rtx else 0)
        self.outputs = tuple(outputs)
        self.batch = self._program.batch
        self.depth = len(self._slots)
        self._turns = cycle(self._slots)
        self._bridge = TorchBridge(device.ordinal)
        counted = f"{streams} stream{'s' if streams > 1 else ''}{', CUDA graphs' if cuda_graph else ''}"
        self.description = f"{spoken}, profile {profile} (batch {self.batch}), {counted}"

    def submit(self, images: np.ndarray) -> SlotTicket:
        with self._device.active():
            return next(self._turns).submit(images)

    def run_on_gpu(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._bridge.check(images)
        results = [self._bridge.empty((len(images), *shape)) for shape in self._program.outputs.values()]
        with self._device.active():
            self._bridge.wait_for_pytorch(self._stream)
            addresses = [result.data_ptr() for result in results]
            self._lanes[0].run(self._stream, len(images), images.data_ptr(), addresses)
            self._bridge.let_pytorch_wait(self._stream)
        return tuple(results)

    def timed(self, images: np.ndarray, *, transfers: bool, cold_cache: bool) -> Resident:
        shapes = list(self._program.outputs.values())
        timed = Resident(
            self._device,
            self._lanes,
            shapes,
            images,
            transfers=transfers,
            cold_cache=cold_cache,
            why_no_graphs=lambda: self._graphs_refused,
        )
        self._timed.append(timed)
        return timed

    def close(self) -> None:
        for timed in self._timed:
            timed.close()
        with self._device.active():
            if self._cache is not None:
                self._cache.write(self._program.runtime_cache())
            self._held.close()

    def _open(self, streams: int, slots: int, *, graphs: int) -> None:
        device, program = self._device, self._program
        shapes = list(program.outputs.values())
        with ExitStack() as undo:
            undo.callback(program.release)
            self._stream = held(undo, device.stream())
            self._lanes = [
                held(undo, Lane(device, program, self._stream, graphs, self._refuse_graphs)) for _ in range(streams)
            ]
            undo.callback(self._stream.synchronise)
            self._slots = [
                held(undo, Slot(device, lane, program.image_shape, shapes, program.batch.maximum))
                for _ in range(slots)
                for lane in self._lanes  # in turns, so that batches in a row go to different lanes
            ]
            self._held = undo.pop_all()

    def _refuse_graphs(self, reason: str) -> None:
        if not self._graphs_refused:
            self._graphs_refused = reason or "no reason given"
            warn(f"no CUDA graphs ({reason}); running without them, which small batches will notice")
