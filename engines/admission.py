"""An engine and its record in a manifest in, the engine's verified bytes out, before anything is deserialised.

Deserialising an engine runs code from it, and TensorRT's own check of an engine's validity does not notice changes. So
everything is compared before: the record with this machine, the signature with the keys that are trusted, the file with
its hash. What can be told cheaply comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastervit_trt.artifacts import Manifest
from fastervit_trt.console import warn
from fastervit_trt.engines.admission_checks import Checks, rebuild_command
from fastervit_trt.engines.api import NAMES
from fastervit_trt.engines.keys import Verdict
from fastervit_trt.engines.machine import Machine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["AdmittedEngine", "EngineCheck", "Machine", "admit", "check_engines", "rebuild_command"]


@dataclass(frozen=True)
class AdmittedEngine:
    """An engine that may be deserialised here."""

    file: str
    content: bytes = field(repr=False)  # the very bytes that were hashed: the file may be another by now
    plugin_library: Path | None  # to be loaded into the plugin registry before
    graph: Path | None  # to refit a stripped engine from
    host_code: bool  # whether it holds TensorRT's own runtime, which engine_host_code_allowed has to allow
    verdict: Verdict


@dataclass(frozen=True)
class EngineCheck:
    """What speaks against an engine here, and what is merely worth knowing."""

    file: str
    runtime: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    verdict: Verdict | None  # None where the record is too damaged to tell


def admit(
    folder: Path,
    manifest: Manifest,
    record: Mapping[str, Any],
    *,
    trust: bool = False,
    batch: int | None = None,
    machine: Machine | None = None,
) -> AdmittedEngine:
    """Check everything that can be told without running anything of the engine.

    Args:
        folder: the export.
        record: one of ``manifest.engines``.
        trust: take an engine that nobody signed, or somebody unknown did; one whose signature is wrong stays out.
        batch: images per call, if it is known already.
        machine: this one by default.

    Raises:
        FasterViTError: the first thing that speaks against the engine, and the command that builds it anew.
    """
    checks = Checks(folder, manifest, record, trust, batch, machine)
    for problem in checks.problems():
        raise FasterViTError(problem)
    for warning in checks.warnings():
        warn(warning)
    assert checks.content is not None
    return AdmittedEngine(
        file=record["file"],
        content=checks.content,
        plugin_library=checks.plugin_library,
        graph=folder / GRAPH_FILE if record["stripped"] else None,
        host_code=record["version_compatible"],
        verdict=checks.verdict,
    )


def check_engines(folder: Path, *, trust: bool = False, machine: Machine | None = None) -> list[EngineCheck]:
    """What ``admit`` would say of each engine of an export: all of it, not only the first thing.

    Args:
        machine: for engines of its runtime; this one by default, and for the others.

    Raises:
        FasterViTError: no export, or a key cannot be read.
    """
    manifest, found = Manifest.read(folder), []
    machines = {} if machine is None else {machine.runtime: machine}
    for record in manifest.engines:
        runtime = str(record.get("runtime"))
        if runtime in NAMES and runtime not in machines:
            machines[runtime] = Machine.detect(runtime)
        checks = Checks(folder, manifest, record, trust, None, machines.get(runtime))
        problems = tuple(checks.problems())
        sound = checks.sound
        verdict, warnings = (checks.verdict, tuple(checks.warnings())) if sound else (None, ())
        found.append(EngineCheck(str(record.get("file")), runtime, problems, warnings, verdict))
    return found
