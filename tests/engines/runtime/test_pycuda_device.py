"""What is asked of PyCUDA and of cuda-bindings, on doubles of them; that they do it is for test_on_gpu.py."""

from __future__ import annotations

import enum
import gc
import inspect
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastervit_trt.engines.runtime import pycuda_device
from fastervit_trt.engines.runtime.device import CaptureFailedError
from fastervit_trt.engines.runtime.pycuda_device import PycudaDevice, open_device
from fastervit_trt.errors import FasterViTError


class FakeCuda:
    """``pycuda.driver`` as of 2026.1: every call needs a current context, all are logged."""

    class Error(Exception): ...

    class MemoryError(Error): ...

    event_flags = SimpleNamespace(DISABLE_TIMING=2)
    device_attribute = SimpleNamespace(L2_CACHE_SIZE="L2_CACHE_SIZE")

    def __init__(self, count: int = 1) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.count, self.stack, self.retained = count, 0, 0
        self.init = lambda flags=0: None

    @property
    def Device(self) -> Any:  # noqa: N802
        cuda = self

        class Device:
            count = staticmethod(lambda: cuda.count)

            def __init__(self, ordinal: int) -> None:
                self.ordinal = ordinal

            def name(self) -> str:
                return "NVIDIA L4"

            def compute_capability(self) -> tuple[int, int]:
                return 8, 9

            def get_attribute(self, attribute: str) -> int:
                return {"L2_CACHE_SIZE": 50 << 20}[attribute]

            def retain_primary_context(self) -> Any:
                cuda.retained += 1
                return SimpleNamespace(push=cuda._push, pop=cuda._pop)

        return Device

    def mem_alloc(self, size: int) -> Any:
        return self._called("mem_alloc", size, result=_Allocation(self, 0x7F00))

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._called("pagelocked_empty", result=np.asarray(_HostAllocation(self, shape)))

    def Stream(self, flags: int = 0) -> Any:  # noqa: N802
        calls = {name: self._method(f"stream.{name}") for name in ("synchronize", "wait_for_event")}
        return self._called("Stream", flags, result=SimpleNamespace(handle=0x51, **calls))

    def Event(self, flags: int = 0) -> Any:  # noqa: N802
        calls = {name: self._method(f"event.{name}") for name in ("record", "synchronize")}
        time_till = lambda later: self._called("event.time_till", result=1.5)  # noqa: E731
        return self._called("Event", flags, result=SimpleNamespace(time_till=time_till, **calls))

    def memset_d8_async(self, dest: int, data: int, size: int, stream: Any = None) -> None:
        self._called("memset", dest, data, size, stream.handle)

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any = None) -> None:
        assert src.flags.c_contiguous
        self._called("htod", dest, src.shape, stream.handle)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any = None) -> None:
        assert dest.flags.c_contiguous and dest.flags.writeable
        self._called("dtoh", dest.shape, src, stream.handle)

    def _push(self) -> None:
        self.stack += 1

    def _pop(self) -> None:
        self.stack -= 1

    def _method(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._called(name)

    def _called(self, *what: Any, result: Any = None) -> Any:
        assert self.stack == 1, f"{what} without a current context"
        self.log.append(what)
        return result


class _Allocation:
    def __init__(self, cuda: FakeCuda, address: int) -> None:
        self.cuda, self.address = cuda, address

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.cuda._called("free", self.address)


class _HostAllocation:
    """The base of an array, as PyCUDA makes them: no array itself."""

    def __init__(self, cuda: FakeCuda, shape: tuple[int, ...]) -> None:
        self.cuda, self._memory = cuda, np.zeros(shape, np.float32)
        self.__array_interface__ = self._memory.__array_interface__

    def free(self) -> None:
        self.cuda._called("host free")


def device_on(cuda: FakeCuda) -> PycudaDevice:
    pycuda_device._primary_context.cache_clear()
    return PycudaDevice(cuda, 0)


def test_every_call_happens_in_the_primary_context_which_is_left_as_it_was() -> None:
    cuda = FakeCuda()
    device = device_on(cuda)
    assert (device.name, device.capability, device.ordinal) == ("NVIDIA L4", "8.9", 0)
    with device.active():
        memory, pinned, stream, event = device.allocate(64), device.pinned((4, 3)), device.stream(), device.event()
        assert (memory.address, stream.handle) == (0x7F00, 0x51)
        device.copy_in(memory.address, pinned.array[:2], stream)
        device.copy_out(pinned.array[:3], memory.address, stream)
        event.record(stream)
        stream.wait(event)
        event.synchronise()
        stream.synchronise()
        for thing in (pinned, memory, event, stream):
            thing.free()
    assert cuda.stack == 0
    assert cuda.log == [
        ("mem_alloc", 64),
        ("pagelocked_empty",),
        ("Stream", 1),  # CU_STREAM_NON_BLOCKING
        ("Event", 2),
        ("htod", 0x7F00, (2, 3), 0x51),
        ("dtoh", (3, 3), 0x7F00, 0x51),
        ("event.record",),
        ("stream.wait_for_event",),
        ("event.synchronize",),
        ("stream.synchronize",),
        ("host free",),
        ("free", 0x7F00),
    ]
    PycudaDevice(cuda, 0)
    assert cuda.retained == 1


def test_times_are_in_seconds_and_of_events_that_keep_them() -> None:
    cuda = FakeCuda()
    device = device_on(cuda)
    assert device.l2_bytes == 50 << 20
    with device.active():
        start, end, stream = device.event(timed=True), device.event(timed=True), device.stream()
        device.fill(0x7F00, 64, stream)
        assert start.seconds_till(end) == pytest.approx(1.5e-3)
    assert cuda.log[:2] == [("Event", 0), ("Event", 0)]
    assert ("memset", 0x7F00, 0, 64, 0x51) in cuda.log


def test_failures_of_cuda_become_one_line_and_the_context_is_given_back() -> None:
    cuda = FakeCuda()
    device = device_on(cuda)

    def fail(error: Exception) -> None:
        with device.active():
            raise error

    with pytest.raises(FasterViTError, match=r"GPU 0 has not enough memory \(out\); use fewer streams, a profile"):
        fail(cuda.MemoryError("out"))
    with pytest.raises(FasterViTError, match="CUDA failed on GPU 0: an illegal memory access"):
        fail(cuda.Error("an illegal memory access"))
    with pytest.raises(KeyError):
        fail(KeyError("of somebody else"))
    assert cuda.stack == 0


def test_what_is_missing_is_said_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(FasterViTError, match=r"PyCUDA is not installed .*: pip install 'fastervit-trt\[gpu\]'"):
        open_device(0)
    cuda: Any = FakeCuda(count=2)
    package = ModuleType("pycuda")
    package.driver = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", cuda)
    assert open_device(1).ordinal == 1
    with pytest.raises(FasterViTError, match="there is no GPU 2: this machine has 2"):
        open_device(2)

    def no_driver(flags: int = 0) -> None:
        raise cuda.Error("cuInit failed: no CUDA-capable device is detected")

    cuda.init = no_driver
    with pytest.raises(FasterViTError, match=r"no NVIDIA GPU can be used here .*no CUDA-capable device"):
        open_device(0)


class _Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class FakeDriver:
    """``cuda.bindings.driver``: functions return a status and results."""

    CUresult = _Result
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local")

    def __init__(self, nodes: int = 3, fails: str = "") -> None:
        self.log: list[tuple[Any, ...]] = []
        self.nodes, self.fails, self.capturing = nodes, fails, False
        self.CUstream = lambda handle: ("stream", handle)

    def cuStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any, ...]:  # noqa: N802
        self.capturing = True
        return self._answer("cuStreamBeginCapture", stream, mode)

    def cuStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:  # noqa: N802
        self.capturing = False
        return self._answer("cuStreamEndCapture", stream, results=("graph",))

    def cuGraphGetNodes(self, graph: Any, count: int = 0) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuGraphGetNodes", graph, results=([], self.nodes))

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuGraphInstantiate", graph, flags, results=("executable",))

    def cuGraphLaunch(self, executable: Any, stream: Any) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuGraphLaunch", executable, stream)

    def cuGraphExecDestroy(self, executable: Any) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuGraphExecDestroy", executable)

    def cuGraphDestroy(self, graph: Any) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuGraphDestroy", graph)

    def cuGetErrorString(self, status: Any) -> tuple[Any, ...]:  # noqa: N802
        return _Result.CUDA_SUCCESS, b"operation failed due to a previous error during capture"

    def _answer(self, name: str, *arguments: Any, results: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        self.log.append((name, *arguments))
        if name == self.fails:
            return _Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, *(None for _ in results)
        return _Result.CUDA_SUCCESS, *results


STREAM: Any = SimpleNamespace(handle=0x51)


def test_a_capture_records_instantiates_and_launches() -> None:
    driver = FakeDriver()

    def launch() -> None:
        assert driver.capturing
        assert not gc.isenabled()  # freeing device memory now would spoil it

    graph = pycuda_device._capture(driver, 0x51, launch)
    assert gc.isenabled()
    graph.launch(STREAM)
    graph.free()
    assert driver.log == [
        ("cuStreamBeginCapture", ("stream", 0x51), "thread-local"),
        ("cuStreamEndCapture", ("stream", 0x51)),
        ("cuGraphGetNodes", "graph"),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
        ("cuGraphLaunch", "executable", ("stream", 0x51)),
        ("cuGraphExecDestroy", "executable"),
    ]


@pytest.mark.parametrize(
    "fails", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphGetNodes", "cuGraphInstantiate"]
)
def test_a_failed_capture_says_where_and_leaves_no_graph(fails: str) -> None:
    driver = FakeDriver(fails=fails)
    with pytest.raises(CaptureFailedError, match=f"{fails}: operation failed due to a previous error"):
        pycuda_device._capture(driver, 0x51, lambda: None)
    made = fails in ("cuGraphGetNodes", "cuGraphInstantiate")
    assert [call[0] for call in driver.log].count("cuGraphDestroy") == made
    assert gc.isenabled()


def test_work_that_fails_while_captured_ends_the_capture() -> None:
    driver = FakeDriver()

    def launch() -> None:
        raise FasterViTError("cannot execute")

    with pytest.raises(FasterViTError, match="cannot execute"):
        pycuda_device._capture(driver, 0x51, launch)
    assert driver.log[-1][0] == "cuStreamEndCapture"


def test_an_empty_capture_is_none() -> None:
    with pytest.raises(CaptureFailedError, match="nothing was captured"):
        pycuda_device._capture(FakeDriver(nodes=0), 0x51, lambda: None)


def test_a_launch_that_fails_is_an_error() -> None:
    graph = pycuda_device._capture(FakeDriver(fails="cuGraphLaunch"), 0x51, lambda: None)
    with pytest.raises(FasterViTError, match="CUDA cannot launch a graph"):
        graph.launch(STREAM)


def test_cuda_bindings_have_the_functions_with_these_arguments() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    for name, function in inspect.getmembers(FakeDriver, inspect.isfunction):
        if name.startswith("cu"):
            first = (getattr(driver, name).__doc__ or "").splitlines()[0]
            assert first.startswith(f"{name}("), name
            assert first.count(",") + 1 == len(inspect.signature(function).parameters) - 1, first
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL is not None
    assert driver.CUresult.CUDA_SUCCESS == 0
    assert int(driver.CUstream(0x51)) == 0x51
