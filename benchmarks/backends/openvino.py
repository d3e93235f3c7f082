"""An export in, its graph in OpenVINO's CPU plugin out: as a peer, in the types that the file says.

OpenVINO's own choice of types would be another: it computes float32 graphs in bfloat16 where the CPU has it. What it
then runs is read from the compiled model and written into the note.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fastervit_trt.benchmarks.backends.host import HostRunner
from fastervit_trt.benchmarks.backends.request import check_request, graph_artifact, is_quantised, why_not_here
from fastervit_trt.benchmarks.backends.runner import Outputs, Request, Runner
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE, inline_functions, save_onnx

__all__ = ["QueueLanes", "open_openvino", "why_not_openvino"]

_INSTALL = "OpenVINO is not installed: pip install 'fastervit-trt[peers]'"
_HINTS = {"fp32": ("f32", "FP32"), "fp16": ("f16", "FP16"), "bf16": ("bf16", "BF16")}  # type, and what a CPU calls it
_PRODUCTS = frozenset({"Convolution", "FullyConnected", "MatMul"})
_EIGHT_BITS = frozenset({"i8", "u8", "f8e4m3", "f8e5m2"})
_FLAT = "fused operators written out, static batch"
_EMULATED = "its products ran in float between Q/DQ: accuracy holds, speed means nothing"


def why_not_openvino(request: Request) -> str | None:
    """What is missing, or None."""
    if importlib.util.find_spec("openvino") is None:
        return _INSTALL
    quantisation = request.manifest.graph.get("quantisation") or {}
    if quantisation.get("form"):
        return (
            f"its int8 is in the form for {quantisation['form']}, whose operators OpenVINO does not read; "
            "export it without --target cpu"
        )
    return why_not_here(request, "cpu")


def open_openvino(request: Request) -> Runner:
    """The graph, written flat and compiled for the batch asked for.

    The batch is static because OpenVINO 2026.4 computes int8 graphs with a dynamic one wrongly (logits off by more than
    the largest of them, or none at all); static ones are right, and float graphs are faster so.

    Raises:
        FasterViTError: a batch that is not served, no OpenVINO, or a graph that it refuses.
    """
    check_request(request, BatchRange.parse(request.manifest.batch), "cpu")
    if reason := why_not_openvino(request):
        raise FasterViTError(reason)
    import openvino

    core = openvino.Core()
    hint, notes = _hint(request, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    with tempfile.TemporaryDirectory() as scratch:
        graph = ir.load(request.folder / GRAPH_FILE)
        inline_functions(graph)
        compiled = _compiled(core, save_onnx(graph, Path(scratch))[0], request, hint)
        del graph
    products = _products(compiled[0])
    emulated = is_quantised(request) and not _EIGHT_BITS & products.keys()
    ran = ", ".join(f"{count} in {kind}" for kind, count in products.most_common())
    notes = [_FLAT, f"products {ran}", *([_EMULATED] if emulated else notes)]
    if request.streams > 1:
        notes.append(f"throughput: {request.streams} streams over {request.threads} threads")
    batch = BatchRange(request.batch, request.batch, request.batch)
    return HostRunner(
        request,
        _Alone(compiled[0]),
        QueueLanes(compiled[1], request.streams) if request.streams > 1 else None,
        artifact=graph_artifact(request),
        batch=batch,
        emulated=emulated,
        note="; ".join(notes),
    )


def _hint(request: Request, capabilities: list[str]) -> tuple[str, list[str]]:
    """The type to compute floats in, and what is to be said about it."""
    precision = request.manifest.precision
    if precision not in _HINTS:
        # With f16 around them int8 layers take OpenVINO's reference path, 60 times as slow (2026.4, AVX512-FP16).
        return "f32", ["what is not in 8 bits in float32"]
    hint, capability = _HINTS[precision]
    if capability not in capabilities:
        return "f32", [f"computed in float32: OpenVINO finds no {precision} on this CPU"]
    return hint, []


def _compiled(core: Any, path: Path, request: Request, hint: str) -> list[Any]:
    """For latency, and with several streams another for throughput."""
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": request.threads}
    kinds = [{"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}]
    if request.streams > 1:
        kinds.append({"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": request.streams})
    try:
        model = core.read_model(str(path))
        model.reshape([request.batch, *request.manifest.input["shape"][1:]])
        compiled = [core.compile_model(model, "CPU", {**options, **kind}) for kind in kinds]
    except Exception as error:  # OpenVINO's exceptions share no public base class
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise FasterViTError(
            f"OpenVINO refuses '{request.folder / GRAPH_FILE}': {reason.strip()[:300]}; measure another backend"
        ) from error
    streams = int(compiled[-1].get_property("NUM_STREAMS"))
    if streams != request.streams:
        raise FasterViTError(f"OpenVINO runs {streams} streams here, not {request.streams}; pass --streams {streams}")
    return compiled


def _products(compiled: Any) -> Counter[str]:
    """Types of convolutions and matrix products, as the compiled model says."""
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [info for info in infos if "layerType" in info and _text(info["layerType"]) in _PRODUCTS]
    return Counter(_text(info["runtimePrecision"]) for info in products)


def _text(value: Any) -> str:
    return str(value.astype(str))


class _Alone:
    """One request; its input is read where it lies."""

    def __init__(self, compiled: Any) -> None:
        self._request, self._count = compiled.create_infer_request(), len(compiled.outputs)

    def __call__(self, images: np.ndarray) -> Outputs:
        import openvino

        self._request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(images), shared_memory=True))
        self._request.infer()
        # Copied: the next call writes there.
        return tuple(np.array(self._request.get_output_tensor(i).data) for i in range(self._count))


class QueueLanes:
    """A request per stream in OpenVINO's own queue."""

    def __init__(self, compiled: Any, count: int) -> None:
        import openvino

        self.count = count
        self.queue = openvino.AsyncInferQueue(compiled, count)
        self._done: list[float] = []
        self.queue.set_callback(lambda request, number: self._done.append(time.perf_counter()))

    def prepare(self, images: np.ndarray) -> None:
        import openvino

        for request in self.queue:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        self.completions(self.count)

    def completions(self, total: int) -> list[float]:
        self._done = []
        for number in range(total):
            self.queue.start_async(userdata=number)
        self.queue.wait_all()
        return self._done

    def close(self) -> None:
        self.queue.wait_all()
