"""A verified graph in, its engines beside it: built, proven, audited, signed; the records that a manifest keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fastervit_trt import __version__
from fastervit_trt.artifacts import MANIFEST_NAME, Manifest, file_entry, new_folder
from fastervit_trt.console import progress_bar, warn
from fastervit_trt.engine_choice import EngineChoice, EngineRequest
from fastervit_trt.engines.api import NAMES, RuntimeName
from fastervit_trt.engines.audit import Audit, audit_engine
from fastervit_trt.engines.audit_files import audit_name, write_audits
from fastervit_trt.engines.build import BuildRequest, BuiltEngine, PluginLibrary, Progress, build_engine
from fastervit_trt.engines.cache import BUILDER_SCHEMA, EngineCache
from fastervit_trt.engines.explain import explain
from fastervit_trt.engines.inspector import kernels_of_inspection
from fastervit_trt.engines.kernels import EngineKernels
from fastervit_trt.engines.keys import signing_key
from fastervit_trt.engines.machine import Machine, platform_name
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.signing import sign_record
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE, fused_calls
from fastervit_trt.export.precision import Precision, Quantised, get_float, get_precision
from fastervit_trt.plugin_choice import judge_plugins, open_session
from fastervit_trt.plugins.library import find_library
from fastervit_trt.plugins.names import DOMAIN

__all__ = ["EngineResult", "Graph", "add_engines", "engine_name", "make_engine"]


@dataclass(frozen=True)
class Graph:
    """What an export says of its graph."""

    onnx: Path
    precision: str
    input_name: str
    image_shape: tuple[int, int, int]  # (channels, height, width)
    batch: BatchRange
    outputs: tuple[str, ...]
    quantised: bool


@dataclass(frozen=True)
class EngineResult:
    """An engine's record for the manifest, not yet signed, and its files."""

    record: dict[str, Any]
    files: tuple[Path, ...]


def engine_name(runtime: RuntimeName, compute_capability: str) -> str:
    """``model.rtx-sm89.engine`` or ``model.trt-sm90.engine``."""
    short = "rtx" if runtime == "tensorrt-rtx" else "trt"
    return f"model.{short}-sm{compute_capability.replace('.', '')}.engine"


def make_engine(graph: Graph, request: EngineRequest, folder: Path) -> EngineResult:
    """Build one engine into ``folder``, prove its precision, audit it.

    Where plugins are for the machine to choose (``auto``), both engines are built and timed, and the faster one kept.

    Raises:
        FasterViTError: see :func:`fastervit_trt.engines.build.build_engine`; or an engine that is not what was asked
            for. Nothing of it is left behind.
    """
    signing_key()  # before a long build, not after it, a folder of keys that cannot be used is said
    machine = Machine.detect(request.runtime)
    path = folder / engine_name(request.runtime, request.compute_capability or machine.capability or "none")
    details = folder / audit_name(path.name)
    _remove(path, details)  # not written over: an export that is added to shares its files with its successor
    try:
        engine, choice = _fastest(graph, request, path, machine)
        audits = [audit_engine(graph.onnx, _kernels(engine, profile)) for profile in range(len(engine.profiles))]
        for unproven in filter(None, (audit.check(path.name) for audit in audits)):
            warn(unproven)
        write_audits(audits, details)
    except BaseException:
        _remove(path, details)
        raise
    record = {**_record(engine, graph, audits), "plugin_choice": choice}
    return EngineResult(record, (path, details))


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _fastest(
    graph: Graph, request: EngineRequest, path: Path, machine: Machine
) -> tuple[BuiltEngine, dict[str, Any] | None]:
    """The engine to keep, and for the manifest how it was chosen, where there was a choice."""
    library = _plugin_library(graph, request)
    if library is None or request.plugins == "on":
        return _build(graph, request, path, machine, library), None
    without, other = _build(graph, request, path, machine, None), path.with_suffix(".plugins")
    try:
        with_plugins = _build(graph, request, other, machine, library)
        opener = open_session(graph.outputs, graph.onnx)
        verdict = judge_plugins(without, with_plugins, graph.image_shape, opener)
        if not verdict.plugins_win:
            return without, verdict.record()
        other.replace(path)
        return replace(with_plugins, path=path), verdict.record()
    except FasterViTError as error:  # there is an engine all the same
        warn(f"plugins are left out: {error}")
        return without, {"kept": "without plugins", "because": str(error)}
    finally:
        other.unlink(missing_ok=True)


def _build(
    graph: Graph, request: EngineRequest, path: Path, machine: Machine, library: PluginLibrary | None
) -> BuiltEngine:
    build = BuildRequest(
        onnx=graph.onnx,
        engine=path,
        runtime=request.runtime,
        precision=graph.precision,
        input_name=graph.input_name,
        image_shape=graph.image_shape,
        profiles=request.profiles or (graph.batch,),
        compute_capability=request.compute_capability,
        options=request.options,
        plugins=library,
    )
    cache = EngineCache.default() if request.use_cache else None
    target = request.compute_capability or machine.capability or ""
    with _shown(f"{NAMES[request.runtime]} {target}{' with plugins' if library else ''}") as show:
        return build_engine(build, show, cache, machine)


def add_engines(folder: Path, choice: EngineChoice) -> tuple[Manifest, list[str]]:
    """Build engines of an export and add them to it; those of the same name are replaced.

    Returns:
        The new manifest and the names of the engines that were built.

    Raises:
        FasterViTError: no export, another graph than the manifest's, or a build that failed; the export stays as it
            was.
    """
    manifest = Manifest.read(folder)
    manifest.check_files(folder, [name for name in manifest.files if name.startswith(GRAPH_FILE)])
    choice.check_precision(_precision(folder, manifest))
    _, *image_shape = manifest.input["shape"]
    graph = Graph(
        onnx=folder / GRAPH_FILE,
        precision=manifest.precision,
        input_name=manifest.input["name"],
        image_shape=(image_shape[0], image_shape[1], image_shape[2]),
        batch=BatchRange.parse(manifest.batch),
        outputs=tuple(output["name"] for output in manifest.outputs),
        quantised=manifest.graph["quantisation"] is not None,
    )
    with new_folder(folder, overwrite=True) as successor:
        shutil.copytree(folder, successor, copy_function=_link, dirs_exist_ok=True)
        results = [make_engine(graph, request, successor) for request in choice.requests]
        files = {**manifest.files, **{path.name: file_entry(path) for result in results for path in result.files}}
        names = [result.record["file"] for result in results]
        kept = [record for record in manifest.engines if record["file"] not in names]
        engines = [*kept, *(sign_record(result.record, files) for result in results)]
        manifest = replace(manifest, engines=engines, engines_skipped=None, files=files)
        (successor / MANIFEST_NAME).unlink()  # it is the old one's file, too
        manifest.write(successor)
    return manifest, names


def _precision(folder: Path, manifest: Manifest) -> Precision:
    """What a GPU must have for the graph; of a mixture, its narrow part."""
    quantisation = manifest.graph["quantisation"]
    if quantisation is None:
        return get_precision(manifest.precision)
    if (form := quantisation.get("form")) is not None:
        raise FasterViTError(
            f"'{folder / GRAPH_FILE}' is made for {form} alone; export the model again without --target"
        )
    narrow = get_precision(quantisation["type"])
    assert isinstance(narrow, Quantised)
    return replace(narrow, base=get_float(quantisation["base"]))


def _link(source: str, target: str) -> None:
    """One file under two names, where the file system can; the engine that replaces it is a file of its own."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _plugin_library(graph: Graph, request: EngineRequest) -> PluginLibrary | None:
    """The library to build with; None where there is none, nothing for it to do, or it is not wanted.

    Raises:
        FasterViTError: plugins were asked for and cannot be had.
    """
    if request.plugins == "off":
        return None
    try:
        if request.runtime == "tensorrt-rtx":
            raise FasterViTError(
                "TensorRT-RTX knows no plugins; leave out --plugins on, or build with --runtime tensorrt"
            )
        if not any("plugin_namespace" in call.attributes for call in fused_calls(ir.load(graph.onnx))):
            raise FasterViTError(f"'{graph.onnx}' has no operators that a plugin serves; leave out --plugins on")
        return PluginLibrary.of(request.plugin_library or find_library("plugins"), __version__)
    except FasterViTError:
        if request.plugins == "on":
            raise
        return None


def _kernels(engine: BuiltEngine, profile: int) -> EngineKernels:
    if engine.inspection is None:
        return plan_kernels(engine.path, profile)
    return kernels_of_inspection(engine.inspection, engine.path.name, profile)


def _record(engine: BuiltEngine, graph: Graph, audits: Sequence[Audit]) -> dict[str, Any]:
    against = explain(graph.onnx, _kernels(engine, 0)) if graph.quantised else []
    return {
        "file": engine.path.name,
        "runtime": engine.runtime,
        "version": engine.version,
        "compute_capability": engine.compute_capability,
        "gpu": engine.gpu,
        "driver": engine.driver,
        "platform": platform_name(),
        "profiles": [[p.minimum, p.optimum, p.maximum] for p in engine.profiles],
        "precision": graph.precision,
        "hardware_compatibility": engine.options.hardware_compatibility,
        "version_compatible": engine.options.version_compatible,
        "stripped": engine.options.strip_weights,
        "plugins": None if engine.plugins is None else _plugin_record(engine.plugins, audits[0]),
        "builder_schema": BUILDER_SCHEMA,
        "onnx_sha256": file_entry(graph.onnx)["sha256"],
        "options": engine.options.record(),
        "layers": engine.layers,
        "build_seconds": engine.seconds,
        "build_peak_rss_mib": engine.peak_rss_mib,
        "from_cache": engine.from_cache,
        "retries": list(engine.retries),
        "against_8_bits": [asdict(finding) for finding in against],
        "audit": {**audits[0].summary, "proven": all(audit.summary["proven"] for audit in audits)},
    }


def _plugin_record(library: PluginLibrary, audit: Audit) -> dict[str, Any]:
    return {
        "file": library.path.name,
        "sha256": library.sha256,
        "version": library.version,
        "namespace": DOMAIN,
        "attentions": [attention.block for attention in audit.attentions if attention.form == "plugin"],
    }


@contextmanager
def _shown(what: str) -> Iterator[Progress]:
    with progress_bar() as progress:
        task = progress.add_task(f"{what} engine", total=None)

        def show(phase: str, done: int, total: int) -> None:
            progress.update(task, description=f"{what}: {phase.lower()}", completed=done, total=total or None)

        yield show
        last = progress.tasks[0].description
        done = f"{what} engine from the cache" if last.endswith("from the cache") else f"{what} engine"
        progress.update(task, description=done, completed=1, total=1)
