"""Exports that a sweep wants, made by ``fastervit-export``, and their engines, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fastervit_trt.artifacts import MANIFEST_NAME, Manifest
from fastervit_trt.benchmarks.sweep.matrix import Subject, open_subject
from fastervit_trt.benchmarks.sweep.plan import AUTO, WantedExport
from fastervit_trt.engines.api import RuntimeName, unavailable_reason
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.runtime.backends import why_no_gpu
from fastervit_trt.errors import FasterViTError

__all__ = ["add_engines", "made_export", "wanted_engines"]

_EXPORT, _ENGINE = "export", "engine"  # commands
_RUNTIMES: dict[str, RuntimeName] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}  # by backend
_ERROR = "error: "
_LONGEST_REASON = 400


def wanted_engines(backends: Sequence[str], device: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What exports are to be given for ``backends`` on this machine's GPU; nothing where there is none to run it."""
    names = [name for name in _RUNTIMES if name in backends]
    if AUTO in backends:
        names += [name for name, runtime in _RUNTIMES.items() if unavailable_reason(runtime) is None][:1]
    if why_no_gpu("an engine") is not None:
        return ()
    arguments: dict[str, tuple[str, ...]] = {"tensorrt": ("--runtime", "tensorrt")}
    if capability := Machine.detect("tensorrt-rtx", device).capability:
        arguments["tensorrt-rtx"] = ("--runtime", "rtx", "--compute-capability", capability)
    return tuple((name, arguments[name]) for name in dict.fromkeys(names) if name in arguments)


def made_export(wanted: WantedExport, folder: Path, log: Path) -> Subject:
    """The export ``wanted`` in ``folder``: the one of an earlier attempt if it was made by the same arguments.

    Raises:
        FasterViTError: it cannot be made; the message is the command's own.
    """
    recipe = folder.with_name(f"{folder.name}.json")
    if (folder / MANIFEST_NAME).is_file() and _read(recipe) == list(wanted.arguments):
        return open_subject(folder)
    folder.parent.mkdir(exist_ok=True)
    _run(_EXPORT, [*wanted.arguments, "--output", str(folder), "--overwrite"], log)
    recipe.write_text(json.dumps(wanted.arguments) + "\n")
    return open_subject(folder)


def add_engines(wanted: WantedExport, folder: Path, log: Path) -> dict[str, str]:
    """Build what ``wanted`` is to be given and has not; by backend, why there is none."""
    failed = {}
    for backend, arguments in wanted.engines:
        if any(engine.get("runtime") == _RUNTIMES[backend] for engine in Manifest.read(folder).engines):
            continue
        try:
            _run(_ENGINE, ["build", str(folder), *arguments], log.with_name(f"{log.stem}-{backend}.txt"))
        except FasterViTError as error:
            failed[backend] = f"no engine: {error}"
    return failed


def _run(command: str, arguments: Sequence[str], log: Path) -> None:
    with log.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, "-m", f"fastervit_trt.cli.{command}", *arguments], stdout=stream, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise FasterViTError(_reason(f"fastervit-{command}", log, done.returncode))


def _read(recipe: Path) -> list[str] | None:
    try:
        content: list[str] = json.loads(recipe.read_text())
    except (OSError, ValueError):
        return None
    return content


def _reason(command: str, log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    told = errors[-1] if errors else f"{command} ended with exit code {code}: {lines[-1] if lines else 'no message'}"
    return told[:_LONGEST_REASON]
