"""An ONNX file in, an engine out: from the cache, or built in its own process, with less memory where that runs out."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import onnx_ir as ir

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.console import warn
from fastervit_trt.engines.api import FEATURES, NAMES, RuntimeName, check_target, unsuitable_reason
from fastervit_trt.engines.cache import CacheKey, EngineCache, graph_sha256
from fastervit_trt.engines.failures import Failure
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.worker import Job
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

__all__ = ["BuildRequest", "BuiltEngine", "PluginLibrary", "build_engine"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PluginLibrary:
    """The plugins an engine is built with, and will need."""

    path: Path
    version: str
    sha256: str

    @classmethod
    def of(cls, path: Path, version: str) -> PluginLibrary:
        return cls(path, version, sha256_file(path))


@dataclass(frozen=True)
class BuildRequest:
    """One engine.

    Attributes:
        engine: file to write.
        image_shape: (channels, height, width).
        profiles: batches of each optimisation profile; one static batch where the graph's is static.
        compute_capability: what TensorRT-RTX compiles for, ahead of time; None for the GPU of this machine.
    """

    onnx: Path
    engine: Path
    runtime: RuntimeName
    precision: str
    input_name: str
    image_shape: tuple[int, int, int]
    profiles: tuple[BatchRange, ...]
    compute_capability: str | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    plugins: PluginLibrary | None = None

    @property
    def target(self) -> str:
        return f"compute capability {self.compute_capability}" if self.compute_capability else "this GPU"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file and what building it took; of one from the cache, what it took then."""

    path: Path
    runtime: RuntimeName
    version: str
    compute_capability: str
    gpu: str | None  # None: built ahead of time
    driver: str | None
    profiles: tuple[BatchRange, ...]
    options: BuildOptions  # with what was lowered because memory ran out
    plugins: PluginLibrary | None
    layers: int
    seconds: float
    peak_rss_mib: int
    from_cache: bool
    retries: tuple[str, ...]  # why it was tried again, with less
    inspection: str | None  # what TensorRT's engine inspector says, as JSON; None for TensorRT-RTX, whose plan tells


def build_engine(
    request: BuildRequest,
    on_progress: Progress = lambda phase, done, total: None,
    cache: EngineCache | None = None,
    machine: Machine | None = None,
) -> BuiltEngine:
    """Build ``request``, or copy what was built from the same before.

    Args:
        on_progress: called with (phase, steps done, steps in all).
        cache: None to build in any case.
        machine: what is installed and which GPU there is; found out by default.

    Raises:
        FasterViTError: not installed, no GPU, an option this release lacks, a graph it refuses (block, operator,
            reason and next step), or out of memory with everything lowered. Nothing is left behind.
    """
    machine = machine or Machine.detect(request.runtime)
    _check(request, machine)
    key = None if cache is None else _key(request, machine)
    if (
        cache is not None
        and key is not None
        and (known := cache.get(key)) is not None
        and known.copy_to(request.engine)
    ):
        on_progress("from the cache", 1, 1)
        return _engine(request, machine, known.record, from_cache=True)
    try:
        record = _build(request, on_progress, cache, machine)
    except BaseException:
        request.engine.unlink(missing_ok=True)
        raise
    if cache is not None and key is not None:
        cache.put(key, request.engine, record)
    return _engine(request, machine, record, from_cache=False)


def _check(request: BuildRequest, machine: Machine) -> None:
    if (reason := unsuitable_reason(request.runtime, machine.version)) is not None:
        raise FasterViTError(reason)
    assert machine.version is not None
    if request.compute_capability is None and machine.gpu is None:
        raise FasterViTError(
            f"{NAMES[request.runtime]} builds on the GPU that an engine is for, and none was found here; build it "
            "there, or ahead of time with --runtime rtx"
        )
    if request.compute_capability is not None:
        check_target(machine.version, request.compute_capability)
    request.options.check(request.runtime, machine.version)
    if request.plugins is not None:
        FEATURES["plugins"].check(request.runtime, machine.version)
    batch = ir.load(request.onnx).graph.inputs[0].shape
    size = None if batch is None or not isinstance(batch[0], int) else batch[0]
    for profile in request.profiles:
        if size is not None and profile != BatchRange(size, size, size):
            raise FasterViTError(
                f"'{request.onnx}' has a static batch of {size}, so no profile {profile}; export it again"
            )


def _key(request: BuildRequest, machine: Machine) -> CacheKey:
    timed = request.compute_capability is None  # kernels were chosen by timing them on the device
    return CacheKey(
        onnx_sha256=graph_sha256(request.onnx),
        runtime=request.runtime,
        version=machine.version or "",
        target=request.compute_capability or machine.capability or "",
        gpu=machine.gpu if timed else None,
        driver=machine.driver if timed else None,
        precision=request.precision,
        profiles=tuple((p.minimum, p.optimum, p.maximum) for p in request.profiles),
        options=request.options.record(),
        plugins=None if request.plugins is None else (request.plugins.version, request.plugins.sha256),
    )


def _build(request: BuildRequest, on_progress: Progress, cache: EngineCache | None, machine: Machine) -> dict[str, Any]:
    """Try as asked, then with less memory; what the cache keeps of the engine."""
    retries: list[str] = []
    remaining = [request.options, *request.options.with_less_memory(request.runtime)]
    while True:
        options = remaining.pop(0)
        outcome = _attempt(replace(request, options=options), on_progress, cache, machine)
        if isinstance(outcome, dict):
            return {**outcome, "options": options.record(), "retries": retries}
        if not (outcome.out_of_memory and remaining):
            before = f"; before: {'; '.join(retries)}" if retries else ""
            raise FasterViTError(_message(outcome, request) + before)
        retries.append(f"out of memory with {options}")
        warn(f"{retries[-1]}; trying with {remaining[0]}")


def _message(failure: Failure, request: BuildRequest) -> str:
    nodes = (node.name or "" for node in ir.load(request.onnx).graph)
    otherwise = "try a later release of TensorRT" if request.plugins is None else "try --plugins off"
    if request.runtime == "tensorrt-rtx":
        otherwise = "skip engines with --compute-capability none"
    return failure.describe(NAMES[request.runtime], request.target, nodes, otherwise)


def _attempt(
    request: BuildRequest, on_progress: Progress, cache: EngineCache | None, machine: Machine
) -> dict[str, Any] | Failure:
    # Beside the engine, for a copy of the graph may be too large for where temporary files go.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=request.engine.parent) as scratch:
        job, timing = _job(request, Path(scratch)), None
        if cache is not None and request.runtime == "tensorrt":
            place = ("tensorrt", machine.version or "", machine.gpu, machine.capability or "")
            timing = Path(scratch) / "timing"
            if (known := cache.timing_cache(*place)) is not None:
                timing.write_bytes(known.read_bytes())
            job = replace(job, timing_cache=str(timing))
        answer = _run_worker(job, on_progress)
        if isinstance(answer, Failure):
            return answer
        if timing is not None and cache is not None and timing.exists():
            cache.store_timing_cache(*place, timing.read_bytes())
        inspection = None if job.inspection is None else Path(job.inspection).read_text()
        return {**answer, "inspection": inspection}


def _job(request: BuildRequest, scratch: Path) -> Job:
    dynamic = [p for p in request.profiles if p.dynamic or len(request.profiles) > 1 or _is_dynamic(request.onnx)]
    return Job(
        runtime=request.runtime,
        onnx=str(request.onnx),
        engine=str(request.engine),
        scratch=str(scratch),
        input=request.input_name,
        profiles=[[[size, *request.image_shape] for size in (p.minimum, p.optimum, p.maximum)] for p in dynamic],
        options=request.options.record(),
        compute_capability=request.compute_capability,
        plugin_library=None if request.plugins is None else str(request.plugins.path),
        inspection=str(scratch / "inspection.json") if request.runtime == "tensorrt" else None,
    )


def _is_dynamic(onnx: Path) -> bool:
    shape = ir.load(onnx).graph.inputs[0].shape
    return shape is not None and not isinstance(shape[0], int)


def _run_worker(job: Job, on_progress: Progress) -> dict[str, Any] | Failure:
    command = [sys.executable, "-m", "fastervit_trt.engines.worker"]
    answer: dict[str, Any] | None = None
    # The job is a file, not a pipe: a worker that dies before reading it would break the pipe under the writer.
    with tempfile.TemporaryFile("w+") as request, tempfile.TemporaryFile("w+", errors="replace") as stderr:
        request.write(job.to_json())
        request.flush()
        request.seek(0)
        with subprocess.Popen(
            command, stdin=request, stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace"
        ) as worker:
            assert worker.stdout is not None
            try:
                for message in filter(None, map(_json_or_none, worker.stdout)):
                    if "progress" in message:
                        report = message["progress"]
                        on_progress(report["phase"], report["done"], report["total"])
                    elif message.keys() & {"result", "failure"}:
                        answer = message
            except BaseException:
                worker.kill()
                raise
        if answer is None:
            return Failure.of_dead_process(worker.returncode, _last_line(stderr))
    return answer["result"] if "result" in answer else Failure.from_answer(answer["failure"])


def _engine(request: BuildRequest, machine: Machine, record: dict[str, Any], *, from_cache: bool) -> BuiltEngine:
    timed = request.compute_capability is None
    return BuiltEngine(
        path=request.engine,
        runtime=request.runtime,
        version=record["version"],
        compute_capability=request.compute_capability or machine.capability or "",
        gpu=machine.gpu if timed else None,
        driver=machine.driver if timed else None,
        profiles=request.profiles,
        options=BuildOptions.from_record(record["options"]),
        plugins=request.plugins,
        layers=record["layers"],
        seconds=record["seconds"],
        peak_rss_mib=record["peak_rss_mib"],
        from_cache=from_cache,
        retries=tuple(record["retries"]),
        inspection=record["inspection"],
    )


def _last_line(stream: IO[str]) -> str:
    stream.seek(0)
    lines: Sequence[str] = stream.read().strip().splitlines()
    return lines[-1][:300] if lines else ""


def _json_or_none(line: str) -> dict[str, Any] | None:
    """A message of the worker; native code may print to standard output, too."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
