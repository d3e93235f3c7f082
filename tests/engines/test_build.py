"""Builds from outside: what a real one says, what is refused before it, what a worker is asked, several profiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.engines.build import BuildRequest, PluginLibrary, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from tests.engines.builds import ORIN, RTX, Built, PretendedWorker, builds, left_behind, posix, static

# --- real builds ---


@builds
def test_a_real_build_says_what_it_did(built: Built) -> None:
    engine, request = built.engine, built.request
    assert (engine.path, engine.runtime, engine.compute_capability) == (request.engine, "tensorrt-rtx", "8.9")
    assert engine.profiles == request.profiles and engine.options == request.options
    assert (engine.gpu, engine.driver, engine.plugins, engine.inspection) == (None, None, None, None)
    assert engine.from_cache is False and engine.retries == ()
    assert [path.name for path in request.engine.parent.iterdir()] == ["model.engine"]


@builds
def test_every_profile_is_in_the_plan(built: Built) -> None:
    launches = [plan_kernels(built.engine.path, profile).launches for profile in (0, 1)]
    assert min(launches) > 20
    with pytest.raises(FasterViTError, match="has 2 optimisation profiles"):
        plan_kernels(built.engine.path, 2)


@builds
def test_progress_of_a_phase_only_grows(built: Built) -> None:
    last: dict[str, tuple[int, int]] = {}
    for phase, done, total in built.progress:
        before, total_before = last.get(phase, (0, total))
        if before == total_before:  # some phases come once for every profile
            before, total_before = 0, total
        assert before < done <= total == total_before or phase == "parsing", (phase, before, done, total)
        last[phase] = done, total
    assert built.progress[0] == ("parsing", 0, 1)
    assert {phase for phase, (done, total) in last.items() if done < total} == {"parsing"}  # all others end
    assert last["Cloning network graph"][1] > 100 and "Building engine" in last


# --- refused before anything is built ---


@pytest.mark.usefixtures("_no_worker")
@pytest.mark.parametrize(
    ("options", "option"),
    [
        (BuildOptions(level=3), "--level"),
        (BuildOptions(max_tactics=3), "--max-tactics"),
        (BuildOptions(tiling="fast"), "--tiling"),
        (BuildOptions(hardware_compatibility="ampere+"), "--hardware-compatibility"),
        (BuildOptions(version_compatible=True), "--version-compatible"),
        (BuildOptions(strip_weights=True), "--strip-weights"),
    ],
)
def test_options_without_effect_on_rtx_are_refused_by_name(
    options: BuildOptions, option: str, request_of: Callable[..., BuildRequest], cache: EngineCache
) -> None:
    request = request_of(options=options)
    with pytest.raises(FasterViTError, match=f"^TensorRT-RTX has no {option}"):
        build_engine(request, cache=cache, machine=RTX)
    assert not request.engine.exists() and not cache.folder.exists()


@pytest.mark.usefixtures("_no_worker")
def test_plugins_are_refused_for_rtx(request_of: Callable[..., BuildRequest], tmp_path: Path) -> None:
    (tmp_path / "plugins.so").write_bytes(b"library")
    library = PluginLibrary.of(tmp_path / "plugins.so", "0.1.0")
    with pytest.raises(FasterViTError, match="TensorRT-RTX has no plugins: it knows none"):
        build_engine(request_of(plugins=library), machine=RTX)


@pytest.mark.usefixtures("_no_worker")
@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Machine("tensorrt", None), r"^TensorRT is not installed: pip install 'fastervit-trt\[gpu\]'"),
        (replace(ORIN, version="10.2.0.19"), r"^TensorRT 10\.2\.0\.19 is too old; 10\.3 or later is needed"),
        (Machine("tensorrt", "11.4.0.106"), "TensorRT builds on the GPU .* none was found here; .* --runtime rtx$"),
    ],
)
def test_what_is_missing_for_tensorrt_is_told(machine: Machine, message: str, for_orin: BuildRequest) -> None:
    with pytest.raises(FasterViTError, match=message):
        build_engine(for_orin, machine=machine)


@pytest.mark.usefixtures("_no_worker")
@pytest.mark.parametrize(
    ("version", "capability", "message"),
    [
        (None, "8.9", "^TensorRT-RTX is not installed"),
        ("1.3.0.35", "8.9", r"^TensorRT-RTX 1\.3\.0\.35 is too old; 1\.4 or later"),
        ("1.4.0.76", "12.1", r"^TensorRT-RTX 1\.4\.0\.76 has no compute capability 12\.1; 1\.5 and later have it$"),
        ("1.7.1.116", None, "^TensorRT-RTX builds on the GPU .* none was found here"),
    ],
)
def test_what_is_missing_for_rtx_is_told(
    version: str | None, capability: str | None, message: str, request_of: Callable[..., BuildRequest]
) -> None:
    with pytest.raises(FasterViTError, match=message):
        build_engine(request_of(compute_capability=capability), machine=Machine("tensorrt-rtx", version))


@pytest.mark.usefixtures("_no_worker")
@pytest.mark.parametrize(
    "profiles", [(BatchRange(1, 4, 8),), (BatchRange(2, 2, 2),), (BatchRange(4, 4, 4), BatchRange(1, 1, 1))]
)
def test_a_static_batch_takes_no_other_profile(
    profiles: tuple[BatchRange, ...], request_of: Callable[..., BuildRequest], tmp_path: Path
) -> None:
    request = request_of(onnx=static(request_of().onnx, tmp_path, 4), profiles=profiles)
    with pytest.raises(
        FasterViTError, match=r"static\.onnx' has a static batch of 4, so no profile .*; export it again"
    ):
        build_engine(request, machine=RTX)


# --- what a worker is asked, and what its answers lead to ---


@posix
def test_a_worker_is_asked_for_all_of_a_request(
    for_orin: BuildRequest, worker: PretendedWorker, tmp_path: Path, cache: EngineCache
) -> None:
    (tmp_path / "plugins.so").write_bytes(b"library")
    request = replace(
        for_orin,
        profiles=(BatchRange(1, 1, 1), BatchRange(2, 4, 8)),
        options=BuildOptions(level=4, workspace_mib=512),
        plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"),
    )
    engine = build_engine(request, cache=cache, machine=ORIN)
    (job,) = worker.jobs
    scratch = Path(job["scratch"])
    assert scratch.parent == request.engine.parent  # where there is room for an engine
    assert job["profiles"] == [[[1, 3, 224, 224]] * 3, [[2, 3, 224, 224], [4, 3, 224, 224], [8, 3, 224, 224]]]
    assert {key: job[key] for key in ("runtime", "onnx", "engine", "input", "options", "compute_capability")} == {
        "runtime": "tensorrt",
        "onnx": str(request.onnx),
        "engine": str(request.engine),
        "input": "images",
        "options": {"level": 4, "workspace_mib": 512},
        "compute_capability": None,
    }
    assert job["plugin_library"] == str(tmp_path / "plugins.so")
    assert (engine.gpu, engine.driver, engine.compute_capability) == ("Orin", "540.4.0", "8.7")
    assert (engine.layers, engine.seconds, engine.peak_rss_mib) == (7, 1.5, 100)
    assert engine.inspection == '{"Layers": []}' and engine.plugins == request.plugins
    assert left_behind(request, worker) == [request.engine]


@posix
def test_a_static_graph_gets_no_profile(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker, tmp_path: Path
) -> None:
    path = static(request_of().onnx, tmp_path, 4)
    build_engine(request_of(onnx=path, profiles=(BatchRange(4, 4, 4),)), machine=RTX)
    build_engine(request_of(profiles=(BatchRange(4, 4, 4),)), machine=RTX)  # one size of a dynamic graph
    assert [job["profiles"] for job in worker.jobs] == [[], [[[4, 3, 224, 224]] * 3]]
    assert {(job["inspection"], job["timing_cache"]) for job in worker.jobs} == {(None, None)}


@posix
def test_noise_on_standard_output_is_passed_over(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    worker.will("noisy")
    seen: list[tuple[str, int, int]] = []
    engine = build_engine(for_orin, lambda *step: seen.append(step), machine=ORIN)
    assert engine.layers == 7 and seen == [("parsing", 0, 1)]
    assert for_orin.engine.read_text().startswith("engine 1")


@posix
def test_without_its_plugins_a_graph_may_be_taken(
    for_orin: BuildRequest, worker: PretendedWorker, tmp_path: Path
) -> None:
    worker.will("refused")
    (tmp_path / "plugins.so").write_bytes(b"library")
    request = replace(for_orin, plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"))
    with pytest.raises(FasterViTError, match=r"; try --plugins off$"):
        build_engine(request, machine=ORIN)
