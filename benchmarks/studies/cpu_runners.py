"""Every way to run one model on this CPU in float32: the model and images in, a call that yields logits out.

``export`` is this project's graph in ONNX Runtime, ``attention`` the same with window attention handed to ONNX
Runtime's own kernel; ``eager`` and ``compile`` are PyTorch on the training form;
``openvino`` is OpenVINO on this project's graph, flat, as it reads no local functions; ``naive`` is
``torch.onnx.export`` of the training form as it is, with a dynamic batch, in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from fastervit_trt.benchmarks.studies.plain import plain_export, random_model
from fastervit_trt.console import step
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import inline_functions, save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.onnx_graph import quiet_exporter
from fastervit_trt.export.pipeline import export_graph
from fastervit_trt.export.precision import get_float
from fastervit_trt.export.runtime_attention import use_runtime_attention
from fastervit_trt.models.fastervit import Trunk

__all__ = ["RUNNERS", "SETTINGS", "MissingPackageError", "Runner", "Workload", "make_workload", "save_flat"]

Runner = Callable[[], np.ndarray]  # logits of the workload's images, (B, classes)


class MissingPackageError(FasterViTError):
    """The path needs a package that is not installed: skipped, not failed."""


@dataclass(frozen=True)
class Workload:
    """One model on one batch of images."""

    model: Trunk  # training form, eval
    images: np.ndarray  # (B, 3, H, W) float32
    graph: Path  # this project's export, static batch
    flat: Path  # the same with fused operators written out
    scratch: Path  # for files of other paths
    threads: int


def make_workload(name: str, batch: int, threads: int, scratch: Path) -> Workload:
    """One model with random weights, exported in float32, and one batch of random images.

    Raises:
        FasterViTError: unknown model, or its export fails.
    """
    exported = export_graph(
        lambda: random_model(name),
        get_float("fp32"),
        BatchRange(batch, batch, batch),
        scratch,
        lambda text: step(f"{name}: {text}"),
    )
    model = random_model(name)
    shape = (batch, model.config.in_chans, *model.config.resolution)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    return Workload(model, images, exported.files[0], save_flat(exported.files[0], scratch / "flat"), scratch, threads)


def save_flat(graph: Path, folder: Path) -> Path:
    """``graph`` with fused operators written out, as a file in the new ``folder``."""
    folder.mkdir()
    flat = ir.load(graph)
    inline_functions(flat)
    (path, *_) = save_onnx(flat, folder)
    return path


def _export(work: Workload) -> Runner:
    session = OnnxCpuSession(work.graph, work.threads)
    return lambda: session(work.images)[0]


def _attention(work: Workload) -> Runner:
    model, path = ir.load(work.graph), work.scratch / "attention.onnx"
    if not use_runtime_attention(model):
        raise FasterViTError("the export calls no WindowAttention that ONNX Runtime could take over")
    ir.save(model, path)
    session = OnnxCpuSession(path, work.threads)
    return lambda: session(work.images)[0]


def _eager(work: Workload) -> Runner:
    return _torch_runner(work.model, work.images)


def _compile(work: Workload) -> Runner:
    """Inductor with frozen weights, which packs them.

    On 2 cores of an AMD EPYC (Zen 5) FasterViT-0 at batch 8 took 219 ms so, 222 ms with ``max_autotune`` besides (which
    tunes for half a minute and chooses badly when other libraries' threads are about), 224 ms with channels last.
    """
    try:
        with quiet_exporter():
            torch.compiler.reset()  # another model's frozen weights
            runner = _torch_runner(torch.compile(work.model, options={"freezing": True}), work.images)
            runner()
    except Exception as error:  # whatever the compiler, its backend or the system's C++ compiler raises
        raise FasterViTError(f"torch.compile: {_first_line(error)}") from error
    return runner


def _openvino(work: Workload) -> Runner:
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("OpenVINO is not installed: pip install 'fastervit-trt[peers]'") from error
    core = openvino.Core()
    # Without the hint OpenVINO computes in bfloat16 where the CPU has it: twice as fast, and another result.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": work.threads}
    try:
        compiled = core.compile_model(core.read_model(str(work.flat)), "CPU", options)
    except Exception as error:  # OpenVINO's exceptions share no public base class
        raise FasterViTError(f"OpenVINO {openvino.__version__}: {_first_line(error)}") from error
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(work.images, shared_memory=True))

    def run() -> np.ndarray:
        request.infer()
        return np.asarray(request.get_output_tensor(0).data)

    return run


def _naive(work: Workload) -> Runner:
    path = work.scratch / "naive.onnx"
    _, channels, height, width = work.images.shape
    ir.save(plain_export(work.model, (channels, height, width), batch=None), path)
    session = OnnxCpuSession(path, work.threads)
    return lambda: session(work.images)[0]


RUNNERS: dict[str, Callable[[Workload], Runner]] = {
    "export": _export,
    "attention": _attention,
    "eager": _eager,
    "compile": _compile,
    "openvino": _openvino,
    "naive": _naive,
}

SETTINGS = {
    "export": "ONNX Runtime",
    "attention": "the same, window attention by ONNX Runtime's kernel",
    "eager": "PyTorch, inference mode",
    "compile": "inductor, frozen weights",
    "openvino": "float32, latency hint",
    "naive": "torch.onnx.export as it comes, ONNX Runtime",
}


def _torch_runner(model: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> Runner:
    batch = torch.from_numpy(images)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return model(batch).numpy()

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
