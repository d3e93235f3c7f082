"""An unpacked bundle in, what will run on this machine out: an engine that came along, one built here, or the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fastervit_trt.artifacts import Manifest
from fastervit_trt.building import add_engines
from fastervit_trt.console import warn
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.install.memory import FreeMemory, MemoryPlan, plan_memory
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engine_choice import EngineChoice, EngineRequest, PluginChoice
from fastervit_trt.engines.admission import check_engines
from fastervit_trt.engines.api import RuntimeName, unavailable_reason
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.signing import sign_record
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.plugins.sources import build_library

__all__ = ["BuildWish", "Provision", "provision"]

Origin = Literal["bundle", "built", "cache", "graph"]
_BACKENDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx", "onnxruntime": "ort-cpu"}
_LIBRARY = "plugins/libfastervit_plugins.so"


@dataclass(frozen=True)
class BuildWish:
    """How an engine is to be built, where the target's own habits do not suit.

    Attributes:
        profiles: the target's default batch where there are none and the graph serves it.
        workspace_mib: the target's default limit where it is None.
        rebuild: build even if an engine that runs here came along.
        stand_in: this machine is not the target: build ahead of time what can be, run the graph.
    """

    profiles: tuple[BatchRange, ...] = ()
    workspace_mib: int | None = None
    plugins: PluginChoice = "auto"
    rebuild: bool = False
    stand_in: bool = False


@dataclass(frozen=True)
class Provision:
    """What will run, and how it came to be."""

    backend: str
    file: str | None  # the engine; None: the graph as it is
    origin: Origin
    record: dict[str, Any] | None  # of the engine, as the manifest has it
    memory: MemoryPlan | None  # None where nothing was built
    plugin: str  # the library in words, or why there is none
    missing: list[str] = field(default_factory=list)  # what a stand-in could not do

    def engine(self) -> dict[str, Any] | None:
        """For the receipt."""
        if self.record is None:
            return None
        names = ("file", "runtime", "version", "compute_capability", "gpu", "driver", "profiles", "options", "plugins")
        built = ("build_seconds", "build_peak_rss_mib", "retries")
        return {"origin": self.origin, **{name: self.record.get(name) for name in (*names, *built)}}


def provision(
    bundle: Bundle, target: Target, wish: BuildWish, free: FreeMemory, step: Callable[[str], Any]
) -> Provision:
    """Make the export of an unpacked bundle run on this machine; its manifest is written anew.

    Args:
        free: memory that a build may count on.
        step: wraps each long step, for progress.

    Raises:
        FasterViTError: too little memory, a build that failed, or plugins that were asked for and cannot be had.
    """
    export = bundle.export_folder
    manifest = _vouched(export, bundle.export)
    if target.runtime == "onnxruntime":
        return Provision("ort-cpu", None, "graph", None, None, "ONNX Runtime takes none")
    library, plugin = _library(bundle, target, wish, step)
    runtime: RuntimeName = target.runtime
    missing = _missing(runtime, target) if wish.stand_in else []
    backend = "ort-cpu" if wish.stand_in else _BACKENDS[runtime]
    if not wish.rebuild and (record := _usable(export, manifest, runtime, target, wish)) is not None:
        return Provision(backend, str(record["file"]), "bundle", record, None, plugin, missing)
    if wish.stand_in and (runtime == "tensorrt" or unavailable_reason(runtime) is not None):
        missing.append(unavailable_reason(runtime) or "TensorRT builds engines on the GPU they are for")
        return Provision(backend, None, "graph", None, None, plugin, missing)
    plan = _plan(bundle, target, wish, free)
    if plan.hint is not None:
        warn(plan.hint)
    _bring_timing_cache(bundle)
    request = EngineRequest(
        runtime,
        target.capability if runtime == "tensorrt-rtx" else None,
        wish.profiles or _default_profiles(manifest, target),
        BuildOptions(workspace_mib=plan.workspace),
        "off" if library is None else wish.plugins,
        plugin_library=library,
    )
    manifest, (name, *_) = add_engines(export, EngineChoice((request,)))
    record = next(record for record in manifest.engines if record["file"] == name)
    return Provision(backend, name, "cache" if record["from_cache"] else "built", record, plan, plugin, missing)


def _vouched(export: Path, manifest: Manifest) -> Manifest:
    """Engines that came along, signed by this machine's own key: the bundle's signature has vouched for them."""
    manifest = replace(manifest, engines=[sign_record(record, manifest.files) for record in manifest.engines])
    manifest.write(export)
    return manifest


def _library(bundle: Bundle, target: Target, wish: BuildWish, step: Callable[[str], Any]) -> tuple[Path | None, str]:
    """The plugin library in the bundle's folder, built from its sources if need be, and what to say of it."""
    came = bundle.manifest.plugin
    if wish.stand_in:
        return None, "none: a stand-in runs the graph"
    if came is None or wish.plugins == "off":
        if wish.plugins == "on":
            raise FasterViTError("no plugins came along; pack the export with --plugins sources, or install with auto")
        return None, "none came along" if came is None else "not wanted"
    path = bundle.folder / came["path"]
    if came["kind"] == "library":
        return path, f"{path.name} {came['version']}, as it came"
    assert target.capability is not None
    architecture = target.capability.replace(".", "")
    try:
        with step(f"plugins for compute capability {target.capability}"):
            built = build_library(path, bundle.folder / _LIBRARY, architectures=architecture)
    except FasterViTError as error:
        if wish.plugins == "on":
            raise
        warn(f"plugins are left out: {error}")
        return None, f"none: {error}"
    return built, f"{built.name} {came['version']}, built here from its sources for {target.capability}"


def _missing(runtime: RuntimeName, target: Target) -> list[str]:
    name = "TensorRT-RTX" if runtime == "tensorrt-rtx" else "TensorRT"
    return [f"no engine was run: this is no {target.title}; ONNX Runtime's CPU stood in for {name}"]


def _usable(
    export: Path, manifest: Manifest, runtime: RuntimeName, target: Target, wish: BuildWish
) -> dict[str, Any] | None:
    """The record of an engine that came along and would load here; in a rehearsal, that is for the target."""
    records: dict[str, dict[str, Any]] = {
        str(record["file"]): record for record in manifest.engines if record["runtime"] == runtime
    }
    if wish.stand_in:
        fitting = (record for record in records.values() if record["compute_capability"] == target.capability)
        return next(fitting, None)
    for check in check_engines(export):
        found = records.get(str(check.file))
        if found is not None and not check.problems:
            return found
        if found is not None:
            warn(f"the engine that came along is not used: {check.problems[0]}")
    return None


def _plan(bundle: Bundle, target: Target, wish: BuildWish, free: FreeMemory) -> MemoryPlan:
    graph = [name for name in bundle.export.files if name.startswith(GRAPH_FILE)]
    return plan_memory(
        sum(int(bundle.export.files[name]["bytes"]) for name in graph),
        free,
        target.memory,
        workspace_mib=wish.workspace_mib if wish.workspace_mib is not None else target.workspace_mib,
        on_gpu=target.runtime == "tensorrt",
    )


def _default_profiles(manifest: Manifest, target: Target) -> tuple[BatchRange, ...]:
    """The target's habit where the graph serves it, else none: the export's own."""
    own, habit = BatchRange.parse(manifest.batch), BatchRange.parse(target.batch)
    fits = own.dynamic and own.minimum <= habit.minimum and habit.maximum <= own.maximum
    return (habit,) if fits else ()


def _bring_timing_cache(bundle: Bundle) -> None:
    """Kernel times that came along, where they were taken on such a GPU with this TensorRT, and none are here."""
    came = bundle.manifest.timing
    if came is None:
        return
    machine = Machine.detect("tensorrt")
    if (machine.version, machine.gpu, machine.capability) != (came["version"], came["gpu"], came["capability"]):
        return
    cache, place = EngineCache.default(), ("tensorrt", came["version"], came["gpu"], came["capability"])
    if cache.timing_cache(*place) is None:
        cache.store_timing_cache(*place, (bundle.folder / came["path"]).read_bytes())
