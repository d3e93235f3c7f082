"""An ONNX file in, a :class:`Session` of ONNX Runtime's CPU or CUDA provider out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastervit_trt.engines.runtime.ort_timed import OrtTimed, empty_cache_of
from fastervit_trt.engines.runtime.session import Done, Timed
from fastervit_trt.engines.runtime.torch_bridge import TorchBridge
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.onnx_cpu import OnnxCpuSession

if TYPE_CHECKING:
    import torch

__all__ = ["OrtCpu", "OrtCuda", "why_no_cuda_provider"]

_CUDA = "CUDAExecutionProvider"
_DEVICE = "cuda"
_ERRORS_ONLY = 3


def why_no_cuda_provider() -> str | None:
    """None where ONNX Runtime is one for CUDA, else one line; whether a GPU is there is another question."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"ONNX Runtime is not installed ({error}): pip install 'fastervit-trt[gpu]'"
    if _CUDA not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime {onnxruntime.__version__} is not the one for CUDA: pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu"
        )
    return None


class OrtCpu:
    """ONNX Runtime on the CPU, whatever the precision.

    Raises:
        FasterViTError: ONNX Runtime is not installed or refuses the graph.
    """

    depth = 1

    def __init__(self, path: Path, batch: BatchRange, threads: int | None) -> None:
        self._session = OnnxCpuSession(path, threads)
        self.batch, self.outputs, self.emulated = batch, self._session.outputs, self._session.emulated
        how_many = f"{threads} thread{'s' if threads != 1 else ''}" if threads is not None else "all cores"
        twin = ", bfloat16 emulated in float32" if self.emulated else ""
        self.description = f"ONNX Runtime {_version()} on the CPU, {how_many}{twin}"

    def submit(self, images: np.ndarray) -> Done:
        return Done(self._session(images))

    def run_on_gpu(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise FasterViTError(f"images are on {images.device}, the backend ort-cpu on the CPU; pass images.cpu()")

    def timed(self, images: np.ndarray, *, transfers: bool, cold_cache: bool) -> Timed:
        raise FasterViTError("the backend ort-cpu has no device memory to time batches in; time its calls")

    def close(self) -> None:
        del self._session


class OrtCuda:
    """ONNX Runtime on one GPU.

    Args:
        streams: calls at the same time while throughput is timed.

    Raises:
        FasterViTError: ONNX Runtime has no CUDA, does not find its libraries, or refuses the graph.
    """

    depth, emulated = 1, False

    def __init__(
        self,
        path: Path,
        batch: BatchRange,
        output_shapes: dict[str, tuple[int, ...]],
        ordinal: int,
        streams: int = 1,
    ) -> None:
        reason = why_no_cuda_provider()
        if reason is not None:
            raise FasterViTError(reason)
        self.batch, self._ordinal, self._bridge = batch, ordinal, TorchBridge(ordinal)
        self._streams, self._timed = streams, list[OrtTimed]()
        self._session = _cuda_session(path, ordinal)
        self._input = self._session.get_inputs()[0].name
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self._shapes = [output_shapes[name] for name in self.outputs]
        self.description = f"ONNX Runtime {_version()} on GPU {ordinal}"

    def submit(self, images: np.ndarray) -> Done:
        return Done(tuple(self._session.run(list(self.outputs), {self._input: np.ascontiguousarray(images)})))

    def run_on_gpu(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._bridge.check(images)
        results = tuple(self._bridge.empty((len(images), *shape)) for shape in self._shapes)
        binding = self._session.io_binding()
        place = (_DEVICE, self._ordinal, np.float32)
        binding.bind_input(self._input, *place, tuple(images.shape), images.data_ptr())
        for name, result in zip(self.outputs, results, strict=True):
            binding.bind_output(name, *place, tuple(result.shape), result.data_ptr())
        self._bridge.synchronise()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return results

    def timed(self, images: np.ndarray, *, transfers: bool, cold_cache: bool) -> OrtTimed:
        place, streams = (_DEVICE, self._ordinal), self._streams
        empty_cache = partial(empty_cache_of, self._ordinal) if cold_cache else None
        timed = OrtTimed(self._session, place, images, streams=streams, transfers=transfers, empty_cache=empty_cache)
        self._timed.append(timed)
        return timed

    def close(self) -> None:
        for timed in self._timed:
            timed.close()
        del self._session


def _cuda_session(path: Path, ordinal: int) -> Any:
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: finds the CUDA libraries that pip has installed
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[(_CUDA, {"device_id": ordinal})])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        reason = " ".join(str(error).split())[:300]
        raise FasterViTError(f"ONNX Runtime {_version()} refuses '{path}' on GPU {ordinal}: {reason}") from error
    if _CUDA not in session.get_providers():  # it goes on with the CPU, and says so in a log only
        raise FasterViTError(
            f"ONNX Runtime {_version()} cannot use GPU {ordinal}: a CUDA or cuDNN library of its version is missing; "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
