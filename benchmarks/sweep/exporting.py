"""Exports that a sweep wants, made by ``fastervit-export``, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fastervit_trt.artifacts import MANIFEST_NAME
from fastervit_trt.benchmarks.sweep.matrix import Subject, open_subject
from fastervit_trt.benchmarks.sweep.plan import WantedExport
from fastervit_trt.errors import FasterViTError

__all__ = ["made_export"]

_COMMAND = ("-m", "fastervit_trt.cli.export")
_ERROR = "error: "
_LONGEST_REASON = 400


def made_export(wanted: WantedExport, folder: Path, log: Path) -> Subject:
    """The export ``wanted`` in ``folder``: the one of an earlier attempt if it was made by the same arguments.

    Raises:
        FasterViTError: it cannot be made; the message is the command's own.
    """
    recipe = folder.with_name(f"{folder.name}.json")
    if (folder / MANIFEST_NAME).is_file() and _read(recipe) == list(wanted.arguments):
        return open_subject(folder)
    folder.parent.mkdir(exist_ok=True)
    arguments = [*wanted.arguments, "--output", str(folder), "--overwrite"]
    with log.open("wb") as stream:
        done = subprocess.run([sys.executable, *_COMMAND, *arguments], stdout=stream, stderr=subprocess.STDOUT)
    if done.returncode:
        raise FasterViTError(_reason(log, done.returncode))
    recipe.write_text(json.dumps(wanted.arguments) + "\n")
    return open_subject(folder)


def _read(recipe: Path) -> list[str] | None:
    try:
        content: list[str] = json.loads(recipe.read_text())
    except (OSError, ValueError):
        return None
    return content


def _reason(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    told = (
        errors[-1]
        if errors
        else f"fastervit-export ended with exit code {code}: {lines[-1] if lines else 'no message'}"
    )
    return told[:_LONGEST_REASON]
