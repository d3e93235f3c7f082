"""A TensorRT-RTX engine on this GPU: built, deserialised and run on PyTorch's tensors. Best effort: Hopper is not on
its list of GPUs, and what it says there is what is to be found out.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastervit_trt.errors import FasterViTError

__all__ = ["RtxRunner", "build_plan", "rtx_module"]


def rtx_module() -> Any:
    """``tensorrt_rtx``.

    Raises:
        ImportError: it is not there, or lacks a library.
    """
    return importlib.import_module("tensorrt_rtx")


class _Messages:
    """The errors that TensorRT-RTX logs."""

    def __init__(self, trt: Any) -> None:
        said: list[str] = []
        self._said = said

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    said.append(message)

        self.logger = Logger()

    def refusal(self, what: str) -> FasterViTError:
        """The last error, which is forgotten."""
        reason = self._said[-1] if self._said else "no reason given"
        self._said.clear()
        return FasterViTError(f"TensorRT-RTX {what}: {reason}")


@functools.cache
def _messages() -> _Messages:
    """One for the process: TensorRT-RTX keeps to the first logger that it is given."""
    return _Messages(rtx_module())


def build_plan(onnx_path: Path, capability: str) -> bytes:
    """A plan of a graph with static shapes.

    Args:
        capability: CURRENT, or as in SM89.

    Raises:
        FasterViTError: parser or builder refuse.
    """
    trt = rtx_module()
    messages = _messages()
    builder = trt.Builder(messages.logger)
    if builder is None:
        raise messages.refusal("has no builder")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise FasterViTError(f"TensorRT-RTX parser: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise messages.refusal(f"builder, {capability}")
    return bytes(plan)


class RtxRunner:
    """An execution context, step by step: each of them may be what does not work.

    Raises:
        FasterViTError: what, and what TensorRT-RTX says.
    """

    def __init__(self) -> None:
        self._trt = rtx_module()
        self._messages = _messages()
        self._runtime = self._trt.Runtime(self._messages.logger)
        self._engine: Any = None
        self._context: Any = None

    def deserialise(self, plan: bytes) -> str:
        """Says what it holds."""
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._messages.refusal("does not deserialise the plan")
        return f"{self._engine.num_layers} layers"

    def create_context(self) -> str:
        """Says what it takes."""
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._messages.refusal("has no execution context")
        return f"{self._engine.device_memory_size_v2 / 1e6:.1f} MB of activations"

    def call(self, outputs: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """Of the input to the one output, both float32, on the current stream."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == self._trt.TensorIOMode.INPUT]
        (source,), (target,) = inputs, [n for n in names if n not in inputs]

        def run(images: Tensor) -> Tensor:
            result = torch.empty(outputs, device=images.device)
            self._context.set_tensor_address(source, images.data_ptr())
            self._context.set_tensor_address(target, result.data_ptr())
            if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise self._messages.refusal("does not execute")
            return result

        return run
