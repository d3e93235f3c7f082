"""Engines on a real GPU: results are ONNX Runtime's, in whatever way the engine is run. ``pytest -m gpu``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastervit_trt.artifacts import Manifest
from fastervit_trt.engines.api import RuntimeName, unavailable_reason
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.engines.runtime.pycuda_device import open_device
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.onnx_cpu import OnnxCpuSession

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
BACKENDS: dict[str, RuntimeName] = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
SIZES = (1, 4, 8, 3, 8, 8, 13, 8, 4, 4, 1, 8)


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 224, 224)).astype(np.float32)


@pytest.fixture(scope="module", params=list(BACKENDS))
def built(request: pytest.FixtureRequest, exports: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The fp16 export with an engine for this GPU, and the backend to run it with."""
    backend: str = request.param
    reason = unavailable_reason(BACKENDS[backend])
    if reason is not None:
        pytest.skip(reason)
    try:
        capability = open_device(0).capability
    except FasterViTError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(backend) / "fp16"
    shutil.copytree(exports / "fp16", folder)
    build_engine(folder, backend, capability)
    return folder, backend


def build_engine(folder: Path, backend: str, capability: str) -> None:
    """``fastervit-engine build`` on this GPU."""
    from fastervit_trt.cli import engine

    arguments = ["build", str(folder), "--runtime", backend]
    with pytest.raises(SystemExit) as stop:
        engine.main([*arguments, "--compute-capability", capability] if backend == "rtx" else arguments)
    assert stop.value.code == 0


@pytest.fixture
def engine(built: tuple[Path, str]) -> Iterator[Engine]:
    folder, backend = built
    with Engine.load(folder, backend=backend, trust=True, cuda_graph=False) as engine:
        yield engine


def alike(found: np.ndarray, expected: np.ndarray, folder: Path, backend: str) -> bool:
    """Bit by bit; TensorRT-RTX changes kernels while it runs, there results may differ as far as precisions may."""
    if backend == "rtx":
        return bool(np.abs(found - expected).max() <= Manifest.read(folder).verification["budget"])
    return np.array_equal(found, expected)


def test_results_are_onnx_runtimes(built: tuple[Path, str], engine: Engine) -> None:
    folder, _ = built
    session = OnnxCpuSession(folder / "model.onnx")
    budget = Manifest.read(folder).verification["budget"]
    for size in (1, 4, 8):
        images = images_of(size, size)
        assert np.abs(engine(images)[0] - session(images)[0]).max() <= budget
    assert engine(images_of(13))[0].shape == (13, 10)


@pytest.mark.parametrize(("streams", "slots", "cuda_graph"), [(1, 2, False), (1, 3, True), (3, 2, True)])
def test_many_at_once_with_graphs_give_what_one_by_one_gives(
    built: tuple[Path, str], engine: Engine, streams: int, slots: int, cuda_graph: bool
) -> None:
    folder, backend = built
    batches = [images_of(size, seed) for seed, size in enumerate(SIZES * 4)]
    alone = [engine(images)[0] for images in batches]
    with Engine.load(folder, backend=backend, trust=True, streams=streams, slots=slots, cuda_graph=cuda_graph) as many:
        together = [logits for (logits,) in many.run_many(iter(batches))]
        again = [logits for (logits,) in many.run_many(iter(batches))]
    for one, two, three in zip(alone, together, again, strict=True):
        assert alike(two, one, folder, backend)
        assert alike(three, one, folder, backend)


def test_cuda_tensors_go_in_and_come_out_in_order(built: tuple[Path, str], engine: Engine) -> None:
    folder, backend = built
    for cuda_graph in (False, True):
        with Engine.load(folder, backend=backend, trust=True, cuda_graph=cuda_graph) as other:
            for _ in range(4):
                for size in (8, 3, 11):
                    images = torch.from_numpy(images_of(size, size)).cuda()
                    late = torch.full_like(images, torch.nan)
                    torch.cuda._sleep(20_000_000)  # what makes the images is not done when the engine is called
                    late.copy_(images)
                    (logits,) = other(late)
                    late.fill_(torch.nan)
                    assert logits.is_cuda
                    assert alike(logits.cpu().numpy(), engine(images_of(size, size))[0], folder, backend)


def test_the_primary_context_is_pytorchs_and_stays_usable(built: tuple[Path, str]) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")

    before = torch.ones(4, device="cuda")
    folder, backend = built
    engine = Engine.load(folder, backend=backend, trust=True)
    _, pytorchs = driver.cuCtxGetCurrent()
    with open_device(0).active():
        _, ours = driver.cuCtxGetCurrent()
        assert int(ours) == int(pytorchs) != 0
    engine(images_of(2))
    assert float((before + 1).sum()) == 8.0
    engine.close()
    assert float((before + torch.ones(4, device="cuda")).sum()) == 8.0


def test_memory_is_given_back(built: tuple[Path, str]) -> None:
    folder, backend = built
    images = images_of(8)
    free: list[int] = []
    for _ in range(4):
        with Engine.load(folder, backend=backend, trust=True) as engine:
            for _ in range(6):
                engine(images)
        free.append(torch.cuda.mem_get_info()[0])
    assert free[-1] >= free[1] - (16 << 20)  # the first load also brings libraries that stay


@pytest.mark.parametrize(("streams", "cuda_graph"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("transfers", [False, True])
def test_what_is_timed_is_what_the_engine_computes(
    built: tuple[Path, str], engine: Engine, streams: int, cuda_graph: bool, transfers: bool
) -> None:
    folder, backend = built
    images = images_of(8)
    with Engine.load(folder, backend=backend, trust=True, streams=streams, cuda_graph=cuda_graph) as other:
        timed = other.timed(images, transfers=transfers)
        times = timed.latency(20) + timed.throughput(20)
        assert len(times) == 40
        assert all(seconds > 0 for seconds in times)
        for (logits,) in timed.results():
            assert alike(logits, engine(images)[0], folder, backend)
        timed.close()
        if streams == 1:
            cold = other.timed(images, cold_cache=True)
            assert all(seconds > 0 for seconds in cold.latency(5) + cold.throughput(5))


def test_onnx_runtimes_cuda_provider_is_behind_the_same_interface(exports: Path) -> None:
    try:
        engine = Engine.load(exports / "fp16", backend="ort-cuda")
    except FasterViTError as error:
        pytest.skip(str(error))
    images = images_of(11)
    budget = Manifest.read(exports / "fp16").verification["budget"]
    (logits,) = engine(images)
    assert np.abs(logits - Engine.load(exports / "fp16", backend="ort-cpu")(images)[0]).max() <= budget
    (on_gpu,) = engine(torch.from_numpy(images).cuda())
    assert np.array_equal(on_gpu.cpu().numpy(), logits)
    for transfers in (False, True):
        timed = engine.timed(images[:8], transfers=transfers)
        assert all(seconds > 0 for seconds in timed.latency(5) + timed.throughput(5))
        assert np.abs(timed.results()[0][0] - logits[:8]).max() <= budget
