"""A session of ONNX Runtime and a batch in, the time of its executions out, by the host's clock.

ONNX Runtime executes on streams of its own, which it waits for before a call returns: events elsewhere would not see
its work, so that the time is that of the call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from typing import Any, Protocol

import numpy as np

from fastervit_trt.engines.runtime.completions import seconds_between
from fastervit_trt.engines.runtime.device import Device, held
from fastervit_trt.engines.runtime.resident import EMPTY_CACHE_ALONE, EXTRA, CacheFlush
from fastervit_trt.engines.runtime.session import Clock
from fastervit_trt.errors import FasterViTError

__all__ = ["EmptyCache", "OrtTimed", "empty_cache_of"]

_NOTE = "timed by the host's clock, with the call: ONNX Runtime has streams of its own"
_PAGEABLE = "its copies are from and to pageable memory"
_SETTLING = 2  # calls before any is timed: memory is planned in the first


class EmptyCache(Protocol):
    """Empties the GPU's L2 cache and waits until it is."""

    def __call__(self) -> None: ...

    def free(self) -> None: ...


class OrtTimed:
    """:class:`~fastervit_trt.engines.runtime.session.Timed` through IO bindings.

    Args:
        session: an ``onnxruntime.InferenceSession`` with one input.
        place: type and number of the device, as in ("cuda", 0); "cpu" serves without a GPU.
        images: float32 (B, 3, H, W).
        streams: calls at the same time, each from a thread and with memory of its own.
        transfers: images and outputs are in host memory.
        empty_cache: before each batch, not timed; makes it, so that it may fail.

    Raises:
        FasterViTError: ``empty_cache`` with several streams.
    """

    clock: Clock = "host"

    def __init__(
        self,
        session: Any,
        place: tuple[str, int],
        images: np.ndarray,
        *,
        streams: int,
        transfers: bool,
        empty_cache: Callable[[], EmptyCache] | None = None,
    ) -> None:
        if empty_cache is not None and streams > 1:
            raise FasterViTError(EMPTY_CACHE_ALONE)
        self._session, self._place, self._transfers = session, place, transfers
        self.note = f"{_NOTE}; {_PAGEABLE}" if transfers else _NOTE
        self._held = ExitStack()
        self._empty_cache = empty_cache() if empty_cache is not None else None
        if self._empty_cache is not None:
            self._held.callback(self._empty_cache.free)
        self._bindings = [self._bind(images) for _ in range(streams)]
        for binding in self._bindings:
            for _ in range(_SETTLING):
                self._run(binding)

    def latency(self, count: int) -> list[float]:
        return [self._alone(self._bindings[0]) for _ in range(count)]

    def throughput(self, count: int) -> list[float]:
        if self._empty_cache is not None:
            return self.latency(count)  # with one stream, nothing is under way while it is emptied
        together = threading.Barrier(len(self._bindings))

        def repeat(binding: Any) -> list[float]:
            together.wait()
            return [self._moment(binding) for _ in range(count + EXTRA)]

        with ThreadPoolExecutor(len(self._bindings)) as threads:
            done = chain.from_iterable(threads.map(repeat, self._bindings))
            return seconds_between(done, len(self._bindings))[:count]

    def results(self) -> list[tuple[np.ndarray, ...]]:
        return [tuple(binding.copy_outputs_to_cpu()) for binding in self._bindings]

    def close(self) -> None:
        self._bindings = []
        self._held.close()

    def _bind(self, images: np.ndarray) -> Any:
        from onnxruntime import OrtValue

        binding, (device, number) = self._session.io_binding(), self._place
        name, outputs = self._session.get_inputs()[0].name, self._session.get_outputs()
        if self._transfers:
            binding.bind_cpu_input(name, np.ascontiguousarray(images))
            device, number = "cpu", 0
        else:
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(images.copy(), device, number))
        for output in outputs:
            binding.bind_output(output.name, device, number)
        return binding

    def _alone(self, binding: Any) -> float:
        if self._empty_cache is not None:
            self._empty_cache()
        start = time.perf_counter()
        return self._moment(binding) - start

    def _moment(self, binding: Any) -> float:
        self._run(binding)
        return time.perf_counter()

    def _run(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def empty_cache_of(ordinal: int) -> EmptyCache:
    """For the L2 cache of GPU ``ordinal``, through PyCUDA.

    Raises:
        FasterViTError: no PyCUDA, or no such GPU.
    """
    from fastervit_trt.engines.runtime.pycuda_device import open_device

    return _EmptyCache(open_device(ordinal))


class _EmptyCache:
    def __init__(self, device: Device) -> None:
        self._device = device
        with device.active(), ExitStack() as undo:
            self._stream = held(undo, device.stream())
            self._flush = held(undo, CacheFlush(device))
            self._held = undo.pop_all()

    def __call__(self) -> None:
        with self._device.active():
            self._flush.enqueue(self._stream)
            self._stream.synchronise()

    def free(self) -> None:
        with self._device.active():
            self._held.close()
