"""Build one engine in a process of its own: TensorRT may abort, run out of memory or be stopped; the caller must not.

Run as ``python -m fastervit_trt.engines.worker`` with a job as JSON on standard input; answers are JSON lines on
standard output: ``{"progress": …}`` while it builds, then one ``{"result": …}`` or ``{"failure": …}``. The same calls
serve TensorRT 10, 11 and TensorRT-RTX; where these differ, :mod:`fastervit_trt.engines.api` knows.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastervit_trt.engines.api import MODULES, RuntimeName, TensorRtApi
from fastervit_trt.engines.failures import ABSENT_DRIVER
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.host import peak_rss_mib

__all__ = ["BuildError", "Job", "build", "main"]

Answer = Callable[[str, dict[str, Any]], None]

_ERRORS = 3  # the last ones say why a build failed; before them TensorRT may tell of kernels it did without
_NO_KERNEL = "Could not find any implementation"
# Warnings that say why TensorRT found no kernel, or made no builder at all.
_TELLING = re.compile(
    r"insuff?icient memory|memory is insufficient|could not be allocated|CUDA initialization failure", re.IGNORECASE
)


@dataclass(frozen=True)
class Job:
    """All a build needs; paths as text, for it travels as JSON."""

    runtime: RuntimeName
    onnx: str
    engine: str  # file to write
    scratch: str  # folder for files of the build, which the caller removes
    input: str  # name of the images
    profiles: list[list[list[int]]]  # shapes (min, opt, max) of each; none where the graph's batch is static
    options: dict[str, Any] = field(default_factory=dict)
    compute_capability: str | None = None  # None: the GPU of this machine
    plugin_library: str | None = None
    timing_cache: str | None = None  # file to begin with and to write to
    inspection: str | None = None  # file for what the engine inspector says; needs a GPU

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


class BuildError(Exception):
    """TensorRT refused, at a stage of :class:`fastervit_trt.engines.failures.Failure`; ``errors`` say where and why."""

    def __init__(self, stage: str, errors: list[dict[str, str]]) -> None:
        super().__init__(stage)
        self.stage, self.errors = stage, errors


def main() -> None:
    """Read the job, build, answer."""
    job = Job.from_json(sys.stdin.read())
    try:
        _answer("result", build(_import(job.runtime), job, _answer))
    except BuildError as failed:
        _answer("failure", {"stage": failed.stage, "errors": failed.errors})
    except MemoryError:
        _answer("failure", {"stage": "builder", "errors": [_error("out of memory")]})
    except OSError as error:
        where = f" ('{error.filename}')" if error.filename else ""
        _answer("failure", {"stage": "builder", "errors": [_error(f"{error.strerror or error}{where}")]})
    except (AttributeError, TypeError) as error:  # an API that differs from the releases known
        _answer("failure", {"stage": "api", "errors": [_error(f"{type(error).__name__}: {error}")]})


def build(trt: Any, job: Job, answer: Answer) -> dict[str, Any]:
    """Build ``job`` with module ``trt`` and write the engine.

    Raises:
        BuildError: the parser or the builder refused, or a file could not be written.
    """
    start = time.perf_counter()
    api, log = TensorRtApi(trt, job.runtime), _Log(trt, ahead_of_time=job.compute_capability is not None)
    builder = _builder(trt, log)  # first, for the registry of plugins reports to its logger
    if job.plugin_library is not None and trt.get_plugin_registry().load_library(job.plugin_library) is None:
        raise log.error("plugins")
    network = api.create_network(builder)
    answer("progress", {"phase": "parsing", "done": 0, "total": 1})
    parser = _parse(api, network, log, job)  # owns weights that the network refers to
    config = _config(api, builder, job, answer)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise log.error("builder")
    _write(Path(job.engine), engine)
    if job.timing_cache is not None and (timing := config.get_timing_cache()) is not None:
        _write(Path(job.timing_cache), timing.serialize())
    if job.inspection is not None:
        answer("progress", {"phase": "inspecting", "done": 0, "total": 1})
        _write(Path(job.inspection), _inspect(api, engine, log, job).encode())
    del parser
    return {
        "version": trt.__version__,
        "layers": network.num_layers,
        "seconds": round(time.perf_counter() - start, 2),
        "peak_rss_mib": peak_rss_mib(),
    }


def _import(runtime: RuntimeName) -> Any:
    try:
        return importlib.import_module(MODULES[runtime])
    except (ImportError, OSError) as error:  # a library of its own or of CUDA is missing
        raise BuildError("import", [_error(f"{type(error).__name__}: {error}")]) from error


def _builder(trt: Any, log: _Log) -> Any:
    try:
        return trt.Builder(log.logger)
    except TypeError as error:  # how the bindings say that CUDA could not be initialised
        raise log.error("builder", otherwise=str(error)) from error


def _parse(api: TensorRtApi, network: Any, log: _Log, job: Job) -> Any:
    parser = api.trt.OnnxParser(network, log.logger)
    path = job.onnx if api.takes_functions else str(_without_functions(Path(job.onnx), Path(job.scratch), job))
    if parser.parse_from_file(path):
        return parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    raise BuildError("parser", [_error(e.desc(), api.place_of(e), e.node_operator()) for e in errors])


def _without_functions(path: Path, folder: Path, job: Job) -> Path:
    """The graph for parsers that look at functions before plugins, or know none.

    With the plugin library, the calls that a plugin serves stay as they are, so that the parser finds nothing else.
    """
    import onnx_ir as ir

    from fastervit_trt.export.graph import fused_calls, inline_call, inline_functions, save_onnx

    model = ir.load(path)
    calls = fused_calls(model)
    served = [call for call in calls if job.plugin_library and "plugin_namespace" in call.attributes]
    if not served:
        inline_functions(model)
    else:
        for call in calls:
            if call not in served:
                inline_call(model, call)
        model.functions.clear()
    return save_onnx(model, folder)[0]


def _config(api: TensorRtApi, builder: Any, job: Job, answer: Answer) -> Any:
    trt, options = api.trt, BuildOptions.from_record(job.options)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else an engine cannot say what it runs in
    config.progress_monitor = _progress_monitor(trt, answer)
    api.set_target(config, job.compute_capability)
    for pool, name in (("WORKSPACE", "workspace_mib"), ("TACTIC_SHARED_MEMORY", "shared_memory_kib")):
        if (limit := options.bytes_of(name)) is not None:  # type: ignore[arg-type]
            config.set_memory_pool_limit(getattr(trt.MemoryPoolType, pool), limit)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.max_tactics is not None:
        config.max_num_tactics = options.max_tactics
    if options.tiling is not None:
        config.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, options.tiling.upper())
    api.set_hardware_compatibility(config, options.hardware_compatibility)
    if options.version_compatible:
        api.set_version_compatible(config)
    if options.strip_weights:
        api.set_strip_weights(config)
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(job.input, *(tuple(shape) for shape in shapes))
        config.add_optimization_profile(profile)
    if job.timing_cache is not None:
        known = Path(job.timing_cache)
        _set_timing_cache(config, known.read_bytes() if known.is_file() else b"")
    return config


def _set_timing_cache(config: Any, known: bytes) -> None:
    for content in (known, b""):  # what TensorRT does not take is measured anew
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _inspect(api: TensorRtApi, plan: Any, log: _Log, job: Job) -> str:
    """What the engine inspector says, as JSON; the engine was built a moment ago by this very process."""
    runtime = api.trt.Runtime(log.logger)
    if BuildOptions.from_record(job.options).version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise log.error("inspection")
    inspector = engine.create_engine_inspector()
    # With a dynamic batch TensorRT 10 tells types only for a context whose shapes are set.
    if job.profiles and not BuildOptions.from_record(job.options).strip_weights:
        context = engine.create_execution_context()
        if context is not None and context.set_input_shape(job.input, tuple(job.profiles[0][1])):
            inspector.execution_context = context
    text: str = inspector.get_engine_information(api.trt.LayerInformationFormat.JSON)
    return text


def _write(path: Path, content: Any) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BuildError("builder", [_error(f"{error.strerror} while writing {path.name}")]) from error


def _error(reason: str, node: str = "", operator: str = "") -> dict[str, str]:
    return {"node": node, "operator": operator, "reason": reason}


def _answer(kind: str, content: dict[str, Any]) -> None:
    print(f"\n{json.dumps({kind: content})}", flush=True)  # native code may have left a line unfinished


class _Log:
    """Keeps errors, and of the warnings the last one that explains them."""

    def __init__(self, trt: Any, *, ahead_of_time: bool) -> None:
        errors: list[str] = []
        telling: list[str] = []
        self.errors, self.telling = errors, telling

        class Collect(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    if not (ahead_of_time and ABSENT_DRIVER.search(message)):
                        errors.append(message)
                elif severity == trt.ILogger.Severity.WARNING and _TELLING.search(message):
                    telling[:] = [message]

        self.logger = Collect()

    def error(self, stage: str, otherwise: str = "no reason given") -> BuildError:
        """What was said last, each thing once."""
        said = list(dict.fromkeys(reversed(self.errors)))[:_ERRORS][::-1]
        if not said or any(_NO_KERNEL in error for error in said):
            said += self.telling
        return BuildError(stage, [_error(reason) for reason in said or [otherwise]])


def _progress_monitor(trt: Any, answer: Answer) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.done: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase], self.done[phase] = steps, 0

        def step_complete(self, phase: str, step: int) -> bool:
            self.report(phase, step + 1)
            return True

        def phase_finish(self, phase: str) -> None:  # some phases end without their last steps
            if self.done.get(phase) != self.totals.get(phase):
                self.report(phase, self.totals[phase])

        def report(self, phase: str, done: int) -> None:
            self.done[phase] = done
            answer("progress", {"phase": phase, "done": done, "total": self.totals.get(phase, 0)})

    return Monitor()


if __name__ == "__main__":
    main()
