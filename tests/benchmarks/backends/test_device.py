"""Backends of a GPU: why they cannot run here, which engine is chosen, and that what is timed is what is judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fastervit_trt.artifacts import Manifest, file_entry
from fastervit_trt.benchmarks.backends import device as device_backends
from fastervit_trt.benchmarks.backends.device import (
    open_ort_cuda,
    open_rtx,
    open_tensorrt,
    why_not_ort_cuda,
    why_not_rtx,
    why_not_tensorrt,
)
from fastervit_trt.benchmarks.backends.runner import Artifact, DeviceFacts, Request, Runner
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.runtime import backends, ort_session
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from tests.engines.runtime.simulated_tensorrt import ENGINE_RECORD, PLAN, Shapes, SimTensorRt
from tests.engines.runtime.simulator import COPY, SimDevice

SHAPE = (3, 224, 224)
PROFILES = ((1, 1, 3), (1, 2, 3))
RECORD = {**ENGINE_RECORD, "gpu": "Simulated GPU", "profiles": PROFILES}


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with an engine of TensorRT for 8.9 and one for 8.7, and one of TensorRT-RTX for 8.9."""
    folder = tmp_path_factory.mktemp("engines") / "export"
    shutil.copytree(exports / "fp32", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for runtime, capability in (("tensorrt", "8.7"), ("tensorrt", "8.9"), ("tensorrt-rtx", "8.9")):
        name = f"model.{runtime}-{capability}.engine"
        (folder / name).write_bytes(PLAN)
        manifest["files"][name] = file_entry(folder / name)
        record = {**RECORD, "runtime": runtime, "file": name, "compute_capability": capability}
        manifest["engines"].append(record)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine with a simulated GPU, on which engines compute with the graph they were made of."""
    device = SimDevice(5)
    graph = OnnxCpuSession(folder / "model.onnx", threads=1)
    trt = SimTensorRt(device, Shapes(SHAPE, {"logits": (10,)}, profiles=PROFILES), compute=graph)
    here = SimpleNamespace(device=device, graph=graph, name=device.name, capability=device.capability)

    def detect(runtime: str, ordinal: int = 0) -> Machine:
        return Machine(runtime, "11.4.0.106", here.name, here.capability)

    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path))
    monkeypatch.setattr(backends, "import_runtime", lambda name: trt)
    monkeypatch.setattr(backends, "open_device", lambda ordinal: device)
    monkeypatch.setattr(backends, "_why_no_driver", lambda: None)
    for module in (backends, device_backends):
        monkeypatch.setattr(module, "Machine", SimpleNamespace(detect=detect))
    monkeypatch.setattr(device_backends, "unavailable_reason", lambda runtime: None)
    monkeypatch.setattr(device_backends, "_why_no_pycuda", lambda who: None)
    return here


def request_of(folder: Path, batch: int = 2, **how: Any) -> Request:
    return Request(folder, Manifest.read(folder), batch=batch, trust=True, **how)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_the_very_engine_is_judged_and_timed(folder: Path, gpu: SimpleNamespace, runtime: str) -> None:
    why_not, open_it = (why_not_tensorrt, open_tensorrt) if runtime == "tensorrt" else (why_not_rtx, open_rtx)
    request = request_of(folder, streams=2)
    assert why_not(request) is None
    runner: Runner = open_it(request)
    file = f"model.{runtime}-8.9.engine"
    assert runner.artifact == Artifact(file, file_entry(folder / file)["sha256"], len(PLAN))
    assert runner.device == DeviceFacts("gpu", "Simulated GPU", 0, "8.9")
    assert (runner.batch, runner.clock, runner.emulated) == (BatchRange(1, 2, 3), "CUDA events", False)
    images = images_of(5)
    np.testing.assert_allclose(runner.outputs(images)[0][:2], gpu.graph(images[:2])[0], rtol=1e-5, atol=1e-5)
    assert runner.outputs(images)[0].shape == (5, 10)

    runner.prepare(images[:2])
    execution = 2 * gpu.device.seconds_per_image
    assert runner.latency(3) == [execution] * 3
    assert np.mean(runner.throughput(6)) == pytest.approx(execution, rel=0.2)
    for (logits,) in runner._timed.results():  # type: ignore[attr-defined]
        np.testing.assert_allclose(logits, gpu.graph(images[:2])[0], rtol=1e-5, atol=1e-5)
    runner.prepare(images[2:4])
    for (logits,) in runner._timed.results():  # type: ignore[attr-defined]
        np.testing.assert_allclose(logits, gpu.graph(images[2:4])[0], rtol=1e-5, atol=1e-5)
    runner.close()
    assert gpu.device.alive == 0


def test_what_was_asked_for_is_what_is_timed(folder: Path, gpu: SimpleNamespace) -> None:
    execution = 2 * gpu.device.seconds_per_image
    for how, seconds in (
        ({"transfers": True}, execution + 2 * COPY),
        ({"cold_cache": True}, 2 * execution),
        ({"cuda_graph": False}, execution),
    ):
        runner = open_tensorrt(request_of(folder, **how))
        with pytest.raises(FasterViTError, match="call prepare first"):
            runner.latency(1)
        runner.prepare(images_of(2))
        assert runner.latency(2) == [seconds] * 2
        assert bool(gpu.device.graphs) is how.get("cuda_graph", True)
        gpu.device.graphs.clear()
        assert ("without CUDA graphs" in runner.note) is ("cuda_graph" in how)
        runner.close()


def test_the_profile_tuned_for_the_batch_is_taken(folder: Path, gpu: SimpleNamespace) -> None:
    for batch, profile in ((1, 0), (2, 1), (3, 0)):
        runner = open_tensorrt(request_of(folder, batch))
        assert f"profile {profile} " in runner._engine.description
        runner.close()


def test_an_engine_tuned_elsewhere_says_so(folder: Path, gpu: SimpleNamespace) -> None:
    gpu.name = "Another GPU"
    runner = open_tensorrt(request_of(folder))
    runner.prepare(images_of(2))
    runner.throughput(1)
    assert runner.note.startswith("tuned on Simulated GPU, not on this GPU")
    runner.close()
    assert open_rtx(request_of(folder)).note == ""  # whose engines are no model's


def test_what_stands_against_it_is_known_before_anything_is_loaded(
    folder: Path, exports: Path, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "open_device", None)  # nothing may be opened
    monkeypatch.setattr(backends, "import_runtime", None)

    def refused(request: Request, message: str) -> None:
        reason = why_not_tensorrt(request)
        assert reason is not None
        assert message in reason
        with pytest.raises(FasterViTError) as error:
            open_tensorrt(request)
        assert str(error.value) == reason

    build = f"`fastervit-engine build {folder} --runtime tensorrt"
    refused(request_of(exports / "fp32"), "fp32' has no TensorRT engine; make one with `fastervit-engine build")
    refused(request_of(folder, 7), f"take batches of 1–3, not 7; make one with {build} --batch 1:7:7`")
    refused(request_of(folder, cold_cache=True, streams=2), "with one stream only")
    gpu.capability = "9.0"
    refused(request_of(folder), f"for compute capability 8.7, 8.9, Simulated GPU has 9.0; make one with {build}`")
    gpu.name = gpu.capability = None
    refused(request_of(folder, device=3), "CUDA finds no GPU 3 here")
    monkeypatch.setattr(device_backends, "_why_no_pycuda", lambda who: f"{who} needs PyCUDA")
    refused(request_of(folder), "TensorRT needs PyCUDA")
    monkeypatch.setattr(device_backends, "unavailable_reason", lambda runtime: f"no {runtime}")
    refused(request_of(folder), "no tensorrt")
    monkeypatch.setattr(backends, "_why_no_driver", lambda: "this machine has no NVIDIA driver")
    refused(request_of(folder), "TensorRT needs a GPU, and this machine has no NVIDIA driver")
    assert why_not_rtx(request_of(folder)) == "TensorRT-RTX needs a GPU, and this machine has no NVIDIA driver"
    assert why_not_ort_cuda(request_of(folder)) == (
        "ONNX Runtime's CUDA provider needs a GPU, and this machine has no NVIDIA driver"
    )


def test_onnx_runtime_is_timed_by_the_host_on_memory_of_its_own(
    exports: Path, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the CPU's memory here; test_on_gpu.py does it on a GPU's."""
    folder = tmp_path / "export"
    shutil.copytree(exports / "fp32", folder)
    plain = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for module in (ort_session, backends):
        monkeypatch.setattr(module, "why_no_cuda_provider", lambda: None)
    monkeypatch.setattr(ort_session, "_cuda_session", lambda path, ordinal: plain)
    monkeypatch.setattr(ort_session, "_DEVICE", "cpu")
    request = request_of(folder)
    runner: Runner = open_ort_cuda(request)
    assert runner.artifact.sha256 == file_entry(folder / "model.onnx")["sha256"]
    assert (runner.artifact.name, runner.clock) == ("model.onnx", "host")
    assert runner.device == DeviceFacts("gpu", "Simulated GPU", 0, "8.9")
    images = images_of(2)
    np.testing.assert_allclose(runner.outputs(images)[0], gpu.graph(images)[0], rtol=1e-5, atol=1e-5)
    runner.prepare(images)
    assert len(runner.latency(2) + runner.throughput(2)) == 4
    assert "host's clock" in runner.note
    runner.close()

    assert "serves batch 1:4:8, not 9; pass another --batch" in str(why_not_ort_cuda(request_of(folder, 9)))
    monkeypatch.setattr(device_backends, "_why_no_pycuda", lambda who: f"{who} needs PyCUDA")
    assert why_not_ort_cuda(replace(request, cold_cache=True)) == "emptying the GPU's cache needs PyCUDA"
    monkeypatch.setattr(backends, "why_no_cuda_provider", lambda: "ONNX Runtime is not the one for CUDA")
    with pytest.raises(FasterViTError, match="is not the one for CUDA"):
        open_ort_cuda(request)
    monkeypatch.setattr(backends, "why_no_cuda_provider", lambda: None)
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(FasterViTError, match="is not the file the manifest describes"):
        open_ort_cuda(request)
