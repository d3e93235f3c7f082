"""What happens to an engine before it runs: plugins, weights, tensors, profiles; and TensorRT-RTX's own ways."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastervit_trt.engines.runtime import engine as engine_module
from fastervit_trt.engines.runtime.torch_bridge import TorchBridge
from fastervit_trt.errors import FasterViTError
from tests.engines.runtime.conftest import Simulate, Simulated, images_of, same
from tests.engines.runtime.simulated_tensorrt import CudaGraphStrategy, DataType, Shapes, compute
from tests.engines.runtime.simulator import Op, SimDevice, SimStream


def test_weights_left_out_are_put_in_before_anything_executes(simulate: Simulate) -> None:
    how = {"missing": frozenset({"stem"}), "weights_in_file": frozenset({"stem", "head"})}
    simulated = simulate(source={"weights": Path("folder/model.onnx")}, **how)
    assert simulated.trt._refitted == [str(Path("folder/model.onnx"))]
    assert same(simulated.engine(images_of(3)), compute(images_of(3)))


def test_weights_that_the_file_lacks_are_named(simulate: Simulate) -> None:
    with pytest.raises(FasterViTError, match=r"'m\.onnx' lacks 1 weights of 'model\.engine', 'stem' for one"):
        simulate(source={"weights": Path("m.onnx")}, missing=frozenset({"stem"}))


def test_plugins_are_loaded_before_the_engine_is_read(simulate: Simulate) -> None:
    simulated = simulate(source={"plugins": Path("/lib/plugins.so")}, needs_plugin=True)
    assert simulated.trt._plugins == [str(Path("/lib/plugins.so"))]
    with pytest.raises(FasterViTError, match=r"cannot read engine 'model\.engine': creator of WindowAttention not f"):
        simulate(needs_plugin=True)


@pytest.mark.parametrize("host_code", [False, True])
def test_host_code_is_allowed_only_where_asked(simulate: Simulate, host_code: bool) -> None:
    assert simulate(source={"host_code": host_code}).trt._host_code is host_code


def test_bytes_that_are_no_engine_are_refused_with_tensorrts_reason(simulate: Simulate) -> None:
    with pytest.raises(FasterViTError, match=r"11\.4\.0\.106 cannot read engine 'x': magic tag does not match"):
        simulate(source={"content": b"rubbish", "label": "x"})


def test_engines_of_other_tensors_are_refused(simulate: Simulate) -> None:
    with pytest.raises(FasterViTError, match=r"not the engine of its export.*images \[-1, 3, 4, 6\]"):
        simulate(dtype=DataType.HALF)
    with pytest.raises(FasterViTError, match="not the engine of its export"):
        simulate(shapes=Shapes(image=(3, -1, 6)))
    with pytest.raises(FasterViTError, match="has no profile 1; it has 1"):
        simulate(profile=1)


def test_rtx_makes_its_graphs_itself(simulate: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path))
    for cuda_graph in (True, False):
        simulated = simulate(runtime="tensorrt-rtx", cuda_graph=cuda_graph, streams=2)
        for i in range(8):
            assert same(simulated.engine(images_of(4, i)), compute(images_of(4, i)))
        (engine,) = simulated.trt._engines
        strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if cuda_graph else CudaGraphStrategy.DISABLED
        assert engine._config is not None and engine._config.cuda_graph_strategy is strategy
        assert not simulated.device.graphs
        assert len(engine._contexts) == 2  # one per stream


def test_what_rtx_compiled_is_kept_for_the_next_load(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path))

    def found(simulated: Simulated) -> bytes:
        config = simulated.trt._engines[0]._config
        assert config is not None
        return config._cache._content

    first = simulate(runtime="tensorrt-rtx")
    assert found(first) == b""
    first.engine(images_of(1))
    first.engine.close()
    (file,) = (tmp_path / "rtx-runtime").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert found(simulate(runtime="tensorrt-rtx")) == b"compiled"

    file.parent.chmod(0o777)  # machine code that anybody could have put there
    assert found(simulate(runtime="tensorrt-rtx")) == b""
    assert "is not read from there" in capfd.readouterr().err


def test_a_forgotten_engine_gives_everything_back(simulate: Simulate) -> None:
    simulated = simulate(1)
    simulated.engine(images_of(4))
    forgotten, device = weakref.ref(simulated.engine), simulated.device
    object.__setattr__(simulated, "engine", simulate(2).engine)
    gc.collect()
    assert forgotten() is None
    assert device.alive == 0


class _SimBridge(TorchBridge):
    """PyTorch on a simulated GPU: its tensors are the device's memory, its current stream one of the device's."""

    def __init__(self, device: SimDevice) -> None:
        super().__init__(0)
        self._device = device
        self.waits = False
        with device.active():
            self.current = device.stream()

    def free(self) -> None:
        with self._device.active():
            self.current.free()

    def check(self, images: Tensor) -> None:
        self._device.adopt(images.numpy())

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.full(shape, torch.nan)
        self._device.adopt(tensor.numpy())
        return tensor

    def wait_for_pytorch(self, stream: SimStream) -> None:  # type: ignore[override]
        self._order(self.current, stream)

    def let_pytorch_wait(self, stream: SimStream) -> None:  # type: ignore[override]
        self._order(stream, self.current)
        if self.waits:
            self.current.synchronise()

    def _order(self, first: SimStream, then: SimStream) -> None:
        event = self._device.event()
        event.record(first)
        then.wait(event)
        event.free()


def _on_simulated_gpu(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> _SimBridge:
    monkeypatch.setattr(engine_module, "is_on_gpu", lambda images: True)
    bridge = _SimBridge(simulated.device)
    simulated.session._bridge = bridge
    return bridge


@pytest.mark.parametrize("seed", range(8))
def test_cuda_tensors_are_read_and_written_in_place_and_in_order(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    simulated = simulate(seed, streams=1 + seed % 2)
    bridge, device = _on_simulated_gpu(simulated, monkeypatch), simulated.device
    buffer, kept = torch.full((4, 3, 4, 6), torch.nan), []
    for i, size in enumerate((4, 1, 3, 4, 4, 4, 2, 4, 4)):
        images, tensor = images_of(size, i), buffer[:size]
        with device.active():  # a kernel of PyTorch's makes the images, when the GPU gets there
            bridge.current.push(Op(partial(tensor.copy_, torch.from_numpy(images))))
        kept.append((simulated.engine(tensor), images))
        with device.active():  # another one overwrites them
            bridge.current.push(Op(partial(tensor.fill_, torch.nan)))
        if i % 3 == 0:
            monkeypatch.setattr(engine_module, "is_on_gpu", lambda images: False)
            assert same(simulated.engine(images), compute(images))  # from host memory, in between
            monkeypatch.setattr(engine_module, "is_on_gpu", lambda images: True)
    simulated.engine.close()  # waits for what it has under way
    with device.active():
        bridge.current.synchronise()
    for results, images in kept:
        assert same(tuple(result.numpy() for result in results), compute(images))
    bridge.free()


def test_any_number_of_cuda_tensors(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = simulate(0, shapes=Shapes(profiles=((2, 3, 4),)))
    bridge = _on_simulated_gpu(simulated, monkeypatch)
    bridge.waits = True  # so that what PyTorch does at once in this test, padding and joining, has what it needs
    for size in (1, 2, 4, 5, 9):
        images = images_of(size, size)
        results = simulated.engine(torch.from_numpy(images))
        assert all(isinstance(result, Tensor) for result in results)
        assert same(tuple(result.numpy() for result in results), compute(images))
        (many,) = simulated.engine.run_many([torch.from_numpy(images)])
        assert same(tuple(result.numpy() for result in many), compute(images))
    assert [len(result) for result in simulated.engine(torch.empty(0, 3, 4, 6))] == [0, 0]
    with pytest.raises(FasterViTError, match=r"float32 \(B, 3, 4, 6\), not float16 \(2, 3, 4, 6\)"):
        simulated.engine(torch.zeros(2, 3, 4, 6, dtype=torch.float16))
    bridge.free()


@pytest.mark.parametrize("seed", range(4))
def test_graphs_on_cuda_tensors_are_forgotten_only_when_they_are_done(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    simulated = simulate(seed)
    bridge, device = _on_simulated_gpu(simulated, monkeypatch), simulated.device
    results = torch.full((4, 5), torch.nan), torch.full((4, 2, 2, 3), torch.nan)
    for result in results:
        device.adopt(result.numpy())
    monkeypatch.setattr(bridge, "empty", lambda shape: results[len(shape) > 2][: shape[0]])  # so that addresses recur
    tensors = [torch.from_numpy(images_of(4, i)) for i in range(12)]
    for tensor in tensors * 2 + tensors[::-1]:
        simulated.engine(tensor)  # and nobody waits
    with device.active():
        bridge.current.synchronise()
    assert same(tuple(result.numpy() for result in results), compute(images_of(4, 0)))
    assert any(graph.freed for graph in device.graphs)
    bridge.free()
    simulated.engine.close()
    with pytest.raises(FasterViTError, match="the engine is closed"):
        simulated.engine(tensors[0])


def test_too_little_memory_leaves_nothing_behind(simulate: Simulate) -> None:
    for allocations in range(8):
        device = SimDevice(0, allocations=allocations)
        with pytest.raises(FasterViTError, match="not enough memory"):
            simulate(device=device, streams=2, slots=2)
        assert device.alive == 0
        assert not device.memory
    device = SimDevice(0)
    with pytest.raises(FasterViTError, match="cannot make an execution context"):
        simulate(device=device, streams=2, most_contexts=1)
    assert device.alive == 0


def test_a_tensor_of_another_gpu_is_refused() -> None:
    class Elsewhere:
        device = torch.device("cuda:1")

    with pytest.raises(FasterViTError, match="images are on cuda:1, the engine on cuda:0"):
        TorchBridge(0).check(Elsewhere())  # type: ignore[arg-type]


def test_numpy_is_untouched(simulate: Simulate) -> None:
    images = images_of(3)
    before = images.copy()
    simulate(0).engine(images)
    assert np.array_equal(images, before)
