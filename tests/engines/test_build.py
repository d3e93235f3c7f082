"""Builds from outside: the cache, less memory, what failures and signals leave behind, real and pretended workers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper

from fastervit_trt.engines import build as build_module
from fastervit_trt.engines.build import BuildRequest, BuiltEngine, PluginLibrary, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

builds = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))
posix = pytest.mark.skipif(os.name != "posix", reason="signals and scripts are POSIX")

RTX = Machine("tensorrt-rtx", "1.7.1.116")
ORIN = Machine("tensorrt", "10.3.0.26", gpu="Orin", capability="8.7", driver="540.4.0")
LIMIT = 10**9


@pytest.fixture
def request_of(exports: Path, tmp_path: Path) -> Callable[..., BuildRequest]:
    """A build of the fp16 export into a folder of its own."""
    (tmp_path / "engines").mkdir()

    def made(**changes: Any) -> BuildRequest:
        request = BuildRequest(
            onnx=exports / "fp16" / "model.onnx",
            engine=tmp_path / "engines" / "model.engine",
            runtime="tensorrt-rtx",
            precision="fp16",
            input_name="images",
            image_shape=(3, 224, 224),
            profiles=(BatchRange(1, 4, 8),),
            compute_capability="8.9",
        )
        return replace(request, **changes)

    return made


@pytest.fixture
def for_orin(request_of: Callable[..., BuildRequest]) -> BuildRequest:
    return request_of(runtime="tensorrt", compute_capability=None)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", LIMIT)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- real builds ---


@dataclass(frozen=True)
class Built:
    """The real build that tests share."""

    request: BuildRequest
    engine: BuiltEngine
    cache: EngineCache
    progress: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def built(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An engine with two profiles, built for real and put into a cache."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "engines").mkdir()
    request = BuildRequest(
        onnx=exports / "fp16" / "model.onnx",
        engine=folder / "engines" / "model.engine",
        runtime="tensorrt-rtx",
        precision="fp16",
        input_name="images",
        image_shape=(3, 224, 224),
        profiles=(BatchRange(1, 1, 1), BatchRange(2, 4, 8)),
        compute_capability="8.9",
        options=BuildOptions(workspace_mib=256),
    )
    cache, progress = EngineCache(folder / "cache", LIMIT), []

    def show(phase: str, done: int, total: int) -> None:
        progress.append((phase, done, total))

    return Built(request, build_engine(request, show, cache), cache, progress)


@pytest.fixture
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Any, on_progress: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(build_module, "_run_worker", refuse)


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


@builds
@pytest.mark.usefixtures("_no_worker")
def test_the_same_build_again_is_a_copy(built: Built, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    request = replace(built.request, engine=tmp_path / "again.engine")
    again = build_engine(request, lambda *step: seen.append(step), built.cache)
    assert again == replace(built.engine, path=request.engine, from_cache=True)
    assert request.engine.read_bytes() == built.engine.path.read_bytes()
    assert seen == [("from the cache", 1, 1)]


@builds
def test_a_damaged_entry_is_built_anew(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = EngineCache(tmp_path / "cache", LIMIT)
    shutil.copytree(built.cache.folder, cache.folder)
    (entry,) = cache.entries()
    content = bytearray((entry.path / "engine").read_bytes())
    content[len(content) // 2] ^= 1
    (entry.path / "engine").write_bytes(content)
    request = replace(built.request, engine=tmp_path / "again.engine")
    again = build_engine(request, cache=cache)
    assert again.from_cache is False
    assert "is damaged; it is removed and built anew" in capsys.readouterr().err
    assert request.engine.read_bytes() != bytes(content)
    assert (cache.entries()[0].path / "engine").read_bytes() == request.engine.read_bytes()


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


def static(onnx_path: Path, folder: Path, batch: int) -> Path:
    graph = onnx.load(onnx_path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(graph, folder / "static.onnx")
    return folder / "static.onnx"


# --- a pretended worker: what it is asked, and what its answers lead to ---

WORKER = """#!{python} -I
import json, os, signal, sys, time
from pathlib import Path
here, job = Path({folder!r}), json.load(sys.stdin)
plan = json.loads((here / "plan.json").read_text())
step = plan.pop(0) if len(plan) > 1 else plan[0]
(here / "plan.json").write_text(json.dumps(plan))
timing = job["timing_cache"] and Path(job["timing_cache"])
job["timing_known"] = timing.read_text() if timing and timing.exists() else None
with (here / "jobs").open("a") as jobs:
    jobs.write(json.dumps(job) + "\\n")
number = len((here / "jobs").read_text().splitlines())
def answer(kind, content):
    print("\\n" + json.dumps({{kind: content}}), flush=True)
def fail(stage, reason, node="", operator=""):
    answer("failure", {{"stage": stage, "errors": [{{"node": node, "operator": operator, "reason": reason}}]}})
answer("progress", {{"phase": "parsing", "done": 0, "total": 1}})
(Path(job["scratch"]) / "model.onnx").write_text("a flat graph")
Path(job["engine"]).write_text("half an engi")
if step == "memory":
    fail("builder", "Error Code 2: OutOfMemory (Requested size was 16581132288 bytes.)")
elif step == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif step == "refused":
    fail("parser", "no such thing", "head/Gemm_0", "Gemm")
elif step == "workspace":
    fail("builder", "no tactics to implement the operation within workspace limit")
elif step == "dies":
    sys.exit("first line\\nlast words \\xff")
elif step == "hangs":
    time.sleep(60)
else:
    if step == "noisy":
        os.write(1, b"a library says hello\\n[1, 2]\\n{{}}\\n7\\n\\xff\\xfe\\n{{\\"broken\\n no newline")
        os.write(2, b"\\xff\\xfe trouble")
    Path(job["engine"]).write_text("engine %d of %s" % (number, job["options"]))
    if timing:
        timing.write_text("%s timings %d" % (job["timing_known"] or "", number))
    if job["inspection"]:
        Path(job["inspection"]).write_text('{{"Layers": []}}')
    answer("result", {{"version": "10.3.0", "layers": 7, "seconds": 1.5, "peak_rss_mib": 100}})
    if step == "noisy":
        os.write(1, b"bye")
        os.kill(os.getpid(), signal.SIGSEGV)  # as libraries may when they are unloaded
"""


@dataclass
class PretendedWorker:
    """Stands where the worker's Python would."""

    folder: Path
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()

    def will(self, *steps: str) -> None:
        """What each run does, the last one for ever: ok, noisy, memory, killed, refused, workspace, dies, hangs."""
        (self.folder / "plan.json").write_text(json.dumps(steps))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        path = self.folder / "jobs"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def options(self) -> list[dict[str, Any]]:
        return [job["options"] for job in self.jobs]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedWorker:
    folder = tmp_path / "worker"
    folder.mkdir()
    pretended, script = PretendedWorker(folder), folder / "python"
    script.write_text(WORKER.format(python=sys.executable, folder=str(folder)))
    script.chmod(0o755)
    pretended.will("ok")
    monkeypatch.setattr(build_module.sys, "executable", str(script))
    monkeypatch.setattr(build_module.tempfile, "tempdir", str(pretended.temporary))
    return pretended


def left_behind(request: BuildRequest, worker: PretendedWorker) -> list[Path]:
    return [*request.engine.parent.iterdir(), *worker.temporary.iterdir()]


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
def test_without_a_cache_every_build_is_built(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    contents = set()
    for _ in range(2):
        assert build_engine(for_orin, machine=ORIN).from_cache is False
        contents.add(for_orin.engine.read_text())
    assert len(worker.jobs) == len(contents) == 2
    assert {job["timing_cache"] for job in worker.jobs} == {None}


@posix
@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"profiles": (BatchRange(1, 4, 9),)},
        {"profiles": (BatchRange(1, 4, 8), BatchRange(1, 1, 1))},
        {"options": BuildOptions(workspace_mib=64)},
        {"machine": replace(ORIN, version="10.4.0.26")},
        {"machine": replace(ORIN, gpu="Orin Nano")},
        {"machine": replace(ORIN, driver="540.5.0")},
        {"machine": replace(ORIN, capability="8.9")},
        {"plugins": b"library"},
        {"plugins": b"another library"},
        {"onnx": "weights"},
    ],
)
def test_anything_else_is_no_hit(
    change: dict[str, Any], for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache, tmp_path: Path
) -> None:
    if "plugins" in change:
        (tmp_path / "plugins.so").write_bytes(b"library")
        with_library = replace(for_orin, plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"))
        before = with_library if change["plugins"] != b"library" else for_orin
        (tmp_path / "plugins.so").write_bytes(change["plugins"])
        after = replace(before, plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"))
    elif "onnx" in change:
        graph = onnx.load(for_orin.onnx)
        weights = numpy_helper.to_array(graph.graph.initializer[0])
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights + 1, graph.graph.initializer[0].name))
        onnx.save(graph, tmp_path / "model.onnx")
        before, after = for_orin, replace(for_orin, onnx=tmp_path / "model.onnx")
    else:
        before, after = for_orin, replace(for_orin, **{k: v for k, v in change.items() if k != "machine"})
    build_engine(before, cache=cache, machine=ORIN)
    assert build_engine(before, cache=cache, machine=ORIN).from_cache is True
    assert build_engine(after, cache=cache, machine=change.get("machine", ORIN)).from_cache is False
    assert len(worker.jobs) == 2 and len({path.name for path in cache.folder.glob("[0-9a-f]*")}) == 2


@posix
def test_weights_beside_a_graph_are_part_of_it(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache, tmp_path: Path
) -> None:
    graph = onnx.load(for_orin.onnx)
    onnx.save(graph, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    request = replace(for_orin, onnx=tmp_path / "m.onnx")
    build_engine(request, cache=cache, machine=ORIN)
    assert build_engine(request, cache=cache, machine=ORIN).from_cache is True
    weights = np.fromfile(tmp_path / "m.data", dtype=np.uint8)
    weights[100] ^= 1
    weights.tofile(tmp_path / "m.data")
    assert build_engine(request, cache=cache, machine=ORIN).from_cache is False
    (tmp_path / "m.data").unlink()
    with pytest.raises(FasterViTError, match=r"m\.data', which holds weights"):
        build_engine(request, cache=cache, machine=ORIN)


@posix
def test_the_target_of_rtx_is_part_of_it_and_the_gpu_here_is_not(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker, cache: EngineCache
) -> None:
    build_engine(request_of(), cache=cache, machine=RTX)
    here = replace(RTX, gpu="RTX 4090", capability="8.9", driver="580.1")
    assert build_engine(request_of(), cache=cache, machine=here).from_cache is True
    assert build_engine(request_of(compute_capability="8.6"), cache=cache, machine=here).from_cache is False


@posix
def test_times_of_kernels_are_kept_for_other_builds(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache
) -> None:
    for maximum in (8, 9):
        build_engine(replace(for_orin, profiles=(BatchRange(1, 4, maximum),)), cache=cache, machine=ORIN)
    assert [job["timing_known"] for job in worker.jobs] == [None, " timings 1"]
    kept = cache.timing_cache("tensorrt", "10.3.0.26", "Orin", "8.7")
    assert kept is not None and kept.read_text() == " timings 1 timings 2"


@posix
def test_what_a_failed_build_timed_is_not_kept(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache
) -> None:
    worker.will("refused")
    with pytest.raises(FasterViTError):
        build_engine(for_orin, cache=cache, machine=ORIN)
    assert cache.timing_cache("tensorrt", "10.3.0.26", "Orin", "8.7") is None
    assert cache.entries() == []


# --- less memory ---


@posix
@pytest.mark.parametrize("how", ["memory", "killed"])
def test_a_build_that_ran_out_of_memory_is_tried_with_less(
    how: str,
    for_orin: BuildRequest,
    worker: PretendedWorker,
    cache: EngineCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker.will(how, how, "ok")
    request = replace(for_orin, options=BuildOptions(workspace_mib=1024, max_tactics=None, shared_memory_kib=48))
    engine = build_engine(request, cache=cache, machine=ORIN)
    limits = {"shared_memory_kib": 48}
    assert worker.options == [
        {"workspace_mib": 1024, **limits},
        {"workspace_mib": 512, "level": 2, **limits},
        {"workspace_mib": 128, "level": 1, **limits},
    ]
    assert engine.options == BuildOptions(workspace_mib=128, level=1, shared_memory_kib=48)
    assert engine.retries == (
        "out of memory with --workspace 1024 --shared-memory 48",
        "out of memory with --workspace 512 --shared-memory 48 --level 2",
    )
    warnings = capsys.readouterr().err.splitlines()
    assert [line.partition("; trying with ")[2] for line in warnings] == [
        "--workspace 512 --shared-memory 48 --level 2",
        "--workspace 128 --shared-memory 48 --level 1",
    ]
    assert left_behind(request, worker) == [request.engine]
    again = build_engine(request, cache=cache, machine=ORIN)  # asked as before, got as before
    assert again == replace(engine, from_cache=True) and len(worker.jobs) == 3


@posix
def test_rtx_is_tried_with_less_workspace_only(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker
) -> None:
    worker.will("killed", "killed", "killed", "ok")
    engine = build_engine(request_of(), machine=RTX)
    assert worker.options == [{}, {"workspace_mib": 2048}, {"workspace_mib": 512}, {"workspace_mib": 128}]
    assert engine.options == BuildOptions(workspace_mib=128)


@posix
def test_when_nothing_helps_all_attempts_are_told(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.will("memory")
    with pytest.raises(FasterViTError) as failed:
        build_engine(for_orin, cache=cache, machine=ORIN)
    assert len(worker.jobs) == 4
    assert str(failed.value) == (
        "TensorRT cannot build an engine for this GPU: OutOfMemory (Requested size was 16581132288 bytes.); close "
        "other programs, lower the largest --batch, or build where there is more memory; before: out of memory with no "
        "limits; out of memory with --workspace 2048 --level 2; out of memory with --workspace 512 --level 1"
    )
    assert capsys.readouterr().err.count("; trying with ") == 3  # not after the last
    assert left_behind(for_orin, worker) == []
    assert cache.entries() == []


@posix
def test_what_less_memory_broke_is_told_with_what_was_tried(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    worker.will("killed", "workspace")
    with pytest.raises(FasterViTError) as failed:
        build_engine(for_orin, machine=ORIN)
    message = str(failed.value)
    assert "within workspace limit; allow more: --workspace MIB" in message
    assert message.endswith("; before: out of memory with no limits")


@posix
def test_where_nothing_is_left_to_lower_one_attempt_is_enough(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker
) -> None:
    worker.will("killed")
    with pytest.raises(FasterViTError, match=r"killed by SIGKILL.*close other programs"):
        build_engine(request_of(options=BuildOptions(workspace_mib=1)), machine=RTX)
    assert len(worker.jobs) == 1


# --- what failures leave behind ---


@posix
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            "refused",
            r"^TensorRT parser refuses Gemm in head \(node 'head/Gemm_0'\): no such thing; try a later release",
        ),
        ("workspace", "within workspace limit; allow more: --workspace MIB$"),
        ("dies", r"^TensorRT ended without an answer \(exit code 1\): last words"),
    ],
)
def test_other_failures_are_not_tried_again_and_leave_nothing(
    step: str, message: str, for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache
) -> None:
    worker.will(step)
    with pytest.raises(FasterViTError, match=message):
        build_engine(for_orin, cache=cache, machine=ORIN)
    assert len(worker.jobs) == 1
    assert left_behind(for_orin, worker) == [] and cache.entries() == []


@posix
def test_without_its_plugins_a_graph_may_be_taken(
    for_orin: BuildRequest, worker: PretendedWorker, tmp_path: Path
) -> None:
    worker.will("refused")
    (tmp_path / "plugins.so").write_bytes(b"library")
    request = replace(for_orin, plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"))
    with pytest.raises(FasterViTError, match=r"; try --plugins off$"):
        build_engine(request, machine=ORIN)


@posix
def test_what_stops_the_caller_stops_the_worker(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    worker.will("hangs")

    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_engine(for_orin, stop, machine=ORIN)
    assert time.monotonic() - start < 30  # it would have slept for a minute
    assert left_behind(for_orin, worker) == []
    assert psutil.Process().children() == []


@posix
def test_noise_on_standard_output_is_passed_over(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    worker.will("noisy")
    seen: list[tuple[str, int, int]] = []
    engine = build_engine(for_orin, lambda *step: seen.append(step), machine=ORIN)
    assert engine.layers == 7 and seen == [("parsing", 0, 1)]
    assert for_orin.engine.read_text().startswith("engine 1")


# --- signals to real processes in the middle of real builds ---

STOPPED = """
import sys
from pathlib import Path
import psutil
from fastervit_trt.console import command_app, run_command
from fastervit_trt.engines.build import BuildRequest, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.export.batch import BatchRange

app = command_app()
onnx, engine, cache = map(Path, sys.argv[1:])

@app.command()
def build() -> None:
    def show(phase: str, done: int, total: int) -> None:
        if phase == "Building engine" and done == 1:
            (worker,) = psutil.Process().children()
            worker.suspend()  # so that it cannot end before the signal is there
            print(worker.pid, flush=True)

    request = BuildRequest(
        onnx, engine, "tensorrt-rtx", "fp16", "images", (3, 224, 224), (BatchRange(1, 2, 4),), "8.9"
    )
    build_engine(request, show, EngineCache(cache, 10**9))

run_command(app, [])
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a test; those it leaves are killed with their group."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # also a worker that outlived its caller
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(command: list[str], temporary: Path) -> subprocess.Popen[str]:
    temporary.mkdir()
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,  # a group of its own, as a terminal gives to what runs in its foreground
    )


@posix
@builds
def test_sigterm_in_the_middle_of_a_build_leaves_nothing(
    built: Built, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    engines, cache = tmp_path / "engines", tmp_path / "cache"
    engines.mkdir()
    shutil.copytree(built.cache.folder, cache)
    before = tree(cache)
    arguments = [str(built.request.onnx), str(engines / "model.engine"), str(cache)]
    process = start([sys.executable, "-c", STOPPED, *arguments], tmp_path / "tmp")
    started.append(process)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "error: interrupted; nothing half-written was kept"
    assert not psutil.pid_exists(worker)
    assert list(engines.iterdir()) == [] and list((tmp_path / "tmp").iterdir()) == []
    assert tree(cache) == before


@posix
@builds
def test_ctrl_c_of_the_command_leaves_the_export_as_it_was(
    exports: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exports / "fp16", folder)
    before = tree(folder)
    program = "import sys; from fastervit_trt.cli.engine import main; main(sys.argv[1:])"
    arguments = ["build", str(folder), "--runtime", "rtx", "--compute-capability", "8.6", "--no-cache"]
    process = start([sys.executable, "-c", program, *arguments], tmp_path / "tmp")
    started.append(process)
    worker = worker_of(process)
    os.killpg(process.pid, signal.SIGINT)  # the worker gets it, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "error: interrupted; nothing half-written was kept" in errors and "Traceback" not in errors
    assert not worker.is_running()
    assert tree(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("export", "tmp")] == []
    assert list((tmp_path / "tmp").iterdir()) == []


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The worker of a command, stopped as soon as it has loaded TensorRT-RTX."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            try:
                if any("tensorrt_rtx" in mapped.path for mapped in child.memory_maps()):
                    child.suspend()
                    return child
            except psutil.Error:  # it has just begun, or ended
                continue
        time.sleep(0.005)
    raise AssertionError("no worker was seen")
