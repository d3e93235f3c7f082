"""An export's manifest in, the very model that it was made from in PyTorch out: as it is, compiled, or fused.

On a GPU where PyTorch finds one, else on the CPU. Float32 images come in and float32 outputs go out, as of the exported
graph. Position tables are constants, as published evaluations keep them; the graph has them so, too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastervit_trt.benchmarks.backends.host import Call, HostRunner, ThreadLanes
from fastervit_trt.benchmarks.backends.request import check_request, is_quantised, why_not_here
from fastervit_trt.benchmarks.backends.runner import Artifact, Outputs, Request, Runner
from fastervit_trt.benchmarks.backends.torch_cuda import CudaRunner
from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.job import first_line
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import bake_position_tables, deploy_form
from fastervit_trt.export.onnx_graph import quiet_exporter
from fastervit_trt.export.precision import FLOATS, get_float
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, resolve_source
from fastervit_trt.plugins.library import find_library

__all__ = [
    "open_torch",
    "open_torch_compile",
    "open_torch_fused",
    "why_not_torch",
    "why_not_torch_compile",
    "why_not_torch_fused",
]

Form = Literal["as trained", "compiled", "fused"]

_AT_ONCE = 32  # images of a call for accuracy, where the batch that is timed is smaller and any will do
# Packs weights: FasterViT-0 at batch 8 on two Zen 5 cores took 219 ms so, 222 ms with max_autotune besides.
_FREEZE: dict[str, str | int | bool | Callable[..., Any]] = {"freezing": True}


def why_not_torch(request: Request) -> str | None:
    """What is missing, or None."""
    if is_quantised(request) or request.manifest.precision not in FLOATS:
        return (
            f"PyTorch runs floats only, and '{request.folder.name}' is {request.manifest.precision}; "
            "measure it on a runtime"
        )
    weights = request.manifest.weights
    if weights.get("kind") == "checkpoint" and not Path(weights.get("path", "")).is_file():
        return f"checkpoint '{weights.get('path')}' is gone; put it back, or export from where it is now"
    return why_not_here(request, _kind())


def why_not_torch_compile(request: Request) -> str | None:
    """What is missing, or None."""
    if _kind() == "cpu" and sys.platform != "win32":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # inductor's own choice
        if shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler, and there is no '{compiler}'; install one, or name it in CXX"
    return why_not_torch(request)


def why_not_torch_fused(request: Request) -> str | None:
    """What is missing, or None."""
    if _kind() == "gpu":
        try:
            find_library("kernels")
        except FasterViTError as error:
            return str(error)
    return why_not_torch(request)


def open_torch(request: Request) -> Runner:
    """The model as it was trained.

    Raises:
        FasterViTError: an impossible request, or its weights are gone or have changed.
    """
    return _open(request, "as trained", why_not_torch)


def open_torch_compile(request: Request) -> Runner:
    """The same by inductor, at its best: weights frozen on a CPU, tuned and captured on a GPU.

    Raises:
        FasterViTError: as :func:`open_torch`, or the compiler fails.
    """
    return _open(request, "compiled", why_not_torch_compile)


def open_torch_fused(request: Request) -> Runner:
    """The deploy form on the fused operators: this project's kernels on a GPU, their definitions on a CPU.

    Raises:
        FasterViTError: as :func:`open_torch`, or there are no compiled kernels for the GPU.
    """
    return _open(request, "fused", why_not_torch_fused)


def _kind() -> Literal["cpu", "gpu"]:
    return "gpu" if torch.cuda.is_available() else "cpu"


def _open(request: Request, form: Form, why_not: Callable[[Request], str | None]) -> Runner:
    kind, size = _kind(), request.batch
    check_request(request, BatchRange(size, size, size), kind)  # of a model any batch can be timed
    if reason := why_not(request):
        raise FasterViTError(reason)
    source = resolve_source(WeightSource.from_record(request.manifest.weights))
    digest = source.sha256 or f"random, seed {source.seed}"
    artifact = Artifact("weights", digest, None)
    batch = BatchRange(size, size, size) if form == "compiled" else BatchRange(1, size, max(size, _AT_ONCE))
    if kind == "gpu":
        return _on_gpu(request, form, source, artifact, batch)
    return _on_cpu(request, form, source, artifact, batch)


@torch.no_grad()
def _model(request: Request, form: Form, source: WeightSource, device: torch.device) -> TypedModel:
    gpu_ways.leave_out_checks()
    model: nn.Module = build_model(ModelSpec.from_record(request.manifest.spec), source)[0]
    precision = get_float(request.manifest.precision)
    if form == "fused":
        pad = gpu_ways.PAD_HEADS_TO if device.type == "cuda" and precision.dtype is not torch.float32 else None
        model = deploy_form(model, pad_heads_to=pad)[0]
    else:
        bake_position_tables(model)
    return TypedModel(model, precision).to(device)


def _on_cpu(request: Request, form: Form, source: WeightSource, artifact: Artifact, batch: BatchRange) -> Runner:
    model = _model(request, form, source, torch.device("cpu"))
    threads_before, each = torch.get_num_threads(), request.threads // request.streams
    notes = {
        "as trained": "as trained, position tables constant",
        "compiled": "as trained, position tables constant; inductor, frozen weights",
        "fused": f"deploy form, {gpu_ways.DEFINED}",
    }[form]
    torch.set_num_threads(request.threads)
    try:
        alone = _compiled_for_cpu(model, request) if form == "compiled" else partial(_call, model)
        lanes = None
        if request.streams > 1:
            lanes = ThreadLanes([alone] * request.streams, enter=partial(torch.set_num_threads, each))
            notes += f"; throughput: {request.streams} Python threads, {each} of PyTorch's to each"
    except BaseException:
        torch.set_num_threads(threads_before)
        raise
    return HostRunner(
        request,
        alone,
        lanes,
        artifact=artifact,
        batch=batch,
        note=notes,
        on_close=partial(torch.set_num_threads, threads_before),
    )


@torch.inference_mode()
def _call(model: Callable[[Tensor], Tensor | tuple[Tensor, ...]], images: np.ndarray) -> Outputs:
    found = model(torch.from_numpy(images))
    return tuple(output.numpy() for output in ((found,) if isinstance(found, Tensor) else found))


def _compiled_for_cpu(model: nn.Module, request: Request) -> Call:
    with _compiling():
        torch.compiler.reset()  # another model's frozen weights
        call = partial(_call, torch.compile(model, options=_FREEZE, dynamic=False))
        call(_zeros(request).numpy())
    return call


def _on_gpu(request: Request, form: Form, source: WeightSource, artifact: Artifact, batch: BatchRange) -> Runner:
    device = torch.device("cuda", request.device)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # for all forms that leave convolutions to cuDNN
    if form == "fused":
        gpu_ways.require_kernels("cuda")
    model = _model(request, form, source, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    call: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = gpu_ways.compiled(model) if form == "compiled" else model
    dtype = get_float(request.manifest.precision).dtype

    def forward(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return call(images.to(dtype, memory_format=torch.channels_last))

    if form == "compiled":
        with _compiling(), torch.inference_mode():
            forward(_zeros(request).to(device))
    notes = {
        "as trained": "as trained, position tables constant, channels-last",
        "compiled": f"as trained, position tables constant, channels-last; {gpu_ways.COMPILED}",
        "fused": "deploy form on this project's kernels, channels-last",
    }[form]
    if form == "fused" and dtype is torch.float32:
        notes += "; in fp32 attention has the plain kernel only, the oracle of the others"
    return CudaRunner(request, forward, device, artifact, batch, notes)


def _zeros(request: Request) -> Tensor:
    return torch.zeros(request.batch, *request.manifest.input["shape"][1:])


@contextmanager
def _compiling() -> Iterator[None]:
    try:
        with quiet_exporter():
            yield
    except Exception as error:  # whatever the compiler, its backend or the system's C++ compiler raises
        raise FasterViTError(f"torch.compile: {first_line(error)}; measure --backend torch instead") from error
