"""A GPU's number in, a :class:`Device` over PyCUDA out, in the primary context that PyTorch and ONNX Runtime use too.

PyCUDA has no CUDA graphs; cuda-bindings captures them on PyCUDA's streams. Both speak the driver API, so that handles
and the current context are the same thing.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastervit_trt.engines.runtime.device import CaptureFailedError, Event, Graph, Memory, Pinned, Stream
from fastervit_trt.errors import FasterViTError

__all__ = ["PycudaDevice", "open_device"]

# CU_STREAM_NON_BLOCKING, which PyCUDA does not name: no implicit order with the legacy default stream.
_NON_BLOCKING = 1


def open_device(ordinal: int) -> PycudaDevice:
    """GPU ``ordinal``.

    Raises:
        FasterViTError: no PyCUDA, no driver, or no such GPU.
    """
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise FasterViTError(f"PyCUDA is not installed ({error}): pip install 'fastervit-trt[gpu]'") from error
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise FasterViTError(f"no NVIDIA GPU can be used here ({error}); check the driver with nvidia-smi") from error
    if not 0 <= ordinal < count:
        raise FasterViTError(f"there is no GPU {ordinal}: this machine has {count}; choose another device")
    return PycudaDevice(cuda, ordinal)


class PycudaDevice:
    """:class:`~fastervit_trt.engines.runtime.device.Device` over ``pycuda.driver``."""

    def __init__(self, cuda: Any, ordinal: int) -> None:
        self._cuda = cuda
        self._device = cuda.Device(ordinal)
        self._ordinal = ordinal
        self._context = _primary_context(cuda, ordinal)

    @property
    def name(self) -> str:
        return str(self._device.name())

    @property
    def capability(self) -> str:
        return ".".join(map(str, self._device.compute_capability()))

    @property
    def ordinal(self) -> int:
        return self._ordinal

    @property
    def l2_bytes(self) -> int:
        return int(self._device.get_attribute(self._cuda.device_attribute.L2_CACHE_SIZE))

    @contextmanager
    def active(self) -> Iterator[None]:
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._cuda.MemoryError as error:
            raise FasterViTError(
                f"GPU {self._ordinal} has not enough memory ({error}); use fewer streams, a profile with a smaller "
                "maximal batch, or another GPU"
            ) from error
        except self._cuda.Error as error:
            raise FasterViTError(f"CUDA failed on GPU {self._ordinal}: {error}") from error

    def allocate(self, size: int) -> Memory:
        return _Memory(self._cuda.mem_alloc(size))

    def pinned(self, shape: tuple[int, ...]) -> Pinned:
        return _Pinned(self._cuda.pagelocked_empty(shape, np.float32))

    def stream(self) -> Stream:
        return _Stream(self._cuda.Stream(_NON_BLOCKING))

    def event(self, *, timed: bool = False) -> Event:
        return _Event(self._cuda.Event(0 if timed else self._cuda.event_flags.DISABLE_TIMING))

    def fill(self, address: int, size: int, stream: Stream) -> None:
        assert isinstance(stream, _Stream)
        self._cuda.memset_d8_async(address, 0, size, stream.native)

    def copy_in(self, address: int, source: np.ndarray, stream: Stream) -> None:
        assert isinstance(stream, _Stream)
        self._cuda.memcpy_htod_async(address, source, stream.native)

    def copy_out(self, target: np.ndarray, address: int, stream: Stream) -> None:
        assert isinstance(stream, _Stream)
        self._cuda.memcpy_dtoh_async(target, address, stream.native)

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Graph:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise CaptureFailedError("cuda-bindings is not installed: pip install cuda-bindings") from error
        return _capture(driver, stream.handle, launch)


@functools.cache
def _primary_context(cuda: Any, ordinal: int) -> Any:
    """Retained once and for the process: PyCUDA's release leaves it current, and possibly destroyed, on this thread."""
    return cuda.Device(ordinal).retain_primary_context()


class _Memory:
    def __init__(self, native: Any) -> None:
        self._native = native
        self.address = int(native)

    def free(self) -> None:
        self._native.free()


class _Pinned:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def free(self) -> None:
        allocation: Any = self.array.base
        self.array = np.empty(0, np.float32)
        allocation.free()


class _Stream:
    """PyCUDA destroys streams and events with their last reference, in the context they came from."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.handle = int(native.handle)

    def wait(self, event: Event) -> None:
        assert isinstance(event, _Event)
        self.native.wait_for_event(event.native)

    def synchronise(self) -> None:
        self.native.synchronize()

    def free(self) -> None:
        self.native = None


class _Event:
    def __init__(self, native: Any) -> None:
        self.native = native

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, _Stream)
        self.native.record(stream.native)

    def synchronise(self) -> None:
        self.native.synchronize()

    def seconds_till(self, later: Event) -> float:
        assert isinstance(later, _Event)
        return float(self.native.time_till(later.native)) * 1e-3  # PyCUDA's milliseconds, a float32 of CUDA

    def free(self) -> None:
        self.native = None


class _Graph:
    def __init__(self, driver: Any, executable: Any) -> None:
        self._driver, self._executable = driver, executable

    def launch(self, stream: Stream) -> None:
        (status,) = self._driver.cuGraphLaunch(self._executable, self._driver.CUstream(stream.handle))
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise FasterViTError(
                f"CUDA cannot launch a graph: {_reason(self._driver, status)}; load without cuda_graph"
            )

    def free(self) -> None:
        self._driver.cuGraphExecDestroy(self._executable)


def _capture(driver: Any, handle: int, launch: Callable[[], None]) -> Graph:
    stream = driver.CUstream(handle)
    # Thread-local: what other threads, PyTorch's for one, allocate meanwhile must not spoil it.
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with _no_collection():
        _call(driver, driver.cuStreamBeginCapture, stream, mode)
        try:
            launch()
        except BaseException:
            driver.cuStreamEndCapture(stream)  # the stream must not stay in capture mode
            raise
        graph = _call(driver, driver.cuStreamEndCapture, stream)
    try:
        # TensorRT may report success and have captured nothing: such a graph would return old results for ever.
        if _call(driver, driver.cuGraphGetNodes, graph)[-1] == 0:
            raise CaptureFailedError("nothing was captured")
        return _Graph(driver, _call(driver, driver.cuGraphInstantiate, graph, 0))
    finally:
        driver.cuGraphDestroy(graph)


def _call(driver: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    status, *results = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise CaptureFailedError(f"{function.__name__}: {_reason(driver, status)}")
    return results[0] if len(results) == 1 else results


def _reason(driver: Any, status: Any) -> str:
    _, text = driver.cuGetErrorString(status)
    return text.decode() if isinstance(text, bytes) else str(status)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage may hold device memory, and freeing that during a capture makes it fail."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
