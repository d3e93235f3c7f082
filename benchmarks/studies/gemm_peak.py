"""A matrix size in, the fastest known way to compute it on this CPU out: the floor under every path that needs it.

Every size is computed alone, warm, in float32, with everything constant about its weight done beforehand: by PyTorch
(MKL and oneDNN), by ONNX Runtime and, where installed, by OpenVINO. Whoever is fastest sets the floor.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from fastervit_trt.benchmarks.studies.gemm_sizes import GemmSize
from fastervit_trt.benchmarks.timing import Timer, interleaved
from fastervit_trt.console import track

__all__ = ["PEAK", "Floor", "FloorItem", "find_floor", "park"]

PEAK = GemmSize("matmul", 2048, 2048, 2048)  # what a large product reaches, for context

# ONNX Runtime lays convolutions out in blocks of channels and back again; in a row of convolutions only the first and
# the last pay for that, as in the model.
_CHAIN = 4
_OPSET, _IR_VERSION = 19, 9
_SWEEP_SECONDS = 0.01  # per size and sweep, or three calls
_CONTENDERS = 2  # of each size stay in the race: the first look may mistake the second fastest for the fastest
_FASTEST = 0  # percentile: a call of milliseconds meets another process or not, and the floor is where it does not
_PARK_SECONDS, _MAX_PARK_SECONDS = 0.002, 0.1


@dataclass(frozen=True)
class Contender:
    """One implementation of a size."""

    name: str
    timer: Timer
    repeats: int  # of the size in one call
    sweeps: list[float] = field(default_factory=list)  # seconds of one node in each sweep

    @classmethod
    def of(cls, name: str, call: Callable[[], object], repeats: int = 1) -> Contender:
        return cls(name, Timer(call, images=1), repeats)

    @property
    def fastest(self) -> float:
        """Seconds of one node."""
        return self.timer.latency_ms(_FASTEST) / 1e3 / self.repeats

    def sweep(self) -> float:
        park()
        self.sweeps.append(self.timer.slice(_SWEEP_SECONDS, percentile=_FASTEST) / self.repeats)
        return self.sweeps[-1]


@dataclass(frozen=True)
class FloorItem:
    """One size and the implementations that may be its fastest."""

    size: GemmSize
    nodes: int  # of the model; 0 for PEAK
    contenders: Sequence[Contender]

    def sweep(self) -> float:
        """Time it once more; seconds of all its nodes."""
        return self.nodes * min(contender.sweep() for contender in self.contenders)

    @property
    def implementation(self) -> str:
        return min(self.contenders, key=lambda c: float(np.median(c.sweeps))).name

    @property
    def ms(self) -> float:
        """Of one node: the faster contender of each sweep, the median over sweeps."""
        return float(np.median(np.min([c.sweeps for c in self.contenders], axis=0))) * 1e3

    @property
    def gflops(self) -> float:
        return self.size.flop / self.ms / 1e6


@dataclass(frozen=True)
class Floor:
    """All products of a model, each at its fastest."""

    items: tuple[FloorItem, ...]

    def sweep(self) -> float:
        """Time every size once more; the seconds that all nodes together need at least."""
        return sum(item.sweep() for item in self.items)

    @property
    def flop(self) -> int:
        return sum(item.nodes * item.size.flop for item in self.items)

    @property
    def peak_gflops(self) -> float:
        return next(item.gflops for item in self.items if item.size == PEAK and not item.nodes)


def park() -> None:
    """Wait until threads of what ran last stop spinning for more work, 20 ms after ONNX Runtime, 7 after OpenMP."""
    end = time.perf_counter() + _MAX_PARK_SECONDS
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_PARK_SECONDS)
        if time.process_time() - before < _PARK_SECONDS / 4:  # of all threads together
            return


def find_floor(sizes: Mapping[GemmSize, int], threads: int, seconds: float) -> Floor:
    """The fastest implementations of every size.

    Args:
        sizes: with the number of nodes of each.
        seconds: spent on each implementation of a size; three calls, twice, at least.
    """
    items = []
    for size, nodes in track([*sizes.items(), (PEAK, 0)], "looking for the fastest matrix products"):
        found = _contenders(size, threads)
        timers = [contender.timer for contender in found]
        interleaved(timers, seconds, rounds=2, warm_up_seconds=seconds, before_turn=park)
        fastest = sorted(found, key=lambda contender: contender.fastest)
        items.append(FloorItem(size, nodes, fastest[:_CONTENDERS]))
    return Floor(tuple(items))


def _contenders(size: GemmSize, threads: int) -> list[Contender]:
    found = _torch_convolutions(size) if size.conv else _torch_products(size)
    for repeats in (1, _CHAIN) if size.conv and size.conv.chainable else (1,):
        graph, inputs = _operator_graph(size, repeats)
        suffix = f", {repeats} in a row" if repeats > 1 else ""
        found.append(Contender.of(f"ONNX Runtime{suffix}", _onnxruntime(graph, inputs, threads), repeats))
        if importlib.util.find_spec("openvino"):
            found.append(Contender.of(f"OpenVINO{suffix}", _openvino(graph, inputs, threads), repeats))
    return found


def _torch_products(size: GemmSize) -> list[Contender]:
    if size.kind == "attention":
        a, b = torch.randn(size.batch, size.m, size.k), torch.randn(size.batch, size.k, size.n)
        turned, out = b.mT.contiguous().mT, torch.empty(size.batch, size.m, size.n)
        return [
            Contender.of("torch bmm", _inference(lambda: torch.bmm(a, b, out=out))),
            Contender.of("torch bmm, K transposed", _inference(lambda: torch.bmm(a, turned, out=out))),
        ]
    x, weight = torch.randn(size.m, size.k), torch.randn(size.n, size.k)
    image, kernel = x.T[None, :, :, None], weight[:, :, None, None]  # channels last as they are: nothing is copied
    return [
        Contender.of("torch linear", _inference(lambda: F.linear(x, weight))),
        Contender.of("torch 1x1 conv", _inference(lambda: F.conv2d(image, kernel))),  # oneDNN, where linear is MKL
    ]


def _torch_convolutions(size: GemmSize) -> list[Contender]:
    conv = size.conv
    assert conv is not None
    x, weight, bias = torch.randn(conv.image), torch.randn(conv.weight), torch.randn(conv.weight[0])
    options: dict[str, Any] = {"stride": conv.strides, "padding": conv.pads[:2], "groups": conv.groups}
    x_last, weight_last = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    return [
        Contender.of("torch conv", _inference(lambda: F.conv2d(x, weight, bias, **options))),
        Contender.of("torch conv, channels last", _inference(lambda: F.conv2d(x_last, weight_last, bias, **options))),
    ]


def _inference(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def _operator_graph(size: GemmSize, repeats: int) -> tuple[bytes, dict[str, np.ndarray]]:
    """``size`` alone, ``repeats`` times in a row, and images for it."""
    rng = np.random.default_rng(0)
    shapes, outputs, attributes = _operand_shapes(size)
    values = [rng.standard_normal(shape, np.float32) / np.float32(size.k**0.5) for shape in shapes]
    inputs = {"x": values[0]} if size.kind != "attention" else {"x": values[0], "w0": values[1]}
    weights = [] if size.kind == "attention" else [numpy_helper.from_array(values[1], f"w{i}") for i in range(repeats)]
    operator = "Conv" if size.conv else "MatMul"
    names = ["x", *(f"y{i}" for i in range(repeats))]
    nodes = [helper.make_node(operator, [names[i], f"w{i}"], [names[i + 1]], **attributes) for i in range(repeats)]
    values_in = [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in inputs.items()]
    value_out = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, outputs)
    graph = helper.make_graph(nodes, "alone", values_in, [value_out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString(), inputs


def _operand_shapes(size: GemmSize) -> tuple[list[tuple[int, ...]], tuple[int | None, ...], dict[str, Any]]:
    """Shapes of both operands and the output, and the operator's attributes."""
    if size.conv:
        conv = size.conv
        attributes = {"strides": conv.strides, "pads": conv.pads, "group": conv.groups}
        return [conv.image, conv.weight], (conv.image[0], conv.weight[0], None, None), attributes
    batch = (size.batch,) if size.kind == "attention" else ()
    return [(*batch, size.m, size.k), (*batch, size.k, size.n)], (*batch, size.m, size.n), {}


def _onnxruntime(graph: bytes, inputs: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    binding, name = session.io_binding(), session.get_outputs()[0].name
    for key, value in inputs.items():
        binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    result = onnxruntime.OrtValue.ortvalue_from_numpy(session.run([name], inputs)[0])
    binding.bind_ortvalue_output(name, result)  # written in place, so that no call pays for fresh memory
    return lambda: session.run_with_iobinding(binding)


def _openvino(graph: bytes, inputs: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    import openvino

    core = _openvino_core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    for key, value in inputs.items():
        request.set_tensor(key, openvino.Tensor(value, shared_memory=True))

    def run(held: object = inputs) -> None:  # the tensors borrow the arrays' memory
        request.infer()

    return run


@functools.cache
def _openvino_core() -> Any:
    """Made once: it looks for its plugins every time."""
    import openvino

    return openvino.Core()
