"""A PyTorch call on CUDA tensors in, a runner out: CUDA graphs where they can be captured, timed between events.

There is one set of inputs: the activations of a whole network push it out of the cache. What a batch that finds the
cache empty takes is measured on request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastervit_trt.benchmarks.backends.request import check_images
from fastervit_trt.benchmarks.backends.runner import Artifact, Clock, DeviceFacts, Outputs, Request
from fastervit_trt.benchmarks.gpu.timing import CudaClock, Lap
from fastervit_trt.engines.runtime.completions import completions_for, seconds_between
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange, run_padded

__all__ = ["CudaRunner"]

Forward = Callable[[Tensor], Tensor | tuple[Tensor, ...]]  # float32 (B, 3, H, W) → float32 (B, …), on the GPU

_CACHES = 2  # of the L2 cache's size is what is written to empty it


class CudaRunner:
    """A :class:`Runner` of ``forward`` on one GPU.

    Args:
        batch: sizes ``forward`` takes.
    """

    clock: Clock = "CUDA events"
    emulated = False

    def __init__(
        self, request: Request, forward: Forward, device: torch.device, artifact: Artifact, batch: BatchRange, note: str
    ) -> None:
        self.artifact, self.batch, self.note = artifact, batch, note
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        self.device = DeviceFacts("gpu", name, request.device, f"{major}.{minor}")
        self._request, self._forward, self._on = request, forward, device
        self._lanes: list[_Lane] = []
        self._scratch: Tensor | None = None

    @torch.inference_mode()
    def outputs(self, images: np.ndarray) -> Outputs:
        def run(some: np.ndarray) -> Outputs:
            found = self._forward(torch.from_numpy(np.ascontiguousarray(some)).to(self._on))
            return tuple(output.cpu().numpy() for output in ((found,) if isinstance(found, Tensor) else found))

        return run_padded(run, self.batch, images)

    @torch.inference_mode()
    def prepare(self, images: np.ndarray) -> None:
        request = self._request
        pinned = torch.from_numpy(check_images(request, images)).pin_memory()
        self._lanes = [
            _Lane(self._forward, pinned, self._on, request.transfers, request.cuda_graph)
            for _ in range(request.streams)
        ]
        if request.cold_cache:
            size = _CACHES * torch.cuda.get_device_properties(self._on).L2_cache_size
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self._on)
        refusals = [lane.refused for lane in self._lanes if lane.refused]
        if refusals:
            self.note = "; ".join(text for text in (self.note, f"no CUDA graph: {refusals[0]}") if text)

    @torch.inference_mode()
    def latency(self, count: int) -> list[float]:
        """Each batch from the moment the GPU is told of it; the one before it is over by then."""
        lane = self._first_lane()
        with torch.cuda.stream(lane.stream):
            return [self._samples(lane, 1)[0] for _ in range(count)]

    @torch.inference_mode()
    def throughput(self, count: int) -> list[float]:
        """Batches handed in ahead, in each stream one after the other."""
        if len(self._lanes) > 1:
            return seconds_between(self._completions(completions_for(count, len(self._lanes))), len(self._lanes))
        lane = self._first_lane()
        with torch.cuda.stream(lane.stream):
            return self._samples(lane, count)

    def executed(self, count: int) -> int:
        return completions_for(count, len(self._lanes)) if len(self._lanes) > 1 else count

    def close(self) -> None:
        torch.cuda.synchronize(self._on)
        self._lanes, self._scratch = [], None
        self._forward = _closed
        torch.cuda.empty_cache()

    def _first_lane(self) -> _Lane:
        assert self._lanes, "prepare() first"
        return self._lanes[0]

    def _samples(self, lane: _Lane, count: int) -> list[float]:
        """On the current stream, which is the lane's."""
        if self._scratch is None:
            return CudaClock().samples(Lap(lane.run, 1, captured=lane.captured), count, 1)
        pairs = [(_event(), _event()) for _ in range(count)]
        for before, after in pairs:
            self._scratch.zero_()
            before.record()
            lane.run()
            after.record()
        torch.cuda.synchronize(self._on)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def _completions(self, total: int) -> list[float]:
        begin, marks = _event(), [_event() for _ in range(total)]
        begin.record(self._lanes[0].stream)
        for lane in self._lanes:
            lane.stream.wait_event(begin)
        for number, mark in enumerate(marks):
            lane = self._lanes[number % len(self._lanes)]
            with torch.cuda.stream(lane.stream):
                lane.run()
                mark.record()
        torch.cuda.synchronize(self._on)
        return [begin.elapsed_time(mark) / 1e3 for mark in marks]


class _Lane:
    """A stream with images, a lap over them, and page-locked memory for copies where they are timed, too."""

    def __init__(self, forward: Forward, pinned: Tensor, device: torch.device, transfers: bool, capture: bool) -> None:
        self.stream = torch.cuda.Stream(device)
        self.refused = ""
        self._pinned = pinned
        with torch.cuda.stream(self.stream):
            self._images = pinned.to(device)
            self._lap = self._make_lap(forward, capture)
            outputs = self._outputs(self._lap.run())
            self._results = (
                [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in outputs] if transfers else None
            )
        torch.cuda.synchronize(device)

    @property
    def captured(self) -> bool:
        return self._lap.captured

    def run(self) -> None:
        """Hand one batch to the current stream."""
        if self._results is None:
            self._lap.run()
            return
        self._images.copy_(self._pinned, non_blocking=True)
        for result, output in zip(self._results, self._outputs(self._lap.run()), strict=True):
            result.copy_(output, non_blocking=True)

    def _make_lap(self, forward: Forward, capture: bool) -> Lap:
        clock = CudaClock(self.stream)
        if capture:
            try:
                return clock.lap(forward, [(self._images,)], capture=True)
            except Exception as error:  # whatever a call does that cannot be captured
                torch.cuda.synchronize()
                self.refused = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        return clock.lap(forward, [(self._images,)], capture=False)

    def _outputs(self, returned: Any) -> list[Tensor]:
        """Of the one call of the lap: a graph leaves them where they were captured."""
        kept: Any = self._lap.keeps if self._lap.captured else returned
        return [kept[0]] if isinstance(kept[0], Tensor) else list(kept[0])


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _closed(images: Tensor) -> Tensor | tuple[Tensor, ...]:
    raise FasterViTError("the runner is closed; open it again")
