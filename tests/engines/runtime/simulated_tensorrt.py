"""The part of TensorRT that runs engines, on a simulated GPU: as strict about shapes, addresses and graphs as it is.

An execution is two steps, between which other streams may act: it marks its activation memory, and finds it marked
still. Contexts that share activations without order, or a graph whose context was changed after the capture, are
caught. Names and numbers of arguments are held against the recorded APIs by test_tensorrt_api.py.
"""

from __future__ import annotations

import enum
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.engines.runtime.simulator import Op, SimDevice, SimulatorError

__all__ = ["PLAN", "Shapes", "SimTensorRt", "compute"]

PLAN = b"an engine"
# What a manifest says of an engine, but for its file and compute capability.
ENGINE_RECORD: dict[str, Any] = {
    "runtime": "tensorrt",
    "version": "11.4.0.106",
    "gpu": None,
    "profiles": [[1, 2, 3]],
    "precision": "fp32",
    "hardware_compatibility": "none",
    "version_compatible": False,
    "stripped": False,
    "plugins": None,
    "onnx_sha256": "",
    "options": {},
}
Shape = tuple[int, ...]
_MARKS = itertools.count(1)


def compute(images: np.ndarray) -> tuple[np.ndarray, ...]:
    """Something per image that is exact in float32 for small whole numbers: logits (B, 5) and features (B, 2, h, w)."""
    weights = 1 + np.arange(5 * images[0].size, dtype=np.float32).reshape(5, -1) % 7
    features = images[:, :2, ::2, ::2] * 3 - 1
    return (images.reshape(len(images), 1, -1) * weights).sum(2, dtype=np.float32), features.astype(np.float32)


@dataclass(frozen=True)
class Shapes:
    """Of an engine's tensors, -1 for the batch if that varies."""

    image: Shape = (3, 4, 6)
    outputs: dict[str, Shape] = field(default_factory=lambda: {"logits": (5,), "features": (2, 2, 3)})
    profiles: Sequence[tuple[int, int, int]] = ((1, 2, 4),)
    static: int | None = None


class DataType(enum.IntEnum):
    FLOAT, HALF = 0, 1


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class CudaGraphStrategy(enum.IntEnum):
    DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IExecutionContext:
    """The state of executions; ``_version`` changes with it."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None, user_managed: bool) -> None:
        self._engine, self._config, self._user_managed = engine, config, user_managed
        self._activations, self._profile, self._chosen, self._version = 0, 0, 0, 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._pending = True  # an update of internal state that the next execution makes

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._user_managed and memory % 256 == 0 and size == self._engine._activation_bytes
        self._activations = memory
        self._changed()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return False
        self._profile = -1
        self._engine._device.streams[stream_handle].push(Op(lambda: setattr(self, "_profile", profile_index)))
        self._shapes, self._chosen = {}, profile_index
        self._changed()
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        shapes = self._engine._shapes
        low, _, high = shapes.profiles[self._chosen]
        if shapes.static is not None:
            low = high = shapes.static
        if name != "images" or shape[1:] != shapes.image or not low <= shape[0] <= high:
            return self._engine._says(f"no shape {shape} for {name}")
        if self._shapes.get(name) != shape:
            self._shapes[name] = shape
            self._changed()
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in ("images", *self._engine._shapes.outputs)
        if self._addresses.get(name) != memory:
            self._addresses[name] = memory
            self._version += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self._engine._device
        stream = device.streams[stream_handle]
        capturing = stream.recording is not None
        if self._engine._fails_at is not None and next(self._engine._executions) == self._engine._fails_at:
            return self._engine._says("execution failed as the test wishes")
        if capturing and self._pending:
            raise SimulatorError("captured before an execution that brings the context up to date with its shapes")
        version, shapes, addresses = self._version, dict(self._shapes), dict(self._addresses)
        activations, mark = self._activations, np.float32(next(_MARKS))
        engine, config, user_managed, this = self._engine, self._config, self._user_managed, weakref.ref(self)

        def check() -> None:
            context = this()
            if context is None:
                raise SimulatorError("an execution context was destroyed before its work was done")
            if capturing and version != context._version:
                raise SimulatorError("a graph was launched whose context was changed since")
            if context._profile != context._chosen:
                raise SimulatorError("executed before the profile was set")

        def begin() -> None:
            check()
            if user_managed:
                device.write(activations, np.full(1, mark))

        def end() -> None:
            check()
            if user_managed and device.read(activations, (1,))[0] != mark:
                raise SimulatorError("two executions used the same activation memory at the same time")
            device.execute(shapes["images"][0])
            outputs = engine._compute(device.read(addresses["images"], shapes["images"]))
            for output, name in zip(outputs, engine._shapes.outputs, strict=True):
                device.write(addresses[name], np.ascontiguousarray(output))
            if config is not None:
                config._cache._content = b"compiled"

        self._pending = False
        stream.push(Op(begin))
        stream.push(Op(end))
        return True

    def _changed(self) -> None:
        self._version += 1
        self._pending = True


class IRuntimeCache:
    def __init__(self) -> None:
        self._content = b""

    def deserialize(self, blob: bytes) -> bool:
        self._content = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self._content


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._cache = IRuntimeCache()

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class ICudaEngine:
    def __init__(self, trt: SimTensorRt) -> None:
        self._trt, self._device, self._shapes = trt, trt._device, trt._shapes
        self._compute, self._fails_at = trt._compute, trt._fails_at
        self._executions, self._activation_bytes = itertools.count(), 1000
        self._missing = set(trt._missing)
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self._config: IRuntimeConfig | None = None

    @property
    def num_io_tensors(self) -> int:
        return 1 + len(self._shapes.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._shapes.profiles)

    def get_tensor_name(self, index: int) -> str:
        # An engine's order is its own: outputs here come the other way round than in the graph.
        return [*reversed(self._shapes.outputs), "images"][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._trt._dtype

    def get_tensor_shape(self, name: str) -> Shape:
        rest = self._shapes.image if name == "images" else self._shapes.outputs[name]
        return (self._shapes.static or -1, *rest)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        return [(size, *self._shapes.image) for size in self._shapes.profiles[profile_index]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._activation_bytes

    def create_runtime_config(self) -> IRuntimeConfig:
        self._config = IRuntimeConfig()
        return self._config

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        if self._missing:
            raise SimulatorError("a context was made before the weights were there")
        if self._trt._most_contexts is not None and len(self._contexts) >= self._trt._most_contexts:
            self._says("out of memory")
            return None
        config = strategy if isinstance(strategy, IRuntimeConfig) else None
        user_managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        context = IExecutionContext(self, config, user_managed)
        self._contexts.add(context)
        return context

    def _says(self, message: str) -> bool:
        self._trt._log(message)
        return False


class IPluginRegistry:
    def __init__(self, trt: SimTensorRt) -> None:
        self._trt = trt

    def load_library(self, plugin_path: str) -> object | None:
        self._trt._plugins.append(plugin_path)
        return object()


class Runtime:
    def __init__(self, trt: SimTensorRt, logger: Any) -> None:
        self._trt, self.engine_host_code_allowed = trt, False
        trt._logger = logger

    def get_plugin_registry(self) -> IPluginRegistry:
        return IPluginRegistry(self._trt)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._trt._host_code = self.engine_host_code_allowed
        if bytes(serialized_engine) != PLAN:
            self._trt._log("magic tag does not match")
            return None
        if self._trt._needs_plugin and not self._trt._plugins:
            self._trt._log("creator of WindowAttention not found")
            return None
        self._trt._engines.append(ICudaEngine(self._trt))
        return self._trt._engines[-1]


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self._engine, self._given = engine, set[str]()

    def get_missing_weights(self) -> list[str]:
        return sorted(self._engine._missing - self._given)

    def refit_cuda_engine(self) -> bool:
        self._engine._missing -= self._given
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter, self.num_errors = refitter, 0

    def refit_from_file(self, model: str) -> bool:
        self._refitter._engine._trt._refitted.append(model)
        self._refitter._given |= self._refitter._engine._trt._weights_in_file
        return True

    def get_error(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: "no error")


class SimTensorRt:
    """The module ``tensorrt`` or ``tensorrt_rtx``, on one device.

    Args:
        fails_at: number of the execution that fails.
        missing: weights the plan was stripped of.
    """

    DataType, TensorIOMode, ILogger = DataType, TensorIOMode, ILogger
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    Refitter, OnnxParserRefitter = Refitter, OnnxParserRefitter

    def __init__(
        self,
        device: SimDevice,
        shapes: Shapes = Shapes(),
        *,
        compute: Callable[[np.ndarray], tuple[np.ndarray, ...]] = compute,
        dtype: DataType = DataType.FLOAT,
        fails_at: int | None = None,
        missing: frozenset[str] = frozenset(),
        weights_in_file: frozenset[str] = frozenset(),
        needs_plugin: bool = False,
        most_contexts: int | None = None,
    ) -> None:
        self.__name__, self.__version__ = "tensorrt", "11.4.0.106"
        self._device, self._shapes, self._compute, self._dtype = device, shapes, compute, dtype
        self._fails_at, self._missing, self._weights_in_file = fails_at, missing, weights_in_file
        self._needs_plugin, self._host_code, self._logger = needs_plugin, False, None
        self._most_contexts = most_contexts
        self._plugins: list[str] = []
        self._refitted: list[str] = []
        self._engines: list[ICudaEngine] = []

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self, logger)

    def _log(self, message: str) -> None:
        self._logger.log(ILogger.Severity.ERROR, message)  # type: ignore[attr-defined]
