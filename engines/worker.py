"""Build one engine in a process of its own: TensorRT may abort, run out of memory or be stopped; the caller must not.

Run as ``python -m fastervit_trt.engines.worker`` with a job as JSON on standard input; answers are JSON lines on
standard output: ``{"progress": …}`` while it builds, then one ``{"result": …}`` or ``{"failure": …}``. The same calls
serve TensorRT 10, 11 and TensorRT-RTX; where these differ, :mod:`fastervit_trt.engines.api` knows.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastervit_trt.engines.api import MODULES, RuntimeName, TensorRtApi
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.host import peak_rss_mib

__all__ = ["BuildError", "Job", "build", "main"]

Answer = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """All a build needs; paths as text, for it travels as JSON."""

    runtime: RuntimeName
    onnx: str
    engine: str  # file to write
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
    """TensorRT refused; ``errors`` as far as it says where and why."""

    def __init__(self, stage: str, errors: list[dict[str, str]]) -> None:
        super().__init__(stage)
        self.stage, self.errors = stage, errors


def main() -> None:
    """Read the job, build, answer."""
    job = Job.from_json(sys.stdin.read())
    try:
        trt = importlib.import_module(MODULES[job.runtime])
        _answer("result", build(trt, job, _answer))
    except BuildError as failed:
        _answer("failure", {"stage": failed.stage, "errors": failed.errors})
    except MemoryError:
        _answer("failure", {"stage": "builder", "errors": [_error("out of memory")]})
    except (AttributeError, TypeError, ImportError) as error:  # an API that differs from the releases known
        _answer("failure", {"stage": "api", "errors": [_error(f"{type(error).__name__}: {error}")]})


def build(trt: Any, job: Job, answer: Answer) -> dict[str, Any]:
    """Build ``job`` with module ``trt`` and write the engine.

    Raises:
        BuildError: the parser or the builder refused, or a file could not be written.
    """
    start = time.perf_counter()
    api, log = TensorRtApi(trt, job.runtime), _Log(trt)
    if job.plugin_library is not None and trt.get_plugin_registry().load_library(job.plugin_library) is None:
        raise BuildError("plugins", [_error(log.text())])
    builder = trt.Builder(log.logger)
    network = api.create_network(builder)
    answer("progress", {"phase": "parsing", "done": 0, "total": 1})
    parser = _parse(api, network, log, job)  # owns weights that the network refers to
    config = _config(api, builder, job, answer)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError("builder", [_error(log.text())])
    _write(Path(job.engine), engine)
    if job.timing_cache is not None:
        _write(Path(job.timing_cache), config.get_timing_cache().serialize())
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


def _parse(api: TensorRtApi, network: Any, log: _Log, job: Job) -> Any:
    parser = api.trt.OnnxParser(network, log.logger)
    with tempfile.TemporaryDirectory(dir=Path(job.engine).parent) as scratch:
        path = job.onnx if api.takes_functions else str(_without_functions(Path(job.onnx), Path(scratch), job))
        if parser.parse_from_file(path):
            return parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    raise BuildError("parser", [_error(e.desc(), api.place_of(e), e.node_operator()) for e in errors])


def _without_functions(path: Path, folder: Path, job: Job) -> Path:
    """The graph for parsers that look at functions before plugins, or know none.

    With the plugin library, operators that a plugin serves lose their function, so that the parser falls back to it.
    """
    import onnx_ir as ir

    from fastervit_trt.export.graph import inline_functions, save_onnx

    model = ir.load(path)
    served = {n.op_identifier() for n in model.graph if job.plugin_library and "plugin_namespace" in n.attributes}
    for identifier in served:
        del model.functions[identifier]
    inline_functions(model)
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
        cache = config.create_timing_cache(known.read_bytes() if known.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return config


def _inspect(api: TensorRtApi, plan: Any, log: _Log, job: Job) -> str:
    """What the engine inspector says, as JSON; the engine was built a moment ago by this very process."""
    runtime = api.trt.Runtime(log.logger)
    if BuildOptions.from_record(job.options).version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError("inspection", [_error(log.text())])
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
    print(json.dumps({kind: content}), flush=True)


class _Log:
    """Keeps error messages; drops the one about an absent driver, which an ahead-of-time build does not need."""

    def __init__(self, trt: Any) -> None:
        messages: list[str] = []
        self.messages = messages

        class Collect(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR and "Cuda Runtime" not in message:
                    messages.append(message)

        self.logger = Collect()

    def text(self) -> str:
        return "; ".join(self.messages[-3:]) or "no reason given"


def _progress_monitor(trt: Any, answer: Answer) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            answer("progress", {"phase": phase, "done": step + 1, "total": self.totals.get(phase, 0)})
            return True

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

    return Monitor()


if __name__ == "__main__":
    main()
