"""Every backend that runs on a CPU computes what the export is, and times the batch that it was given."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastervit_trt.artifacts import file_entry
from fastervit_trt.benchmarks.backends import BACKENDS, get_backend, torch_model
from fastervit_trt.benchmarks.backends.host import HostRunner, ThreadLanes
from fastervit_trt.benchmarks.backends.openvino import QueueLanes
from fastervit_trt.benchmarks.backends.request import graph_artifact
from fastervit_trt.benchmarks.backends.runner import Request, Runner
from fastervit_trt.engines.runtime.completions import completions_for, seconds_between
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import get_float
from fastervit_trt.export.typed_model import TypedModel
from tests.benchmarks.backends.conftest import Digits
from tests.engines.graphs import Graphs

Ask = Callable[..., Request]

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed (extra 'peers')"
)
RUNS = [
    *(("ort-cpu", precision) for precision in ("fp32", "fp16", "bf16")),
    ("torch", "fp32"),
    *(("torch-fused", precision) for precision in ("fp32", "bf16")),
    *(pytest.param("openvino", precision, marks=needs_openvino) for precision in ("fp32", "fp16", "bf16")),
]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests show is true of a CPU; test_torch_cuda.py is for GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@contextmanager
def opened(backend: str, request: Request) -> Iterator[Runner]:
    assert BACKENDS[backend].why_not(request) is None
    with closing(BACKENDS[backend].open(request)) as runner:
        yield runner


def check_timing(runner: Runner, images: np.ndarray) -> None:
    runner.prepare(images)
    for lap in (runner.latency, runner.throughput):
        samples = lap(5)
        assert len(samples) == 5
        assert min(samples) > 0


def test_a_list_of_backends_loads_none_of_them() -> None:
    heavy = {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "pynvml"}
    script = "import sys; from fastervit_trt.benchmarks.backends import BACKENDS; print(*BACKENDS); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names, modules = done.stdout.splitlines()
    assert names == "ort-cpu ort-cuda tensorrt tensorrt-rtx torch torch-compile torch-fused openvino"
    assert not heavy & set(modules.split())
    with pytest.raises(FasterViTError, match="no backend 'ort'; choose from ort-cpu"):
        get_backend("ort")


@pytest.mark.parametrize(("backend", "precision"), RUNS)
def test_logits_are_those_of_pytorch(ask: Ask, digits: Digits, backend: str, precision: str) -> None:
    request = ask(precision)
    with opened(backend, request) as runner:
        error = digits.error(runner.outputs(digits.images)[0])
        assert error <= digits.allowed[precision]
        assert precision == "fp32" or error > digits.allowed["fp32"]  # it did round
        assert runner.device.kind == "cpu"
        assert runner.clock == "host"
        assert 4 in runner.batch
        manifest = request.manifest
        if backend.startswith("torch"):
            assert (runner.artifact.name, runner.artifact.sha256) == ("weights", manifest.weights["sha256"])
        else:
            graph = file_entry(request.folder / "model.onnx")
            artifact = runner.artifact
            assert (artifact.name, artifact.sha256, artifact.bytes) == ("model.onnx", graph["sha256"], graph["bytes"])
        check_timing(runner, digits.images[:4])
        with pytest.raises(FasterViTError, match=r"must be float32 \(4, 3, 224, 224\)"):
            runner.prepare(digits.images[:3])


@pytest.mark.parametrize("backend", ["ort-cpu", "torch", "torch-fused", pytest.param("openvino", marks=needs_openvino)])
def test_several_streams_are_said_and_timed(ask: Ask, digits: Digits, backend: str) -> None:
    with opened(backend, ask("fp32", streams=2)) as runner:
        check_timing(runner, digits.images[:4])
        assert "throughput: 2" in runner.note
        assert digits.error(runner.outputs(digits.images)[0]) <= digits.allowed["fp32"]  # alone again


def test_torch_compile_computes_the_same(ask: Ask, digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small network: tests/benchmarks/studies compiles a FasterViT the same way, which takes half a minute."""
    small = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(2), nn.Linear(56 * 56, 10))
    model = TypedModel(nn.Sequential(small, nn.Flatten(1), nn.Linear(80, 10)), get_float("fp32"))
    monkeypatch.setattr(torch_model, "_model", lambda *arguments: model)
    request = ask("fp32")
    if (reason := BACKENDS["torch-compile"].why_not(request)) is not None:
        pytest.skip(reason)
    with opened("torch-compile", request) as runner:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        with torch.inference_mode():
            expected = model(torch.from_numpy(digits.images)).numpy()
        np.testing.assert_allclose(runner.outputs(digits.images)[0], expected, atol=1e-5 * np.abs(expected).max())
        assert runner.batch == BatchRange(4, 4, 4)
        check_timing(runner, digits.images[:4])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the batch stays; nothing compiles again


def test_a_compiler_that_fails_is_one_line(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: object, **options: object) -> Callable[[object], None]:
        def fail(images: object) -> None:
            raise RuntimeError("no loop for this\nand a page about it")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(FasterViTError) as error:
        BACKENDS["torch-compile"].open(ask("fp32"))
    assert "torch.compile: RuntimeError: no loop for this; measure" in str(error.value)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler" in (BACKENDS["torch-compile"].why_not(ask("fp32")) or "")


def test_lanes_work_side_by_side_until_all_is_done() -> None:
    """A call that comes back only when another lane is in its own: one after the other they would never."""
    lanes, meeting, ran = 3, threading.Barrier(3, timeout=10), Counter[int]()

    def lane(number: int) -> Callable[[np.ndarray], np.ndarray]:
        def call(images: np.ndarray) -> np.ndarray:
            ran[number] += 1
            if ran[number] > 1:  # the first calls are one by one
                meeting.wait()
            return images

        return call

    entered = Counter[str]()
    with closing(
        ThreadLanes([lane(i) for i in range(lanes)], enter=lambda: entered.update([threading.current_thread().name]))
    ) as threads:
        threads.prepare(np.zeros((1, 3, 4, 4), np.float32))
        assert ran == {0: 1, 1: 1, 2: 1}
        total = 4 * lanes
        done = threads.completions(total)
    assert len(done) == total
    assert ran.total() == lanes + total
    assert set(entered.values()) == {2}  # every thread was told, both times
    assert len(entered) == lanes
    assert len(seconds_between(done[: completions_for(2, lanes)], lanes)) == 2


def test_throughput_of_several_streams_is_that_of_the_lanes(ask: Ask) -> None:
    class Lanes:
        count = 2

        def prepare(self, images: np.ndarray) -> None:
            self.images = images

        def completions(self, total: int) -> list[float]:
            return [7.0 * i for i in range(total)]

        def close(self) -> None:
            del self.images

    request, lanes = ask("fp32", streams=2), Lanes()
    runner = HostRunner(
        request, lambda images: images, lanes, artifact=graph_artifact(request), batch=BatchRange(1, 4, 8)
    )
    images = np.zeros((4, 3, 224, 224), np.float32)
    runner.prepare(images)
    assert lanes.images is images
    assert runner.throughput(5) == [7.0] * 5
    assert max(runner.latency(5)) < 1
    runner.close()
    assert not hasattr(lanes, "images")


@needs_openvino
def test_every_stream_of_openvino_runs_the_images(ask: Ask, digits: Digits) -> None:
    with opened("openvino", ask("fp32", streams=2)) as runner:
        assert isinstance(runner, HostRunner)
        assert isinstance(runner._lanes, QueueLanes)
        runner.prepare(digits.images[:4])
        for request in runner._lanes.queue:
            logits = request.get_output_tensor(0).data
            assert np.abs(logits - digits.reference[:4]).max() <= digits.allowed["fp32"]


def test_a_lane_that_fails_is_heard() -> None:
    def call(images: np.ndarray) -> np.ndarray:
        if len(images) > 1:
            raise FasterViTError("out of memory")
        return images

    with closing(ThreadLanes([call, call])) as lanes, pytest.raises(FasterViTError, match="out of memory"):
        lanes.prepare(np.zeros((2, 3, 4, 4), np.float32))


def test_pytorch_gets_its_threads_back(ask: Ask, digits: Digits) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with opened("torch", ask("fp32", threads=1)) as runner:
            assert torch.get_num_threads() == 1
            runner.prepare(digits.images[:4])
        assert torch.get_num_threads() == 2
        with opened("torch", ask("fp32", threads=2, streams=2)) as runner:
            runner.prepare(digits.images[:4])
            runner.throughput(1)
            runner.latency(1)
            assert torch.get_num_threads() == 2  # of the main thread
            info = torch.__config__.parallel_info()
            assert "mkl_get_max_threads() : 2" in info or "mkl_get_max_threads" not in info
    finally:
        torch.set_num_threads(before)


def test_fused_is_the_form_that_ships(ask: Ask, digits: Digits) -> None:
    class Seen(TorchDispatchMode):
        operators: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operators.add(function.name())
            return function(*args, **(kwargs or {}))

    for backend, fused in (("torch", False), ("torch-fused", True)):
        Seen.operators.clear()
        with opened(backend, ask("fp32")) as runner, Seen():
            runner.outputs(digits.images)[0]
        assert ("fastervit::window_attention" in Seen.operators) == fused


def test_notes_say_what_a_speed_is_worth(ask: Ask) -> None:
    with opened("ort-cpu", ask("bf16")) as runner:
        assert runner.emulated
        assert "speed means nothing" in runner.note
    with opened("ort-cpu", ask("fp16")) as runner:
        assert not runner.emulated
        assert ("compute fp16 in fp32" in runner.note) == (platform.machine() in ("x86_64", "AMD64"))
    with opened("ort-cpu", ask("fp32")) as runner:
        assert runner.note == ""
    with opened("torch-fused", ask("fp32")) as runner:
        assert "operators as PyTorch code" in runner.note


@needs_openvino
def test_openvino_computes_in_the_type_of_the_file(ask: Ask) -> None:
    """And says so: by itself it would take bfloat16 for float32 where the CPU has it."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    types = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
    for precision, kind in types.items():
        with opened("openvino", ask(precision)) as runner:
            if precision.upper() in capabilities:
                (products,) = (part for part in runner.note.split("; ") if part.startswith("products"))
                assert products.endswith(f" in {kind}")
                assert "," not in products  # all of them
            else:
                assert "computed in float32" in runner.note
            assert not runner.emulated
            assert "fused operators written out" in runner.note


@needs_openvino
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_openvino_computes_8_bit_graphs_as_they_are(
    ask: Ask, digits: Digits, graphs: Graphs, tmp_path: Path, precision: str
) -> None:
    """Nearer to float32 than twice ONNX Runtime on the same graph; a dynamic batch was off by the largest logit."""
    request = eight_bits(ask("fp16"), graphs(precision), tmp_path, precision)
    session = OnnxCpuSession(request.folder / "model.onnx", threads=1)
    of_onnxruntime = np.concatenate([session(digits.images[i : i + 4])[0] for i in (0, 4, 8)])
    with opened("openvino", request) as runner:
        error = digits.error(runner.outputs(digits.images)[0])
        assert error <= 2 * digits.error(of_onnxruntime)
        assert error < np.abs(digits.reference).max() / 10
        assert runner.emulated == (precision == "fp8")
        assert ("in i8" in runner.note) == (precision == "int8")


def eight_bits(request: Request, graph: Path, folder: Path, precision: str) -> Request:
    """The export of ``request`` with another graph in it."""
    file = folder / "model.onnx"
    file.write_bytes(graph.read_bytes())
    manifest = request.manifest
    changed = replace(
        manifest,
        precision=precision,
        files={**manifest.files, file.name: file_entry(file)},
        graph={**manifest.graph, "quantisation": {"type": precision, "base": "fp16", "form": None}},
    )
    return replace(request, folder=folder, manifest=changed)


def test_what_a_backend_cannot_run_has_a_reason(ask: Ask, graphs: Graphs, tmp_path: Path) -> None:
    int8 = eight_bits(ask("fp16"), graphs("int8"), tmp_path, "int8")
    for backend in ("torch", "torch-compile", "torch-fused"):
        assert "floats only" in (BACKENDS[backend].why_not(int8) or "")
        with pytest.raises(FasterViTError, match="floats only"):
            BACKENDS[backend].open(int8)
    assert BACKENDS["ort-cpu"].why_not(int8) is None
    if importlib.util.find_spec("openvino") is not None:
        quantisation = {**int8.manifest.graph["quantisation"], "form": "ONNX Runtime's CPU provider"}
        for_cpu = replace(int8.manifest, graph={**int8.manifest.graph, "quantisation": quantisation})
        assert "without --target cpu" in (BACKENDS["openvino"].why_not(replace(int8, manifest=for_cpu)) or "")
    gone = replace(ask("fp32").manifest, weights={"kind": "checkpoint", "path": str(tmp_path / "gone.pth")})
    assert "gone.pth' is gone" in (BACKENDS["torch"].why_not(replace(ask("fp32"), manifest=gone)) or "")


@pytest.mark.parametrize("backend", ["ort-cpu", "torch", "torch-fused", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"streams": 3}, "3 streams share 2 CPU threads"),
        ({"cold_cache": True}, "--cold-cache is about GPUs"),
        ({"transfers": True}, "--transfers is about GPUs"),
        ({"streams": 0}, "must be at least 1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(ask: Ask, backend: str, options: dict[str, int], reason: str) -> None:
    request = ask("fp32", **options)
    assert reason in (BACKENDS[backend].why_not(request) or "")
    with pytest.raises(FasterViTError, match=reason):
        BACKENDS[backend].open(request)


def test_graphs_serve_their_batches_and_models_any(ask: Ask, digits: Digits) -> None:
    for backend in ("ort-cpu", *(["openvino"] if importlib.util.find_spec("openvino") else [])):
        with pytest.raises(FasterViTError, match=r"serves batch 1:4:8, not 9; pass another --batch"):
            BACKENDS[backend].open(ask("fp32", batch=9))
    with opened("torch", ask("fp32", batch=9)) as runner:
        runner.prepare(digits.images[:9])
        assert len(runner.latency(1)) == 1


def test_weights_are_those_of_the_export(ask: Ask) -> None:
    request = ask("fp32")
    changed = replace(request.manifest, weights={**request.manifest.weights, "sha256": "0" * 64})
    with pytest.raises(FasterViTError, match="has changed since it was exported"):
        BACKENDS["torch"].open(replace(request, manifest=changed))
    random = replace(request.manifest, weights={"kind": "random", "seed": 3})
    with opened("torch", replace(request, manifest=random)) as runner:
        assert runner.artifact.sha256 == "random, seed 3"


def test_what_is_no_classifier_is_timed_and_run_all_the_same(ask: Ask, digits: Digits) -> None:
    request = ask("fp32")
    outputs = [{"name": "stage3", "dtype": "float32", "shape": ["batch", 64, 7, 7]}]
    with opened("ort-cpu", replace(request, manifest=replace(request.manifest, outputs=outputs))) as runner:
        check_timing(runner, digits.images[:4])
        (found,) = runner.outputs(digits.images)
        assert digits.error(found) <= digits.allowed["fp32"]
