"""The doubles of TensorRT's API against the real bindings that are installed here, and what they refuse."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.engines.api_double import ApiDouble, Call, api_double, recorded_apis
from tests.engines.recorded.record_api import API, record_of_module, record_of_wheel, text_of_record

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
needs_tools = pytest.mark.skipif(not all(map(shutil.which, ("gcc", "nm", "readelf"))), reason="needs gcc and binutils")


@pytest.fixture
def rtx() -> ModuleType:
    """The installed TensorRT-RTX, of a version that is recorded."""
    import tensorrt_rtx

    if f"tensorrt_rtx-{tensorrt_rtx.__version__}" not in recorded_apis():
        pytest.skip(f"TensorRT-RTX {tensorrt_rtx.__version__} is not recorded")
    return tensorrt_rtx


@pytest.fixture
def double() -> ApiDouble:
    return api_double("11.4")


def logger_of(trt: Any) -> Any:
    class Silent(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)

    return Silent()


def objects_of(trt: Any) -> SimpleNamespace:
    """What every build makes."""
    logger = logger_of(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    parser = trt.OnnxParser(network, logger)
    monitor = type("Monitor", (trt.IProgressMonitor,), {})()
    names = {"trt": trt, "logger": logger, "builder": builder, "network": network, "config": config}
    return SimpleNamespace(**names, profile=profile, parser=parser, monitor=monitor)


@needs_rtx
def test_the_record_is_what_the_installed_bindings_say(rtx: ModuleType) -> None:
    committed = API / f"tensorrt_rtx-{rtx.__version__}.json"
    assert text_of_record(record_of_module(rtx)) == committed.read_text()


@needs_rtx
@needs_tools
def test_bindings_without_their_libraries_give_the_same_record(rtx: ModuleType, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("tensorrt_rtx_bindings")
    assert spec is not None and spec.origin is not None
    wheel = tmp_path / "bindings.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in Path(spec.origin).parent.glob("*.*"):
            archive.write(file, f"tensorrt_rtx_bindings/{file.name}")
    assert text_of_record(record_of_wheel(wheel)) == (API / f"tensorrt_rtx-{rtx.__version__}.json").read_text()


# What a build may try, right and wrong. `o` is what `objects_of` makes.
TRIED = (
    "o.builder.foo",
    "o.config.set_flags(o.trt.BuilderFlag.REFIT)",
    "setattr(o.builder, 'foo', 1)",
    "setattr(o.builder, 'logger', o.logger)",
    "setattr(o.logger, 'foo', 1)",
    "setattr(o.monitor, 'foo', 1)",
    "setattr(o.builder, 'max_threads', 2)",
    "setattr(o.builder, 'max_threads', '2')",
    "setattr(o.builder, 'max_threads', 2.0)",
    "setattr(o.config, 'progress_monitor', o.monitor)",
    "setattr(o.config, 'progress_monitor', None)",
    "setattr(o.config, 'progress_monitor', o.logger)",
    "setattr(o.config, 'profiling_verbosity', o.trt.ProfilingVerbosity.DETAILED)",
    "setattr(o.config, 'profiling_verbosity', 2)",
    "setattr(o.config, 'profiling_verbosity', None)",
    "setattr(o.config, 'plugins_to_serialize', ['a'])",
    "setattr(o.config, 'plugins_to_serialize', ('a',))",
    "setattr(o.config, 'plugins_to_serialize', 'a')",
    "setattr(o.config, 'plugins_to_serialize', [1])",
    "o.builder.gpu_allocator",
    "o.builder.create_network()",
    "o.builder.create_network(0)",
    "o.builder.create_network(flags=0)",
    "o.builder.create_network(o.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)",
    "o.builder.create_network(flag=0)",
    "o.builder.create_network('0')",
    "o.builder.create_network(0, 0)",
    "o.builder.create_network(0, flags=0)",
    "o.builder.build_serialized_network(o.network)",
    "o.builder.build_serialized_network(o.config, o.network)",
    "o.builder.build_serialized_network(o.network, None)",
    "o.trt.Builder(None)",
    "o.trt.Builder()",
    "o.trt.IBuilderConfig()",
    "o.trt.IHostMemory()",
    "o.trt.OnnxParser(o.network)",
    "o.trt.OnnxParser(o.network, None)",
    "o.trt.Logger(o.trt.Logger.ERROR)",
    "o.trt.Logger(o.trt.ILogger.Severity.ERROR)",
    "o.trt.Builder(o.trt.Logger())",
    "o.config.set_flag(o.trt.BuilderFlag.REFIT)",
    "o.config.set_flag(o.trt.BuilderFlag.FP16)",
    "o.config.set_flag(4)",
    "o.config.set_flag(o.trt.MemoryPoolType.WORKSPACE)",
    "o.config.set_memory_pool_limit(o.trt.MemoryPoolType.WORKSPACE, 1 << 20)",
    "o.config.set_memory_pool_limit(o.trt.MemoryPoolType.WORKSPACE, 1e6)",
    "o.config.set_memory_pool_limit(pool_size=1 << 20, pool=o.trt.MemoryPoolType.WORKSPACE)",
    "o.config.create_timing_cache(b'')",
    "o.config.create_timing_cache(None)",
    "o.config.create_timing_cache('')",
    "o.config.set_timing_cache(o.config.create_timing_cache(b''), False)",
    "o.profile.set_shape('x', (1, 3), (1, 3), (1, 3))",
    "o.profile.set_shape('x', [1, 3], min=[1, 3], opt=[1, 3])",
    "o.profile.set_shape('x', min=[1, 3], opt=[1, 3], max=[1, 3])",
    "o.profile.set_shape('x', (1.5, 3), (1, 3), (1, 3))",
    "o.profile.set_shape('x', 1, 1, 1)",
    "o.profile.set_shape('x', (1, 3))",
    "o.parser.parse(bytearray(b'x'))",
    "o.parser.parse(b'x', path='model.onnx')",
    "o.parser.parse('x')",
    "o.parser.parse_from_file('none.onnx')",
    "o.parser.parse_from_file(Path('none.onnx'))",
    "o.parser.set_flag(o.trt.OnnxParserFlag.NATIVE_INSTANCENORM)",
    "o.parser.set_flag(o.trt.BuilderFlag.REFIT)",
    "o.builder.get_plugin_registry()",
    "o.trt.get_plugin_registry()",
    "o.trt.get_builder_plugin_registry(o.trt.EngineCapability.STANDARD)",
    "o.trt.get_builder_plugin_registry(0)",
    "o.trt.init_libnvinfer_plugins(o.logger, 1)",
    "o.trt.BuilderFlag.REFIT < o.trt.BuilderFlag.TF32",
    "o.trt.BuilderFlag.REFIT < 5",
    "o.trt.TensorIOMode.INPUT < o.trt.TensorIOMode.OUTPUT",
    "1 << o.trt.BuilderFlag.REFIT",
    "o.trt.BuilderFlag.REFIT | o.trt.BuilderFlag.TF32",
    "o.trt.BuilderFlag['REFIT']",
    "list(o.trt.BuilderFlag)",
    "o.trt.BuilderFlag(4)",
    "o.trt.BuilderFlag('REFIT')",
    "o.trt.NoSuchName",
    "o.trt.Runtime()",
    "o.trt.OnnxParserRefitter(o.parser, o.logger)",
)


@needs_rtx
@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
def test_the_double_takes_and_refuses_what_the_real_bindings_do(rtx: ModuleType) -> None:
    real, double = objects_of(rtx), objects_of(api_double(rtx.__version__))
    both = [(tried, outcome(tried, real), outcome(tried, double)) for tried in TRIED]
    assert [case for case in both if case[1] != case[2]] == []
    assert {"taken", "TypeError", "AttributeError"} == {case[1] for case in both}


def outcome(tried: str, objects: SimpleNamespace) -> str:
    try:
        eval(tried, {"o": objects, "Path": Path})
    except (AttributeError, TypeError) as error:
        return type(error).__name__
    return "taken"


SAME = (
    "int(o.trt.BuilderFlag.TF32)",
    "str(o.trt.BuilderFlag.TF32) + repr(o.trt.BuilderFlag.TF32)",
    "o.trt.BuilderFlag.REFIT == 4",
    "o.trt.BuilderFlag(4) == o.trt.BuilderFlag.REFIT",
    "o.trt.ILogger.Severity.ERROR <= o.trt.ILogger.WARNING",
    "o.trt.ILogger.Severity.ERROR > o.trt.ILogger.WARNING",
    "o.trt.ILogger.Severity.ERROR >= o.trt.ILogger.ERROR",
    "isinstance(o.trt.Logger(), o.trt.ILogger)",
    "o.trt.Logger.Severity is o.trt.ILogger.Severity",
    "o.trt.Logger.ERROR == o.trt.ILogger.Severity.ERROR",
    "o.trt.__version__",
    "o.network.num_layers",
)


@needs_rtx
@pytest.mark.parametrize("said", SAME)
def test_the_double_says_what_the_real_bindings_say(said: str, rtx: ModuleType) -> None:
    real, double = (eval(said, {"o": objects_of(trt)}) for trt in (rtx, api_double(rtx.__version__)))
    assert real == double


@pytest.mark.parametrize("name", recorded_apis())
def test_every_version_takes_the_calls_of_a_plain_build(name: str) -> None:
    trt = api_double(name)
    o = objects_of(trt)
    assert o.parser.parse_from_file("model.onnx") is True
    o.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    o.config.progress_monitor = o.monitor
    o.profile.set_shape("images", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    o.config.add_optimization_profile(o.profile)
    assert isinstance(o.builder.build_serialized_network(o.network, o.config), trt.IHostMemory)
    assert trt.calls[-1] == Call("Builder", "build_serialized_network", (o.network, o.config))
    assert (trt.__name__, trt.__version__) == tuple(name.split("-"))


TEN, ELEVEN, RTX = "10.3 10.7 10.10 10.13 10.15 10.16", "11.0 11.1 11.4", "1.4 1.7"


@pytest.mark.parametrize(
    ("member", "versions"),
    [
        ("BuilderFlag.FP16", f"{TEN} 1.4"),
        ("BuilderFlag.STRIP_PLAN", f"{TEN} {ELEVEN} {RTX}"),
        ("BuilderFlag.EDITABLE_TIMING_CACHE", f"10.10 10.13 10.15 10.16 {ELEVEN} {RTX}"),
        ("OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE", f"10.15 10.16 {ELEVEN} {RTX}"),
        ("IBuilderConfig.build_route", "11.1 11.4 1.7"),
        ("IBuilderConfig.set_compute_capability", RTX),
        ("Runtime.get_engine_validity", RTX),
        ("ICudaEngine.device_memory_size", TEN),
    ],
)
def test_a_name_is_there_in_the_versions_that_have_it(member: str, versions: str) -> None:
    owner, name = member.split(".")
    found = {v for v in map(short, recorded_apis()) if hasattr(getattr(api_double(v), owner), name)}
    assert found == set(versions.split())


def short(name: str) -> str:
    return ".".join(name.partition("-")[2].split(".")[:2])


def test_a_subclass_that_forgets_the_constructor_is_refused(double: ApiDouble) -> None:
    class Forgetful(double.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"ILogger.__init__\(\) must be called"):
        Forgetful()


def test_what_only_tensorrt_makes_cannot_be_made(double: ApiDouble) -> None:
    with pytest.raises(TypeError, match="IBuilderConfig: No constructor defined!"):
        double.IBuilderConfig()


def test_an_override_that_cannot_take_what_tensorrt_passes_is_refused(double: ApiDouble) -> None:
    with pytest.raises(TypeError, match=r"Monitor\.phase_start gets 3 arguments"):
        type("Monitor", (double.IProgressMonitor,), {"phase_start": lambda self, phase: None})


def test_calls_are_logged_with_keywords_in_their_place(double: ApiDouble) -> None:
    o = objects_of(double)
    o.config.set_memory_pool_limit(pool_size=5, pool=double.MemoryPoolType.WORKSPACE)
    o.config.builder_optimization_level = 4
    assert double.arguments_of("IBuilderConfig.set_memory_pool_limit") == [(double.MemoryPoolType.WORKSPACE, 5)]
    assert double.calls[-1] == Call("IBuilderConfig", "builder_optimization_level=", (4,))
    assert o.config.builder_optimization_level == 4


def test_the_test_says_what_calls_return(double: ApiDouble, tmp_path: Path) -> None:
    o = objects_of(double)
    double.returns["Builder.build_serialized_network"] = lambda builder, network, config: bytes(
        [config.max_aux_streams]
    )
    o.config.max_aux_streams = 7
    plan = o.builder.build_serialized_network(o.network, o.config)
    (tmp_path / "plan").write_bytes(plan)
    assert (tmp_path / "plan").read_bytes() == b"\x07" and plan.nbytes == 1
    double.returns["Builder.build_serialized_network"] = None  # how TensorRT says that it failed
    assert o.builder.build_serialized_network(o.network, o.config) is None
    double.returns["OnnxParser.parse_from_file"] = False
    double.returns["OnnxParser.num_errors"] = 1
    double.returns["ParserError.local_function_stack"] = ["hat_attn"]
    assert not o.parser.parse_from_file("model.onnx") and o.parser.num_errors == 1
    assert o.parser.get_error(0).local_function_stack() == ["hat_attn"]
    double.returns["INetworkDefinition.get_input"] = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        o.network.get_input(0)
    double.returns["ITensor.shape"] = (1, 3, 8, 8)
    del double.returns["INetworkDefinition.get_input"]
    assert o.network.get_input(0).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("name", "value"), [("OnnxParser.num_errors", "1"), ("OnnxParser.num_errors", None)])
def test_a_return_value_the_bindings_cannot_give_is_the_tests_mistake(name: str, value: Any, double: ApiDouble) -> None:
    o = objects_of(double)
    double.returns[name] = value
    with pytest.raises(AssertionError, match=r"OnnxParser\.num_errors cannot return"):
        _ = o.parser.num_errors


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_a_bool_must_be_one(wrong: Any, double: ApiDouble) -> None:
    with pytest.raises(TypeError, match=r"takes \(self: IBuilderConfig, feature: PreviewFeature, enable: bool\)"):
        objects_of(double).config.set_preview_feature(double.PreviewFeature.ALIASED_PLUGIN_IO_10_03, wrong)
