"""An export in, its graph in ONNX Runtime on the CPU out, loaded by the :class:`Engine` that users load."""

from __future__ import annotations

import importlib.util
import platform
from contextlib import ExitStack

from fastervit_trt.benchmarks.backends.host import HostRunner, ThreadLanes
from fastervit_trt.benchmarks.backends.request import check_request, graph_artifact, why_not_here
from fastervit_trt.benchmarks.backends.runner import Request, Runner
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.export.batch import BatchRange

__all__ = ["open_ort_cpu", "why_not_ort_cpu"]

_CPU_FP16 = "ONNX Runtime's x86 CPU kernels compute fp16 in fp32 between casts: fp16 pays on GPUs"
_EMULATED = (
    "bfloat16 ran as float32 with exact rounding (ONNX Runtime's CPU lacks it): accuracy holds, speed means nothing"
)


def why_not_ort_cpu(request: Request) -> str | None:
    """What is missing, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'fastervit-trt[cpu]'"
    return why_not_here(request, "cpu")


def open_ort_cpu(request: Request) -> Runner:
    """The graph, once over all threads, and with several streams once more per stream over its share of them.

    An engine runs one call at a time, and OpenVINO divides threads among streams as well.

    Raises:
        FasterViTError: a batch that is not served, no ONNX Runtime, or a graph that it refuses.
    """
    check_request(request, BatchRange.parse(request.manifest.batch), "cpu")
    each = request.threads // request.streams
    with ExitStack() as stack:

        def engine(threads: int) -> Engine:
            return stack.enter_context(Engine.load(request.folder, backend="ort-cpu", threads=threads))

        alone, notes = engine(request.threads), []
        lanes = None
        if request.streams > 1:
            lanes = ThreadLanes([engine(each) for _ in range(request.streams)])
            notes.append(f"throughput: {request.streams} sessions, {each} thread{'s' if each > 1 else ''} each")
        if alone.emulated:
            notes.append(_EMULATED)
        elif request.manifest.precision == "fp16" and platform.machine() in ("x86_64", "AMD64"):
            notes.append(_CPU_FP16)
        return HostRunner(
            request,
            alone,
            lanes,
            artifact=graph_artifact(request),
            batch=alone.batch,
            emulated=alone.emulated,
            note="; ".join(notes),
            on_close=stack.pop_all().close,
        )
    raise AssertionError("a stack suppresses no error")
