"""The builder's calls against the recorded API of every TensorRT release, the graph its parser gets, its failures."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fastervit_trt.engines.api import RuntimeName
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.worker import BuildError, Job, build, main
from fastervit_trt.export import graph as graph_module
from tests.engines.api_double import ApiDouble, api_double, recorded_apis

RELEASES = recorded_apis()
TENSORRT = [name for name in RELEASES if not name.startswith("tensorrt_rtx")]
WITHOUT_FUNCTIONS = [name for name in TENSORRT if re.match(r"tensorrt-10\.(3|7|10|13)\.", name)]
SMALL, LARGE = [[1, 3, 224, 224], [2, 3, 224, 224], [4, 3, 224, 224]], [[8, 3, 224, 224]] * 3
ENGINE, TIMINGS, INSPECTION = b"an engine", b"measured timings", '{"Layers": []}'
NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)


def runtime_of(trt: ApiDouble) -> RuntimeName:
    return "tensorrt" if trt.__name__ == "tensorrt" else "tensorrt-rtx"


@dataclass
class Build:
    """One build driven against a double: what it was asked, what it said, what it left."""

    trt: ApiDouble
    job: Job
    progress: list[dict[str, Any]] = field(default_factory=list)
    parsed: list[str] = field(default_factory=list)
    graph: onnx.ModelProto | None = None  # that the parser got, with its weights
    result: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Build:
        returns = {
            "Builder.build_serialized_network": self._build,
            "OnnxParser.parse_from_file": self._parse,
            "INetworkDefinition.num_layers": 7,
            "ITimingCache.serialize": TIMINGS,
            "EngineInspector.get_engine_information": INSPECTION,
        }
        self.trt.returns = {**returns, **self.trt.returns}
        self.result = build(self.trt, self.job, lambda kind, content: self.progress.append({kind: content}))
        return self

    def _build(self, builder: Any, network: Any, config: Any) -> bytes:
        monitor = config.progress_monitor
        monitor.phase_start("Building", "", 3)
        monitor.phase_start("Optimizing", "Building", 2)
        assert monitor.step_complete("Optimizing", 0) is True  # False would cancel the build
        monitor.step_complete("Optimizing", 1)
        monitor.phase_finish("Optimizing")
        monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        return ENGINE

    def _parse(self, parser: Any, path: str) -> bool:
        self.parsed.append(path)
        onnx.checker.check_model(path)
        self.graph = onnx.load(path)
        return True

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return self.trt.arguments_of(name)

    def order(self, *names: str) -> bool:
        """Whether the first calls of ``names`` came in this order."""
        called = [f"{call.owner}.{call.member}".lstrip(".") for call in self.trt.calls]
        places = [called.index(name) for name in names]
        return places == sorted(places)


@pytest.fixture
def make(exports: Path, tmp_path: Path) -> Callable[..., Build]:
    """A build of the fp16 export with two profiles by one recorded release."""

    def made(release: str, **changes: Any) -> Build:
        trt = api_double(release)
        (tmp_path / "scratch").mkdir(exist_ok=True)
        rtx = runtime_of(trt) == "tensorrt-rtx"
        job = Job(
            runtime=runtime_of(trt),
            onnx=str(exports / "fp16" / "model.onnx"),
            engine=str(tmp_path / "model.engine"),
            scratch=str(tmp_path / "scratch"),
            input="images",
            profiles=[SMALL, LARGE],
            compute_capability="8.9" if rtx else None,
        )
        return Build(trt, replace(job, **changes))

    return made


def all_options(trt: ApiDouble) -> BuildOptions:
    """Everything that this release's recorded API has."""
    options = BuildOptions(workspace_mib=512, shared_memory_kib=48)
    if runtime_of(trt) == "tensorrt-rtx":
        return options
    return replace(
        options,
        level=4,
        max_tactics=5 if hasattr(trt.IBuilderConfig, "max_num_tactics") else None,
        tiling="moderate" if hasattr(trt, "TilingOptimizationLevel") else None,
        hardware_compatibility="same-capability"
        if hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")
        else "ampere+",
        version_compatible=True,
    )


# --- calls ---


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_takes_all_its_options(release: str, make: Callable[..., Build]) -> None:
    trt = api_double(release)
    options = all_options(trt)
    options.check(runtime_of(trt), trt.__version__)  # what the record has is not refused
    build = make(release, options=options.record())
    trt, pool = build.trt, build.trt.MemoryPoolType
    build.run()
    limits = [(pool.WORKSPACE, 512 << 20), (pool.TACTIC_SHARED_MEMORY, 48 << 10)]
    assert build.calls("IBuilderConfig.set_memory_pool_limit") == limits
    assert build.calls("IBuilderConfig.profiling_verbosity=") == [(trt.ProfilingVerbosity.DETAILED,)]
    if build.job.runtime == "tensorrt":
        assert build.calls("IBuilderConfig.builder_optimization_level=") == [(4,)]
        assert build.calls("IBuilderConfig.set_flag") == [(trt.BuilderFlag.VERSION_COMPATIBLE,)]
        (level,) = build.calls("IBuilderConfig.hardware_compatibility_level=")[0]
        names = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
        assert level.name == names[options.hardware_compatibility]
        assert build.calls("IBuilderConfig.max_num_tactics=") == [(5,)] * (options.max_tactics is not None)
        tiling = build.calls("IBuilderConfig.tiling_optimization_level=")
        assert [level.name for (level,) in tiling] == ["MODERATE"] * (options.tiling is not None)
    assert build.result.items() >= {"version": trt.__version__, "layers": 7}.items()
    assert build.result["seconds"] >= 0 and build.result["peak_rss_mib"] > 10
    assert Path(build.job.engine).read_bytes() == ENGINE


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_not_asked_for_is_left_to_tensorrt(release: str, make: Callable[..., Build]) -> None:
    build = make(release).run()
    made = {f"{call.owner}.{call.member}" for call in build.trt.calls}
    settings = {name for name in made if name.startswith("IBuilderConfig.")}
    target = {"IBuilderConfig.num_compute_capabilities=", "IBuilderConfig.set_compute_capability"}
    assert settings == {
        "IBuilderConfig.profiling_verbosity=",
        "IBuilderConfig.progress_monitor=",
        "IBuilderConfig.add_optimization_profile",
        *(target if build.job.compute_capability else ()),
    }
    assert not {name for name in made if name.startswith(("Runtime.", "EngineInspector.", "IPluginRegistry."))}


@pytest.mark.parametrize("release", RELEASES)
def test_networks_are_strongly_typed(release: str, make: Callable[..., Build]) -> None:
    build = make(release).run()
    typed = 1 << int(build.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    without_flag = build.trt.__version__.startswith("11.")  # where all networks are
    assert build.calls("Builder.create_network") == [() if without_flag else (typed,)]
    ((network, config),) = build.calls("Builder.build_serialized_network")
    assert build.calls("OnnxParser.__init__")[0][0] is network
    assert build.calls("IOptimizationProfile.set_shape")
    assert type(config).__name__ == "IBuilderConfig"


@pytest.mark.parametrize("release", RELEASES)
def test_each_profile_gets_its_shapes(release: str, make: Callable[..., Build]) -> None:
    build = make(release).run()
    shapes = [("images", *(tuple(shape) for shape in profile)) for profile in (SMALL, LARGE)]
    assert build.calls("IOptimizationProfile.set_shape") == shapes
    added = [profile for (profile,) in build.calls("IBuilderConfig.add_optimization_profile")]
    assert len(added) == 2 and added[0] is not added[1]
    static = make(release, profiles=[]).run()
    assert static.calls("IBuilderConfig.add_optimization_profile") == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_target_is_named_ahead_of_time_only(release: str, make: Callable[..., Build]) -> None:
    build = make(release).run()
    if build.job.runtime == "tensorrt":
        assert not hasattr(build.trt, "ComputeCapability")
        return
    assert build.calls("IBuilderConfig.num_compute_capabilities=") == [(1,)]
    assert build.calls("IBuilderConfig.set_compute_capability") == [(build.trt.ComputeCapability.SM89, 0)]
    assert build.order("IBuilderConfig.num_compute_capabilities=", "IBuilderConfig.set_compute_capability")
    here = make(release, compute_capability=None).run()
    assert here.calls("IBuilderConfig.set_compute_capability") == []
    turing = make(release, compute_capability="7.5").run()
    assert turing.calls("IBuilderConfig.set_compute_capability") == [(turing.trt.ComputeCapability.SM75, 0)]
    blackwell = make(release, compute_capability="12.0").run()
    assert blackwell.calls("IBuilderConfig.set_compute_capability") == [(blackwell.trt.ComputeCapability.SM120, 0)]


@pytest.mark.parametrize("release", TENSORRT)
def test_stripped_engines_can_be_refitted_with_the_same_weights(
    release: str, make: Callable[..., Build], tmp_path: Path
) -> None:
    inspection = tmp_path / "inspection.json"
    build = make(release, options={"strip_weights": True}, inspection=str(inspection)).run()
    flags = build.trt.BuilderFlag
    assert set(build.calls("IBuilderConfig.set_flag")) == {(flags.STRIP_PLAN,), (flags.REFIT_IDENTICAL,)}
    assert inspection.read_text() == INSPECTION
    assert build.calls("ICudaEngine.create_execution_context") == []  # an engine without weights cannot run


@pytest.mark.parametrize("release", TENSORRT)
def test_the_inspector_sees_shapes(release: str, make: Callable[..., Build], tmp_path: Path) -> None:
    inspection = tmp_path / "inspection.json"
    build = make(release, inspection=str(inspection)).run()
    assert inspection.read_text() == INSPECTION
    assert build.calls("Runtime.deserialize_cuda_engine") == [(ENGINE,)]
    assert build.calls("IExecutionContext.set_input_shape") == [("images", tuple(SMALL[1]))]
    assert len(build.calls("EngineInspector.execution_context=")) == 1
    formats = build.trt.LayerInformationFormat
    assert build.calls("EngineInspector.get_engine_information") == [(formats.JSON,)]
    assert build.order(
        "IExecutionContext.set_input_shape",
        "EngineInspector.execution_context=",
        "EngineInspector.get_engine_information",
    )
    assert build.calls("Runtime.engine_host_code_allowed=") == []
    assert {"progress": {"phase": "inspecting", "done": 0, "total": 1}} in build.progress
    compatible = make(release, options={"version_compatible": True}, inspection=str(inspection)).run()
    assert compatible.calls("Runtime.engine_host_code_allowed=") == [(True,)]  # the lean runtime is host code
    assert compatible.order("Runtime.engine_host_code_allowed=", "Runtime.deserialize_cuda_engine")


@pytest.mark.parametrize("release", TENSORRT)
def test_without_a_context_the_inspector_is_asked_all_the_same(
    release: str, make: Callable[..., Build], tmp_path: Path
) -> None:
    inspection = tmp_path / "inspection.json"
    build = make(release, inspection=str(inspection))
    build.trt.returns["ICudaEngine.create_execution_context"] = None  # no memory for one
    assert build.run().calls("EngineInspector.execution_context=") == []
    assert inspection.read_text() == INSPECTION


@pytest.mark.parametrize("release", TENSORRT)
def test_the_timing_cache_is_continued(release: str, make: Callable[..., Build], tmp_path: Path) -> None:
    file = tmp_path / "timing"
    build = make(release, timing_cache=str(file)).run()
    assert build.calls("IBuilderConfig.create_timing_cache") == [(b"",)]
    assert file.read_bytes() == TIMINGS
    again = make(release, timing_cache=str(file)).run()
    assert again.calls("IBuilderConfig.create_timing_cache") == [(TIMINGS,)]
    ((_, ignore_mismatch),) = again.calls("IBuilderConfig.set_timing_cache")
    assert ignore_mismatch is False  # times of another device are none of this one
    assert again.order("IBuilderConfig.set_timing_cache", "Builder.build_serialized_network")
    assert again.order("Builder.build_serialized_network", "ITimingCache.serialize")


@pytest.mark.parametrize("lost", ["create_timing_cache", "set_timing_cache"])
def test_a_timing_cache_that_tensorrt_refuses_is_begun_anew(
    lost: str, make: Callable[..., Build], tmp_path: Path
) -> None:
    file = tmp_path / "timing"
    file.write_bytes(b"of another device")
    build = make("11.4", timing_cache=str(file))
    contents: list[bytes] = []
    cache = build.trt.ITimingCache.__new__(build.trt.ITimingCache)

    def create(config: Any, content: bytes) -> Any:
        contents.append(content)
        return None if lost == "create_timing_cache" and content else cache

    build.trt.returns["IBuilderConfig.create_timing_cache"] = create
    if lost == "set_timing_cache":
        build.trt.returns["IBuilderConfig.set_timing_cache"] = lambda config, cache, ignore: contents[-1] == b""
    build.run()
    assert contents == [b"of another device", b""]
    assert file.read_bytes() == TIMINGS


def test_a_build_without_a_timing_cache_leaves_none(make: Callable[..., Build], tmp_path: Path) -> None:
    build = make("11.4", timing_cache=str(tmp_path / "timing"))
    build.trt.returns["IBuilderConfig.get_timing_cache"] = None
    assert build.run().result["layers"] == 7
    assert not (tmp_path / "timing").exists()


@pytest.mark.parametrize("release", TENSORRT)
def test_the_plugin_library_is_loaded_before_the_graph(release: str, make: Callable[..., Build]) -> None:
    build = make(release, plugin_library="/opt/libfastervit_plugins.so").run()
    assert build.calls("IPluginRegistry.load_library") == [("/opt/libfastervit_plugins.so",)]
    # The registry has no logger before there is a builder, and would not say why it cannot load a library.
    assert build.order("Builder.__init__", "IPluginRegistry.load_library", "OnnxParser.parse_from_file")


@pytest.mark.parametrize("release", RELEASES)
def test_progress_counts_the_steps_of_each_phase(release: str, make: Callable[..., Build]) -> None:
    seen = [message["progress"] for message in make(release).run().progress]
    assert seen == [
        {"phase": "parsing", "done": 0, "total": 1},
        {"phase": "Optimizing", "done": 1, "total": 2},
        {"phase": "Optimizing", "done": 2, "total": 2},
        {"phase": "Building", "done": 1, "total": 3},
        {"phase": "Building", "done": 3, "total": 3},  # TensorRT does not tell of all steps
    ]


# --- the graph that the parser gets ---


@pytest.mark.parametrize("release", RELEASES)
def test_parsers_that_prefer_plugins_get_the_graph_as_it_is(release: str, make: Callable[..., Build]) -> None:
    build = make(release).run()
    if release in WITHOUT_FUNCTIONS:
        assert build.parsed == [f"{build.job.scratch}/model.onnx"]
    else:
        assert build.parsed == [build.job.onnx]
        assert not list(Path(build.job.scratch).iterdir())


@pytest.mark.parametrize("release", WITHOUT_FUNCTIONS)
def test_a_flat_graph_has_no_functions_and_no_calls(release: str, make: Callable[..., Build]) -> None:
    build = make(release).run()
    assert build.graph is not None
    assert list(build.graph.functions) == []
    assert {node.domain for node in build.graph.graph.node} == {""}
    assert {opset.domain for opset in build.graph.opset_import} == {""}
    assert ir.load(build.job.onnx).functions  # the export keeps them


@pytest.mark.parametrize("release", WITHOUT_FUNCTIONS)
def test_operators_that_plugins_serve_stay_nodes_without_function(
    release: str, make: Callable[..., Build], tmp_path: Path
) -> None:
    source = onnx.load(make(release).job.onnx)
    calls = [node for node in source.graph.node if node.domain == "fastervit"]
    for call in calls:
        if call.op_type == "CarrierAttention" or call.name.startswith("stages.3.blocks.0.attn/"):
            for name in ("plugin_namespace", "plugin_version"):  # as the exporter leaves what no kernel serves
                call.attribute.remove(next(a for a in call.attribute if a.name == name))
    onnx.save(source, tmp_path / "partly.onnx")
    build = make(release, onnx=str(tmp_path / "partly.onnx"), plugin_library="/opt/plugins.so").run()
    assert build.graph is not None and list(build.graph.functions) == []
    left = {node.name: node for node in build.graph.graph.node if node.domain == "fastervit"}
    served = [call.name for call in calls if any(a.name == "plugin_namespace" for a in call.attribute)]
    assert list(left) == served and len(served) == len(calls) - 2
    for node in left.values():
        attributes = {attribute.name: attribute.s for attribute in node.attribute}
        assert attributes["plugin_namespace"] == b"fastervit"
    inlined = {node.name.partition("/")[0] for node in build.graph.graph.node if node.op_type == "Softmax"}
    assert inlined == {"stages.2.blocks.0.hat_attn", "stages.3.blocks.0.attn"}
    assert {opset.domain for opset in build.graph.opset_import} == {"", "fastervit"}


@pytest.mark.parametrize("plugins", [None, "/opt/plugins.so"])
def test_weights_that_lie_beside_a_large_graph_are_found(
    plugins: str | None, make: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make("10.3").job.onnx
    ir.save(ir.load(source), tmp_path / "large.onnx", external_data="large.onnx.data", size_threshold_bytes=0)
    monkeypatch.setattr(graph_module, "_EXTERNAL_DATA_BYTES", 1000)
    build = make("10.3", onnx=str(tmp_path / "large.onnx"), plugin_library=plugins).run()
    assert build.graph is not None
    scratch = Path(build.job.scratch)
    assert {path.name for path in scratch.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (scratch / "model.onnx.data").stat().st_size > 50_000
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in build.graph.graph.initializer}
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    shared = found.keys() & expected.keys()
    assert len(shared) > 60
    for name in shared:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# --- failures, as the worker answers them ---


@pytest.fixture
def answer_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[Build], dict[str, Any]]:
    """Run the worker's ``main`` with the double as the installed module; its last answer."""

    def run(build: Build) -> dict[str, Any]:
        monkeypatch.setitem(sys.modules, build.trt.__name__, build.trt)
        monkeypatch.setattr(sys, "stdin", io.StringIO(build.job.to_json()))
        build.trt.returns = {"OnnxParser.parse_from_file": build._parse, **build.trt.returns}
        main()
        answers = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line]
        assert all("progress" in answer for answer in answers[:-1])
        last: dict[str, Any] = answers[-1]
        return last

    return run


def failing(
    build: Build, member: str, value: Any, *messages: str, severity: str = "ERROR", raising: bool = False
) -> Build:
    """Make ``member`` give ``value`` after TensorRT has logged ``messages``."""
    trt, loggers = build.trt, []

    def made(this: Any, logger: Any) -> None:
        loggers.append(logger)

    def fail(*arguments: Any) -> Any:
        logger = loggers[0] if loggers else arguments[1]
        for message in messages:
            logger.log(getattr(trt.ILogger.Severity, severity), message)
        return value

    trt.returns["Builder.__init__"] = made
    trt.returns[member] = fail
    return build


@pytest.mark.parametrize("release", RELEASES)
def test_success_is_the_last_answer(
    release: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = make(release)
    build.trt.returns["Builder.build_serialized_network"] = ENGINE
    result = answer_of(build)["result"]
    assert result["version"] == build.trt.__version__


def test_answers_are_lines_whatever_native_code_prints(
    make: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build = make("11.4")

    def printing(*arguments: Any) -> bytes:
        os.write(1, b"no newline")
        return ENGINE

    returns = {"OnnxParser.parse_from_file": True, "Builder.build_serialized_network": printing}
    build.trt.returns = returns
    monkeypatch.setitem(sys.modules, "tensorrt", build.trt)
    monkeypatch.setattr(sys, "stdin", io.StringIO(build.job.to_json()))
    main()
    lines = capfd.readouterr().out.splitlines()
    assert "no newline" in lines and "result" in json.loads(lines[-1])


@pytest.mark.parametrize("release", RELEASES)
def test_parser_errors_name_node_operator_and_the_calls_around(
    release: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = make(release)
    build.trt.returns |= {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 2,
        "ParserError.local_function_stack": ["stages.2.blocks.0.attn/WindowAttention_0 (WindowAttention)"],
        "ParserError.node_name": "Softmax_0",
        "ParserError.node_operator": "Softmax",
        "ParserError.desc": "no such axis",
    }
    failure = answer_of(build)["failure"]
    error = {
        "node": "stages.2.blocks.0.attn/WindowAttention_0/Softmax_0",
        "operator": "Softmax",
        "reason": "no such axis",
    }
    assert failure == {"stage": "parser", "errors": [error, error]}
    assert build.calls("OnnxParser.get_error") == [(0,), (1,)]
    assert not Path(build.job.engine).exists()


@pytest.mark.parametrize("release", RELEASES)
def test_the_builders_last_words_are_its_reasons(
    release: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = make(release)
    said = ["first", "second", "second", "third", "fourth"]
    failing(build, "Builder.build_serialized_network", None, *said)
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "builder"
    assert [error["reason"] for error in failure["errors"]] == ["second", "third", "fourth"]
    assert not Path(build.job.engine).exists()


def test_warnings_are_no_reasons(make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]) -> None:
    build = failing(make("11.4"), "Builder.build_serialized_network", None, "be careful", severity="WARNING")
    failure = answer_of(build)["failure"]
    assert [error["reason"] for error in failure["errors"]] == ["no reason given"]


def test_why_no_kernel_was_found_is_in_the_last_warning(make: Callable[..., Build]) -> None:
    build = make("10.3")
    loggers: list[Any] = []
    build.trt.returns["Builder.__init__"] = lambda this, logger: loggers.append(logger)
    severity = build.trt.ILogger.Severity

    def fail(*arguments: Any) -> None:
        skipped = "Skipping tactic {} due to insufficient memory on requested size of 4229 detected for tactic 0x74."
        for number in (12, 13):
            loggers[0].log(severity.WARNING, skipped.format(number))
        loggers[0].log(severity.WARNING, "something else")
        loggers[0].log(severity.ERROR, "Could not find any implementation for node Conv_0.")

    build.trt.returns["Builder.build_serialized_network"] = fail
    with pytest.raises(BuildError) as caught:
        build.run()
    kernel, memory = [error["reason"] for error in caught.value.errors]
    assert kernel.startswith("Could not find any implementation") and memory.startswith("Skipping tactic 13")


def test_memory_that_ran_out_on_a_gpu_is_told(
    make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    message = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
    build = failing(make("10.3"), "Builder.build_serialized_network", None, message)
    assert answer_of(build)["failure"]["errors"][0]["reason"] == message


@pytest.mark.parametrize(("release", "said"), [("1.7", []), ("11.4", [NO_DRIVER])])
def test_an_absent_driver_matters_only_to_builds_for_this_gpu(
    release: str, said: list[str], make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = failing(make(release), "Builder.build_serialized_network", None, NO_DRIVER, "the reason")
    errors = answer_of(build)["failure"]["errors"]
    assert [error["reason"] for error in errors] == [*said, "the reason"]


@pytest.mark.parametrize("severity", ["WARNING", "ERROR"])
def test_no_builder_because_of_cuda_is_no_other_api(
    severity: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = make("10.16")
    cuda = "CUDA initialization failure with error: 35. Please check your CUDA installation"

    def no_builder(this: Any, logger: Any) -> TypeError:
        logger.log(getattr(build.trt.ILogger.Severity, severity), cuda)
        return TypeError("pybind11::init(): factory function returned nullptr")

    build.trt.returns["Builder.__init__"] = no_builder
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "builder"
    assert [error["reason"] for error in failure["errors"]] == [cuda]


@pytest.mark.parametrize("release", TENSORRT)
def test_a_plugin_library_that_does_not_load_says_why(
    release: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = make(release, plugin_library="/opt/plugins.so")
    failing(build, "IPluginRegistry.load_library", None, "Unable to load library: /opt/plugins.so: file too short")
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "plugins"
    assert failure["errors"][0]["reason"].endswith("file too short")
    assert build.parsed == []


def test_the_real_registry_says_why_a_library_does_not_load(make: Callable[..., Build], tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    (tmp_path / "plugins.so").write_text("no library")
    job = replace(make("1.7").job, plugin_library=str(tmp_path / "plugins.so"))
    with pytest.raises(BuildError) as caught:
        build(rtx, job, lambda kind, content: None)
    assert caught.value.stage == "plugins"
    assert f"{tmp_path / 'plugins.so'}: file too short" in caught.value.errors[0]["reason"]


@pytest.mark.parametrize("release", TENSORRT)
def test_an_engine_that_cannot_be_loaded_fails_the_inspection(
    release: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], tmp_path: Path
) -> None:
    build = make(release, inspection=str(tmp_path / "inspection.json"))
    build.trt.returns["Builder.build_serialized_network"] = ENGINE
    failing(build, "Runtime.deserialize_cuda_engine", None, "magic tag does not match")
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "inspection"
    assert failure["errors"][0]["reason"] == "magic tag does not match"


@pytest.mark.parametrize("place", ["missing/model.engine", "scratch"])
def test_an_engine_that_cannot_be_written_fails_the_build(
    place: str, make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], tmp_path: Path
) -> None:
    build = make("11.4", engine=str(tmp_path / place))
    build.trt.returns["Builder.build_serialized_network"] = ENGINE
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "builder"
    reason = failure["errors"][0]["reason"]
    assert reason in ("No such file or directory while writing model.engine", "Is a directory while writing scratch")


def test_a_disk_full_of_the_flat_graph_fails_the_build(
    make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: ir.Model, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx.data")

    monkeypatch.setattr(graph_module, "save_onnx", full)
    failure = answer_of(make("10.3"))["failure"]
    assert failure["stage"] == "builder"
    assert failure["errors"][0]["reason"] == "No space left on device ('model.onnx.data')"


@pytest.mark.parametrize(
    ("error", "stage", "reason"),
    [
        (MemoryError(), "builder", "out of memory"),
        (AttributeError("no attribute 'x'"), "api", "AttributeError: no attribute 'x'"),
        (TypeError("incompatible arguments"), "api", "TypeError: incompatible arguments"),
    ],
)
def test_exceptions_of_a_build_are_answers(
    error: Exception,
    stage: str,
    reason: str,
    make: Callable[..., Build],
    answer_of: Callable[[Build], dict[str, Any]],
) -> None:
    build = make("11.4")
    build.trt.returns["Builder.build_serialized_network"] = error
    failure = answer_of(build)["failure"]
    assert failure == {"stage": stage, "errors": [{"node": "", "operator": "", "reason": reason}]}


def test_a_release_that_lost_a_call_is_told_by_its_name(
    make: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = make("11.4")
    monkeypatch.delattr(build.trt, "OnnxParser")
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "api"
    assert "OnnxParser" in failure["errors"][0]["reason"]


@pytest.mark.parametrize("missing", [ImportError("libcudart.so.13 not found"), FileNotFoundError("libnvinfer.so.10")])
def test_a_broken_installation_is_no_other_api(
    missing: Exception,
    make: Callable[..., Build],
    answer_of: Callable[[Build], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise missing

    monkeypatch.setattr("fastervit_trt.engines.worker.importlib.import_module", fail)
    failure = answer_of(make("11.4"))["failure"]
    assert failure["stage"] == "import"
    assert failure["errors"][0]["reason"] == f"{type(missing).__name__}: {missing}"


def test_a_job_travels_as_json(make: Callable[..., Build]) -> None:
    job = make("11.4", options={"level": 2}, timing_cache="/t", inspection="/i", plugin_library="/p").job
    assert Job.from_json(job.to_json()) == job
