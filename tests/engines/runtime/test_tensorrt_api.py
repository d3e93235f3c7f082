"""The calls that run an engine, against the recorded Python APIs of TensorRT 10.3 to 11.4 and of TensorRT-RTX."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastervit_trt.engines.runtime.tensorrt_api import Program, Source
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from tests.engines.api_double import ApiDouble, api_double, recorded_apis
from tests.engines.runtime import simulated_tensorrt

STREAM: Any = SimpleNamespace(handle=7, synchronise=lambda: None)


def double_of_engine(version: str) -> ApiDouble:
    """An API whose engine takes images (1..8, 3, 32, 32) and gives logits."""
    trt: Any = api_double(version)
    names = ["logits", "images"]
    shapes = {"images": (-1, 3, 32, 32), "logits": (-1, 10)}
    modes = {"images": trt.TensorIOMode.INPUT, "logits": trt.TensorIOMode.OUTPUT}

    def name_of(engine: Any, index: int) -> str:
        return names[index]

    def mode_of(engine: Any, name: str) -> Any:
        return modes[name]

    def shape_of(engine: Any, name: str) -> Any:
        return shapes[name]

    def profile_of(engine: Any, name: str, index: int) -> list[Any]:
        assert (name, index) == ("images", 1)
        return [trt.Dims((size, 3, 32, 32)) for size in (1, 4, 8)]

    trt.returns |= {
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.num_optimization_profiles": 2,
        "ICudaEngine.get_tensor_name": name_of,
        "ICudaEngine.get_tensor_mode": mode_of,
        "ICudaEngine.get_tensor_shape": shape_of,
        "ICudaEngine.get_tensor_dtype": trt.DataType.FLOAT,
        "ICudaEngine.get_tensor_profile_shape": profile_of,
        "ICudaEngine.get_device_memory_size_for_profile_v2": 4096,
        "IExecutionContext.set_optimization_profile_async": True,
        "IExecutionContext.set_input_shape": True,
        "IExecutionContext.set_tensor_address": True,
        "IExecutionContext.execute_async_v3": True,
        "OnnxParserRefitter.refit_from_file": True,
        "Refitter.refit_cuda_engine": True,
    }
    return trt


def source_for(version: str, **more: Any) -> Source:
    runtime: Any = "tensorrt-rtx" if "rtx" in version else "tensorrt"
    return Source(runtime, b"plan", "m.engine", **more)


@pytest.mark.parametrize("version", recorded_apis())
def test_every_release_has_what_runs_an_engine(version: str) -> None:
    trt: Any = double_of_engine(version)
    source = source_for(version, plugins=Path("plugins.so"), weights=Path("model.onnx"), host_code=True)
    program = Program(trt, source, 1, ["logits"], cuda_graph=True, cached=b"compiled before")
    assert program.batch == BatchRange(1, 4, 8)
    assert program.image_shape == (3, 32, 32)
    assert program.outputs == {"logits": (10,)}
    context = program.context(0x100, STREAM)
    program.bind(context, 4, 0x2000, [0x3000])
    program.enqueue(context, STREAM)

    order = [f"{call.owner}.{call.member}" for call in trt.calls]
    assert order.index("IPluginRegistry.load_library") < order.index("Runtime.deserialize_cuda_engine")
    assert order.index("Runtime.engine_host_code_allowed=") < order.index("Runtime.deserialize_cuda_engine")
    assert order.index("Refitter.refit_cuda_engine") < order.index("ICudaEngine.create_execution_context")
    assert trt.arguments_of("IExecutionContext.set_optimization_profile_async") == [(1, 7)]
    assert trt.arguments_of("IExecutionContext.set_input_shape") == [("images", (4, 3, 32, 32))]
    assert set(trt.arguments_of("IExecutionContext.set_tensor_address")) == {("images", 0x2000), ("logits", 0x3000)}
    assert trt.arguments_of("IExecutionContext.execute_async_v3") == [(7,)]
    if source.rtx:
        assert trt.arguments_of("IRuntimeConfig.cuda_graph_strategy=") == [(trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE,)]
        assert trt.arguments_of("IRuntimeCache.deserialize") == [(b"compiled before",)]
        assert program.runtime_cache() == b""
        assert program.activation_bytes == 0
    else:
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        assert trt.arguments_of("ICudaEngine.create_execution_context") == [(managed,)]
        assert trt.arguments_of("IExecutionContext.set_device_memory") == [(0x100, 4096)]
        assert program.runtime_cache() is None


@pytest.mark.parametrize("version", ["tensorrt-10.3.0", "11.4", "tensorrt_rtx-1.7.1.116"])
@pytest.mark.parametrize(
    ("call", "answer", "message"),
    [
        ("Runtime.__init__", TypeError("factory function returned nullptr"), r"cannot start \(factory"),
        ("Runtime.deserialize_cuda_engine", None, "cannot read engine 'm.engine'"),
        ("OnnxParserRefitter.refit_from_file", False, "cannot take the weights of 'm.engine' from 'model.onnx'"),
        ("Refitter.get_missing_weights", ["stem"], "'model.onnx' lacks 1 weights of 'm.engine', 'stem' for one"),
        ("Refitter.refit_cuda_engine", False, "cannot put the weights of 'model.onnx' into 'm.engine'"),
        ("ICudaEngine.create_execution_context", None, "cannot make an execution context of 'm.engine'"),
        ("IExecutionContext.set_optimization_profile_async", False, "cannot use profile 1 of 'm.engine'"),
        ("IExecutionContext.set_input_shape", False, "'m.engine' does not take batch 4"),
        ("IExecutionContext.set_tensor_address", False, "'m.engine' does not take batch 4"),
        ("IExecutionContext.execute_async_v3", False, "cannot execute 'm.engine'"),
    ],
)
def test_every_refusal_is_one_line(version: str, call: str, answer: Any, message: str) -> None:
    trt: Any = double_of_engine(version)
    trt.returns[call] = answer

    def run() -> None:
        program = Program(trt, source_for(version, weights=Path("model.onnx")), 1, ["logits"], cuda_graph=False)
        context = program.context(0, STREAM)
        program.bind(context, 4, 1, [2])
        program.enqueue(context, STREAM)

    with pytest.raises(FasterViTError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_the_simulated_tensorrt_has_nothing_that_a_release_lacks() -> None:
    """Its classes take what is recorded, so that tests on it say something about TensorRT."""
    classes = {
        name: vars(found)
        for name, found in vars(simulated_tensorrt).items()
        if inspect.isclass(found) and found.__module__ == simulated_tensorrt.__name__ and name[0] != "_"
    }
    checked = 0
    for version in recorded_apis():
        trt: Any = api_double(version)
        for name, members in classes.items():
            if name in ("Shapes", "SimTensorRt") or (name in ONLY_RTX and "rtx" not in version):
                continue
            recorded = getattr(trt, name, None)
            if recorded is None and name == "IRuntimeConfig":
                continue  # not before 10.11, and asked for of TensorRT-RTX alone
            for member in (m for m in members if m[0] != "_"):
                if name in ("IRuntimeConfig", "ICudaEngine") and "rtx" not in version and "runtime" in member:
                    continue
                assert hasattr(recorded, member), f"{version}: {name}.{member}"
                checked += 1
    assert checked > 300


ONLY_RTX = ("CudaGraphStrategy", "IRuntimeCache", "IRuntimeConfig")
