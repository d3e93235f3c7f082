"""Audits beside the engines of an export: written as JSON, and read again where they are what the manifest lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastervit_trt.artifacts import Manifest, sha256_file
from fastervit_trt.engines.audit import Audit
from fastervit_trt.errors import FasterViTError

__all__ = ["audit_name", "read_audits", "write_audits"]


def audit_name(engine: str) -> str:
    """``model.rtx-sm89.audit.json`` of ``model.rtx-sm89.engine``."""
    return f"{engine.removesuffix('.engine')}.audit.json"


def write_audits(audits: Sequence[Audit], path: Path) -> None:
    """The audits of an engine, one per optimisation profile, as JSON."""
    path.write_text(json.dumps([audit.record() for audit in audits], indent=1) + "\n")


def read_audits(path: Path) -> dict[str, list[Audit]]:
    """Engine → audits, one per optimisation profile; of an export folder or of one engine in one.

    Raises:
        FasterViTError: no export, no engine, or an audit that is missing or not the one the manifest lists.
    """
    folder = path.parent if path.is_file() else path
    manifest = Manifest.read(folder)
    engines = [record["file"] for record in manifest.engines if not path.is_file() or record["file"] == path.name]
    if not engines:
        listed = f"the manifest lists no engine '{path.name}'" if path.is_file() else f"'{folder}' has no engines"
        raise FasterViTError(f"{listed}; build one with: fastervit-engine build {folder}")
    audits = {}
    for engine in engines:
        file = folder / audit_name(engine)
        if not file.is_file() or sha256_file(file) != manifest.files.get(file.name, {}).get("sha256"):
            raise FasterViTError(
                f"'{file}' is not what the manifest describes; build again: fastervit-engine build {folder}"
            )
        audits[engine] = [Audit.from_record(record) for record in json.loads(file.read_text())]
    return audits
