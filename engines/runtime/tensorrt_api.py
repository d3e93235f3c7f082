"""The bytes of an engine in, a :class:`Program` out: every call of TensorRT that runs it.

These calls are the same from TensorRT 10.3 to 11 and in TensorRT-RTX; what differs is in ``engines/api.py``.
tests/engines/runtime/test_tensorrt_api.py holds them against the recorded APIs.
"""

from __future__ import annotations

import functools
import importlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastervit_trt.engines.api import MODULES, NAMES, RuntimeName, TensorRtApi, unavailable_reason
from fastervit_trt.engines.runtime.device import Stream
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

__all__ = ["Program", "Source", "import_runtime"]

_MESSAGES_KEPT = 20


@dataclass(frozen=True)
class Source:
    """What an engine is made of.

    Attributes:
        runtime: that built it and that it needs.
        content: the very bytes that were checked.
        label: what to call it in messages.
        plugins: library its plugins are in.
        weights: ONNX file to take the weights from that were left out.
        host_code: a version-compatible engine brings the runtime it needs, as code.
    """

    runtime: RuntimeName
    content: bytes
    label: str
    plugins: Path | None = None
    weights: Path | None = None
    host_code: bool = False

    @property
    def rtx(self) -> bool:
        return self.runtime == "tensorrt-rtx"


def import_runtime(name: RuntimeName) -> Any:
    """The module.

    Raises:
        FasterViTError: not installed, or a library of it is missing.
    """
    reason = unavailable_reason(name)
    if reason is not None:
        raise FasterViTError(reason)
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:  # a library of its own or of CUDA is missing
        raise FasterViTError(f"{NAMES[name]} is installed but cannot be loaded: {error}; install it again") from error


class Program:
    """A deserialised engine for one optimisation profile; a GPU's context is current in all calls.

    Attributes:
        image_shape: (3, H, W).
        batch: sizes the profile serves.
        outputs: names and shapes without the batch dimension, in the order asked for.
        activation_bytes: device memory that a context needs, which contexts may share that run one after the other;
            0 where the runtime manages it itself.

    Args:
        outputs: names in the graph's order.
        cuda_graph: let TensorRT-RTX make its own.
        cached: what :meth:`runtime_cache` gave before.

    Raises:
        FasterViTError: TensorRT refuses it, or it is no engine of the export at hand.
    """

    def __init__(
        self,
        trt: Any,
        source: Source,
        profile: int,
        outputs: Sequence[str],
        *,
        cuda_graph: bool,
        cached: bytes | None = None,
    ) -> None:
        self._trt, self._label = trt, source.label
        self._messages = _messages(trt)
        self._runtime = self._new_runtime()
        self._engine = self._deserialise(source)
        if source.weights is not None:
            self._refit(source.weights)
        self._profile = profile
        self._read_tensors(outputs)
        own = TensorRtApi(trt, source.runtime).runtime_config(self._engine, cuda_graph=cuda_graph, cached=cached)
        self._config: Any = own[0] if own else None
        self._cache: Any = own[1] if own else None
        self.activation_bytes = 0
        if self._config is None:
            self.activation_bytes = int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def context(self, activations: int, stream: Stream) -> Any:
        """An execution context on the activation memory at that address; the profile is set when this returns.

        Contexts may share a profile: PROFILE_SHARING_0806 is "on by default in TensorRT 10.0" (NVIDIA/TensorRT,
        samples/common/sampleOptions.cpp), and TensorRT-RTX came after it.
        """
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
        else:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        self._require(context, f"cannot make an execution context of '{self._label}'")
        if self.activation_bytes:
            context.set_device_memory(activations, self.activation_bytes)
        ready = context.set_optimization_profile_async(self._profile, stream.handle)
        self._require(ready, f"cannot use profile {self._profile} of '{self._label}'")
        stream.synchronise()
        return context

    def bind(self, context: Any, batch: int, images: int, outputs: Sequence[int]) -> None:
        """Say what the next executions of ``context`` read and write."""
        ready = context.set_input_shape(self._input, (batch, *self.image_shape))
        ready = ready and context.set_tensor_address(self._input, images)
        for name, address in zip(self.outputs, outputs, strict=True):
            ready = ready and context.set_tensor_address(name, address)
        self._require(ready, f"'{self._label}' does not take batch {batch}")

    def enqueue(self, context: Any, stream: Stream) -> None:
        self._require(context.execute_async_v3(stream.handle), f"cannot execute '{self._label}'")

    def runtime_cache(self) -> bytes | None:
        """What TensorRT-RTX has compiled on this GPU so far, for the next load."""
        return bytes(self._cache.serialize()) if self._cache is not None else None

    def release(self) -> None:
        """Let go of everything, in TensorRT's order; contexts must be gone."""
        self._config = self._cache = None
        self._engine = None
        self._runtime = None

    def _new_runtime(self) -> Any:
        try:
            return self._require(self._trt.Runtime(self._messages.logger), "cannot start")
        except (TypeError, RuntimeError) as error:  # what the bindings make of a null pointer
            self._require(None, f"cannot start ({error})")

    def _deserialise(self, source: Source) -> Any:
        if source.plugins is not None:
            # None where it cannot be loaded, and where the process has it already: what counts is what comes after.
            self._runtime.get_plugin_registry().load_library(str(source.plugins))
        if source.host_code:
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(source.content)
        with_plugins = f" with plugins of '{source.plugins}'" if source.plugins is not None else ""
        return self._require(engine, f"cannot read engine '{source.label}'{with_plugins}")

    def _read_tensors(self, outputs: Sequence[str]) -> None:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        floats = all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
        fixed = all(shape and all(side > 0 for side in shape[1:]) for shape in shapes.values())
        if len(inputs) != 1 or len(shapes[inputs[0]]) != 4 or {*inputs, *outputs} != {*names} or not (floats and fixed):
            found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise FasterViTError(
                f"'{self._label}' is not the engine of its export: float32 images (B, 3, H, W) to "
                f"{', '.join(outputs)} are expected, it has {found}; build it again"
            )
        (self._input,) = inputs
        self.image_shape = shapes[self._input][1:]
        self.outputs = {name: shapes[name][1:] for name in outputs}
        self.batch = self._batch(shapes[self._input][0])

    def _batch(self, static: int) -> BatchRange:
        profiles = self._engine.num_optimization_profiles
        if not 0 <= self._profile < profiles:
            raise FasterViTError(f"'{self._label}' has no profile {self._profile}; it has {profiles}, counted from 0")
        if static > 0:
            return BatchRange(static, static, static)
        shapes = self._engine.get_tensor_profile_shape(self._input, self._profile)
        return BatchRange(*(int(next(iter(shape))) for shape in shapes))

    def _refit(self, weights: Path) -> None:
        trt = self._trt
        refitter = trt.Refitter(self._engine, self._messages.logger)
        parser = trt.OnnxParserRefitter(refitter, self._messages.logger)
        if not parser.refit_from_file(str(weights)):
            reason = parser.get_error(0).desc() if parser.num_errors else self._messages.take()
            raise FasterViTError(f"cannot take the weights of '{self._label}' from '{weights}': {reason}")
        missing = list(refitter.get_missing_weights())
        if missing:
            raise FasterViTError(f"'{weights}' lacks {len(missing)} weights of '{self._label}', '{missing[0]}' for one")
        self._require(refitter.refit_cuda_engine(), f"cannot put the weights of '{weights}' into '{self._label}'")

    def _require(self, result: Any, what: str) -> Any:
        if result is None or result is False:
            raise FasterViTError(f"{self._trt.__name__} {self._trt.__version__} {what}: {self._messages.take()}")
        return result


class _Messages:
    """The last errors that TensorRT logged."""

    def __init__(self, trt: Any) -> None:
        said: deque[str] = deque(maxlen=_MESSAGES_KEPT)
        self._said = said

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    said.append(message)

        self.logger = Logger()

    def take(self) -> str:
        """The last of them, which are forgotten."""
        reason = self._said[-1] if self._said else "no reason given"
        self._said.clear()
        return reason


@functools.cache
def _messages(trt: Any) -> _Messages:
    """One for the process: TensorRT keeps to the first logger that it is given."""
    return _Messages(trt)
