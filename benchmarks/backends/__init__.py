"""A backend's name in, how to run an export with it out: what it is, whether it can run here, and a loaded runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from fastervit_trt.benchmarks.backends.runner import Request, Runner
from fastervit_trt.errors import FasterViTError

__all__ = ["BACKENDS", "Backend", "get_backend"]


@dataclass(frozen=True)
class Backend:
    """One way to run an export.

    Attributes:
        device_kind: "either": on a GPU where PyTorch finds one.
        start_seconds: of a fresh process until a small model is loaded, for estimates; measured on 2 CPU cores, where
            there is no GPU guessed from the steps.
        why_not: one line if this machine or this export does not have what it takes, and how to get it; loads no model.
        open: loads the artifact; raises FasterViTError, also where ``why_not`` has something to say.
    """

    name: str
    title: str
    device_kind: Literal["cpu", "gpu", "either"]
    start_seconds: float
    why_not: Callable[[Request], str | None]
    open: Callable[[Request], Runner]


def get_backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        FasterViTError: there is none.
    """
    if name not in BACKENDS:
        raise FasterViTError(f"there is no backend '{name}'; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]


def _later(module: str, function: str) -> Callable[[Request], Any]:
    """``function`` of a module of this package, imported when it is called: a list of backends needs no PyTorch."""

    def call(request: Request) -> Any:
        return getattr(import_module(f"{__name__}.{module}"), function)(request)

    return call


def _backend(
    name: str, title: str, device_kind: Literal["cpu", "gpu", "either"], seconds: float, module: str, suffix: str
) -> Backend:
    return Backend(
        name, title, device_kind, seconds, _later(module, f"why_not_{suffix}"), _later(module, f"open_{suffix}")
    )


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        _backend("ort-cpu", "ONNX Runtime, CPU", "cpu", 2, "ort", "ort_cpu"),
        _backend("ort-cuda", "ONNX Runtime, CUDA", "gpu", 8, "device", "ort_cuda"),
        _backend("tensorrt", "TensorRT", "gpu", 8, "device", "tensorrt"),
        _backend("tensorrt-rtx", "TensorRT-RTX", "gpu", 10, "device", "rtx"),
        _backend("torch", "PyTorch", "either", 4, "torch_model", "torch"),
        _backend("torch-compile", "torch.compile", "either", 50, "torch_model", "torch_compile"),
        _backend("torch-fused", "PyTorch, fused operators", "either", 4, "torch_model", "torch_fused"),
        _backend("openvino", "OpenVINO", "cpu", 3, "openvino", "openvino"),
    )
}
