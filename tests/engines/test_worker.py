"""The builder's calls against the recorded API of every TensorRT release, its progress, and the form of its answers."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.worker import Job, main
from tests.engines.api_double import ApiDouble, api_double
from tests.engines.worker_builds import (
    ENGINE,
    INSPECTION,
    LARGE,
    RELEASES,
    SMALL,
    TENSORRT,
    TIMINGS,
    Build,
    runtime_of,
)


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
def test_every_release_takes_all_its_options(release: str, build_of: Callable[..., Build]) -> None:
    trt = api_double(release)
    options = all_options(trt)
    options.check(runtime_of(trt), trt.__version__)  # what the record has is not refused
    build = build_of(release, options=options.record())
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
def test_what_is_not_asked_for_is_left_to_tensorrt(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release).run()
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
def test_networks_are_strongly_typed(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release).run()
    typed = 1 << int(build.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    without_flag = build.trt.__version__.startswith("11.")  # where all networks are
    assert build.calls("Builder.create_network") == [() if without_flag else (typed,)]
    ((network, config),) = build.calls("Builder.build_serialized_network")
    assert build.calls("OnnxParser.__init__")[0][0] is network
    assert build.calls("IOptimizationProfile.set_shape")
    assert type(config).__name__ == "IBuilderConfig"


@pytest.mark.parametrize("release", RELEASES)
def test_each_profile_gets_its_shapes(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release).run()
    shapes = [("images", *(tuple(shape) for shape in profile)) for profile in (SMALL, LARGE)]
    assert build.calls("IOptimizationProfile.set_shape") == shapes
    added = [profile for (profile,) in build.calls("IBuilderConfig.add_optimization_profile")]
    assert len(added) == 2 and added[0] is not added[1]
    static = build_of(release, profiles=[]).run()
    assert static.calls("IBuilderConfig.add_optimization_profile") == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_target_is_named_ahead_of_time_only(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release).run()
    if build.job.runtime == "tensorrt":
        assert not hasattr(build.trt, "ComputeCapability")
        return
    assert build.calls("IBuilderConfig.num_compute_capabilities=") == [(1,)]
    assert build.calls("IBuilderConfig.set_compute_capability") == [(build.trt.ComputeCapability.SM89, 0)]
    assert build.order("IBuilderConfig.num_compute_capabilities=", "IBuilderConfig.set_compute_capability")
    here = build_of(release, compute_capability=None).run()
    assert here.calls("IBuilderConfig.set_compute_capability") == []
    turing = build_of(release, compute_capability="7.5").run()
    assert turing.calls("IBuilderConfig.set_compute_capability") == [(turing.trt.ComputeCapability.SM75, 0)]
    blackwell = build_of(release, compute_capability="12.0").run()
    assert blackwell.calls("IBuilderConfig.set_compute_capability") == [(blackwell.trt.ComputeCapability.SM120, 0)]


@pytest.mark.parametrize("release", TENSORRT)
def test_stripped_engines_can_be_refitted_with_the_same_weights(
    release: str, build_of: Callable[..., Build], tmp_path: Path
) -> None:
    inspection = tmp_path / "inspection.json"
    build = build_of(release, options={"strip_weights": True}, inspection=str(inspection)).run()
    flags = build.trt.BuilderFlag
    assert set(build.calls("IBuilderConfig.set_flag")) == {(flags.STRIP_PLAN,), (flags.REFIT_IDENTICAL,)}
    assert inspection.read_text() == INSPECTION
    assert build.calls("ICudaEngine.create_execution_context") == []  # an engine without weights cannot run


@pytest.mark.parametrize("release", TENSORRT)
def test_the_inspector_sees_shapes(release: str, build_of: Callable[..., Build], tmp_path: Path) -> None:
    inspection = tmp_path / "inspection.json"
    build = build_of(release, inspection=str(inspection)).run()
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
    compatible = build_of(release, options={"version_compatible": True}, inspection=str(inspection)).run()
    assert compatible.calls("Runtime.engine_host_code_allowed=") == [(True,)]  # the lean runtime is host code
    assert compatible.order("Runtime.engine_host_code_allowed=", "Runtime.deserialize_cuda_engine")


@pytest.mark.parametrize("release", TENSORRT)
def test_without_a_context_the_inspector_is_asked_all_the_same(
    release: str, build_of: Callable[..., Build], tmp_path: Path
) -> None:
    inspection = tmp_path / "inspection.json"
    build = build_of(release, inspection=str(inspection))
    build.trt.returns["ICudaEngine.create_execution_context"] = None  # no memory for one
    assert build.run().calls("EngineInspector.execution_context=") == []
    assert inspection.read_text() == INSPECTION


@pytest.mark.parametrize("release", TENSORRT)
def test_the_timing_cache_is_continued(release: str, build_of: Callable[..., Build], tmp_path: Path) -> None:
    file = tmp_path / "timing"
    build = build_of(release, timing_cache=str(file)).run()
    assert build.calls("IBuilderConfig.create_timing_cache") == [(b"",)]
    assert file.read_bytes() == TIMINGS
    again = build_of(release, timing_cache=str(file)).run()
    assert again.calls("IBuilderConfig.create_timing_cache") == [(TIMINGS,)]
    ((_, ignore_mismatch),) = again.calls("IBuilderConfig.set_timing_cache")
    assert ignore_mismatch is False  # times of another device are none of this one
    assert again.order("IBuilderConfig.set_timing_cache", "Builder.build_serialized_network")
    assert again.order("Builder.build_serialized_network", "ITimingCache.serialize")


@pytest.mark.parametrize("lost", ["create_timing_cache", "set_timing_cache"])
def test_a_timing_cache_that_tensorrt_refuses_is_begun_anew(
    lost: str, build_of: Callable[..., Build], tmp_path: Path
) -> None:
    file = tmp_path / "timing"
    file.write_bytes(b"of another device")
    build = build_of("11.4", timing_cache=str(file))
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


def test_a_build_without_a_timing_cache_leaves_none(build_of: Callable[..., Build], tmp_path: Path) -> None:
    build = build_of("11.4", timing_cache=str(tmp_path / "timing"))
    build.trt.returns["IBuilderConfig.get_timing_cache"] = None
    assert build.run().result["layers"] == 7
    assert not (tmp_path / "timing").exists()


@pytest.mark.parametrize("release", TENSORRT)
def test_the_plugin_library_is_loaded_before_the_graph(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release, plugin_library="/opt/libfastervit_plugins.so").run()
    assert build.calls("IPluginRegistry.load_library") == [("/opt/libfastervit_plugins.so",)]
    # The registry has no logger before there is a builder, and would not say why it cannot load a library.
    assert build.order("Builder.__init__", "IPluginRegistry.load_library", "OnnxParser.parse_from_file")


# --- what it says ---


@pytest.mark.parametrize("release", RELEASES)
def test_progress_counts_the_steps_of_each_phase(release: str, build_of: Callable[..., Build]) -> None:
    seen = [message["progress"] for message in build_of(release).run().progress]
    assert seen == [
        {"phase": "parsing", "done": 0, "total": 1},
        {"phase": "Optimizing", "done": 1, "total": 2},
        {"phase": "Optimizing", "done": 2, "total": 2},
        {"phase": "Building", "done": 1, "total": 3},
        {"phase": "Building", "done": 3, "total": 3},  # TensorRT does not tell of all steps
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_success_is_the_last_answer(
    release: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = build_of(release)
    build.trt.returns["Builder.build_serialized_network"] = ENGINE
    result = answer_of(build)["result"]
    assert result["version"] == build.trt.__version__


def test_answers_are_lines_whatever_native_code_prints(
    build_of: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build = build_of("11.4")

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


def test_a_job_travels_as_json(build_of: Callable[..., Build]) -> None:
    job = build_of("11.4", options={"level": 2}, timing_cache="/t", inspection="/i", plugin_library="/p").job
    assert Job.from_json(job.to_json()) == job
