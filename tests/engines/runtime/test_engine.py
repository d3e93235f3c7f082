"""``Engine.load`` as a user meets it: backends and their reasons, images of all kinds, one line when it cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from fastervit_trt.artifacts import file_entry
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.runtime import Engine, backends, ort_session
from fastervit_trt.engines.runtime import engine as engine_module
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange, run_padded
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from tests.engines.runtime.simulated_tensorrt import ENGINE_RECORD, PLAN, Shapes, SimTensorRt
from tests.engines.runtime.simulator import SimDevice

SHAPE = (3, 224, 224)


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with one TensorRT engine for 8.9, and one for 8.7."""
    folder = tmp_path_factory.mktemp("engines") / "export"
    shutil.copytree(exports / "fp32", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for capability in ("8.7", "8.9"):
        name = f"model.trt-sm{capability.replace('.', '')}.engine"
        (folder / name).write_bytes(PLAN)
        manifest["files"][name] = file_entry(folder / name)
        manifest["engines"].append({**ENGINE_RECORD, "file": name, "compute_capability": capability})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with a simulated GPU, on which engines compute with the graph they were made of."""
    device = SimDevice(5)
    graph = OnnxCpuSession(folder / "model.onnx", threads=1)
    trt = SimTensorRt(device, Shapes(SHAPE, {"logits": (10,)}, profiles=((1, 2, 3),)), compute=graph)

    def detect(runtime: str, ordinal: int) -> Machine:
        return Machine(runtime, "11.4.0.106", device.name, device.capability)

    monkeypatch.setattr(backends, "import_runtime", lambda name: trt)
    monkeypatch.setattr(backends, "open_device", lambda ordinal: device)
    monkeypatch.setattr(backends, "_why_no_driver", lambda: None)
    monkeypatch.setattr(backends, "Machine", SimpleNamespace(detect=detect))
    return SimpleNamespace(device=device, trt=trt, graph=graph)


def test_importing_needs_neither_cuda_nor_tensorrt_nor_pytorch() -> None:
    absent = ("torch", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "onnxruntime")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); from fastervit_trt.engines.runtime import Engine"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cpu_backend_is_onnx_runtime_on_the_very_file(exports: Path, precision: str) -> None:
    session = OnnxCpuSession(exports / precision / "model.onnx", threads=1)
    with Engine.load(exports / precision, backend="ort-cpu", threads=1) as engine:
        assert engine.backend == "ort-cpu"
        assert engine.outputs == ("logits",)
        assert engine.batch == BatchRange(1, 4, 8)
        assert engine.emulated == (precision == "bf16")
        assert engine.description.startswith(f"ONNX Runtime {onnxruntime.__version__} on the CPU, 1 thread")
        for size in (1, 8, 11):
            images = images_of(size, size)
            (logits,) = engine(images)
            assert np.array_equal(logits, run_padded(session, engine.batch, images)[0])
        sizes = (2, 9, 0, 1)
        many = list(engine.run_many(images_of(size, size) for size in sizes))
        assert [logits.shape for (logits,) in many] == [(size, 10) for size in sizes]
        assert np.array_equal(many[0][0], session(images_of(2, 2))[0])


def test_images_of_another_kind_are_refused_in_one_line(exports: Path) -> None:
    engine = Engine.load(exports / "fp32", backend="ort-cpu", threads=1)
    expected = r"images must be float32 \(B, 3, 224, 224\), not"
    for wrong, found in (
        (images_of(2).astype(np.float64), r"float64 \(2, 3, 224, 224\)"),
        (images_of(1)[0], r"float32 \(3, 224, 224\)"),
        (np.zeros((1, 3, 192, 224), np.float32), r"float32 \(1, 3, 192, 224\)"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.bfloat16).float().half(), r"float16 \(1, 3, 224, 224\)"),
    ):
        with pytest.raises(FasterViTError, match=f"{expected} {found}"):
            engine(wrong)
    with pytest.raises(FasterViTError, match="a NumPy array or a PyTorch tensor, not list"):
        engine([[1.0]])
    tensor = torch.from_numpy(images_of(2)).requires_grad_()
    assert np.array_equal(engine(tensor)[0], engine(images_of(2))[0])
    engine.close()
    engine.close()
    with pytest.raises(FasterViTError, match="the engine is closed; load it again"):
        engine(images_of(1))


def test_auto_on_this_machine_takes_what_runs_here(exports: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("for a machine without a GPU")
    engine = Engine.load(exports / "fp16")
    assert engine.backend == "ort-cpu"
    assert [reason.split(":")[0] for reason in engine.passed_over] == ["tensorrt", "rtx", "ort-cuda"]
    assert "TensorRT-RTX needs a GPU, and this machine has no NVIDIA driver" in engine.passed_over[1]
    assert "warning" not in capfd.readouterr().err  # nothing that anybody should be told


def test_auto_says_what_a_machine_with_a_gpu_is_missing(
    exports: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends, "_why_no_driver", lambda: None)
    monkeypatch.setattr(backends, "why_no_cuda_provider", lambda: "it is not there")
    monkeypatch.setattr(backends, "import_runtime", lambda runtime: None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert Engine.load(exports / "fp16", threads=1).backend == "ort-cpu"
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert "rtx is passed over: PyCUDA is not installed" in warning
    assert warning.endswith("pip install 'fastervit-trt[gpu]'")


def test_what_cannot_be_had_is_one_line_that_says_what_to_do(exports: Path, tmp_path: Path) -> None:
    build = r"make one with `fastervit-engine build \S+ --runtime tensorrt`"
    for arguments, message in (
        ({"backend": "tensorrt"}, f"has no TensorRT engine; {build}"),
        ({"backend": "cuda"}, "no backend 'cuda'; there are auto, tensorrt, rtx, ort-cuda, ort-cpu"),
        ({"streams": 0}, "at least 1 stream and 2 slots"),
        ({"slots": 1}, "at least 1 stream and 2 slots"),
    ):
        with pytest.raises(FasterViTError, match=message):
            Engine.load(exports / "fp32", **arguments)  # type: ignore[arg-type]
    with pytest.raises(FasterViTError, match="is no export"):
        Engine.load(tmp_path / "nothing")
    with pytest.raises(FasterViTError, match=r"model\.onnx' is no engine the manifest lists"):
        Engine.load(exports / "fp32" / "model.onnx")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(FasterViTError, match=r"is not the one for CUDA: .*pip install onnxruntime-gpu"):
            Engine.load(exports / "fp32", backend="ort-cuda")


def test_onnx_runtime_reads_and_writes_pytorchs_memory(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU's memory here; test_on_gpu.py does it on a GPU's."""
    path, empty = exports / "fp32" / "model.onnx", torch.empty
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(ort_session, "why_no_cuda_provider", lambda: None)
    monkeypatch.setattr(backends, "why_no_cuda_provider", lambda: None)
    monkeypatch.setattr(backends, "_why_no_driver", lambda: None)
    monkeypatch.setattr(ort_session, "_cuda_session", lambda path, ordinal: plain)
    monkeypatch.setattr(ort_session, "_DEVICE", "cpu")
    bridge = SimpleNamespace(check=lambda images: None, synchronise=lambda: None, empty=empty)
    monkeypatch.setattr(ort_session, "TorchBridge", lambda ordinal: bridge)
    images = images_of(11)
    with Engine.load(exports / "fp32") as engine:
        assert engine.backend == "ort-cuda"
        (from_host,) = engine(images)
        monkeypatch.setattr(engine_module, "is_on_gpu", lambda images: True)
        (in_place,) = engine(torch.from_numpy(images))
    assert isinstance(in_place, torch.Tensor)
    assert np.array_equal(in_place.numpy(), from_host)
    expected = run_padded(lambda x: plain.run(None, {"images": x}), BatchRange(1, 4, 8), images)[0]
    assert np.array_equal(from_host, expected)


def test_an_engine_for_this_gpu_is_found_admitted_and_run(folder: Path, gpu: SimpleNamespace) -> None:
    with Engine.load(folder, streams=2, trust=True) as engine:
        assert engine.backend == "tensorrt"
        assert engine.batch == BatchRange(1, 2, 3)
        assert engine.passed_over == ()
        assert engine.description == (
            "TensorRT 11.4.0.106, model.trt-sm89.engine on Simulated GPU, profile 0 (batch 1:2:3), 2 streams, "
            "CUDA graphs"
        )
        for size in (1, 5):
            images = images_of(size, size)
            expected = run_padded(gpu.graph, engine.batch, images)[0]
            assert np.array_equal(engine(images)[0], expected)
    assert gpu.device.alive == 0


def test_one_engine_of_a_folder_can_be_meant(folder: Path, gpu: SimpleNamespace) -> None:
    with Engine.load(folder / "model.trt-sm89.engine", trust=True) as engine:
        assert "model.trt-sm89.engine" in engine.description
    with pytest.raises(
        FasterViTError, match=r"'\S+sm87\.engine' is for compute capability 8\.7, Simulated GPU has 8\.9"
    ):
        Engine.load(folder / "model.trt-sm87.engine", trust=True)
    with pytest.raises(FasterViTError, match="is an engine for the backend tensorrt, not ort-cpu"):
        Engine.load(folder / "model.trt-sm89.engine", backend="ort-cpu")


def test_engines_for_other_gpus_are_passed_over_silently(
    folder: Path, gpu: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    gpu.device.capability = "12.0"
    with pytest.raises(FasterViTError, match=r"are for compute capability 8\.7, 8\.9, Simulated GPU has 12\.0; make o"):
        Engine.load(folder, backend="tensorrt", trust=True)
    engine = Engine.load(folder, threads=1, trust=True)
    assert engine.backend == "ort-cpu"
    assert not gpu.trt._engines
    assert "tensorrt is passed over" not in capfd.readouterr().err


def test_an_engine_that_nobody_signed_is_never_read_and_said_to_be_passed_over(
    folder: Path, gpu: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FasterViTError, match=r"model\.trt-sm89\.engine', which runs code .* is not signed"):
        Engine.load(folder, backend="tensorrt")
    assert Engine.load(folder, threads=1).backend == "ort-cpu"
    warning = capfd.readouterr().err
    assert "warning: tensorrt is passed over: engine" in warning
    assert "is not signed" in warning
    assert not gpu.trt._engines


def test_a_changed_engine_is_never_read(folder: Path, gpu: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "export")
    (tmp_path / "export" / "model.trt-sm89.engine").write_bytes(PLAN[::-1])
    with pytest.raises(FasterViTError, match="is not the file that the manifest describes"):
        Engine.load(tmp_path / "export", backend="tensorrt", trust=True)
    assert not gpu.trt._engines
