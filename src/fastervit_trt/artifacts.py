"""Artifacts on disk: folders that appear whole or not at all, and the manifest that says what is in them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastervit_trt.errors import FasterViTError

__all__ = ["MANIFEST_NAME", "Manifest", "file_entry", "new_file", "new_folder", "sha256_file", "write_csv"]

MANIFEST_NAME = "manifest.json"
_SCHEMA = 1
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """Everything an export folder claims about itself; ``files`` lets every claim be checked."""

    model: str
    spec: dict[str, Any]  # the model as asked for: name and what differs from it
    num_classes: int
    resolution: tuple[int, int]
    precision: str
    batch: str  # "8" or "1:8:32"
    input: dict[str, Any]
    outputs: list[dict[str, Any]]
    preprocessing: dict[str, Any]
    weights: dict[str, Any]  # where they came from: kind, file name, sha256 or seed
    graph: dict[str, Any]  # opset, nodes, deploy rewrites
    verification: dict[str, Any]
    engines: list[dict[str, Any]]
    engines_skipped: str | None  # why there are none, if there are none
    files: dict[str, dict[str, Any]]  # name → sha256, bytes
    versions: dict[str, str]
    created_utc: str
    task: str = "classification"
    notices: list[str] = field(default_factory=list)
    golden: dict[str, Any] | None = None  # images and outputs that verification used: export/golden.py
    accuracy: dict[str, Any] | None = None  # of the written graph against PyTorch fp32, where images were given
    schema: int = _SCHEMA

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an export folder.

        Raises:
            FasterViTError: no folder, no manifest, damaged, or written by a newer version.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise FasterViTError(f"'{folder}' is no export: it has no {MANIFEST_NAME}; make one with fastervit-export")
        try:
            content = json.loads(path.read_text())
            if content["schema"] > _SCHEMA:
                raise FasterViTError(f"'{path}' has schema {content['schema']}, this version reads up to {_SCHEMA}")
            known = {f.name for f in fields(cls)}
            content["resolution"] = tuple(content["resolution"])
            return cls(**{key: value for key, value in content.items() if key in known})
        except (ValueError, KeyError, TypeError) as error:
            raise FasterViTError(f"'{path}' is damaged ({error}); export the model again") from error

    def check_files(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Compare listed files with their recorded hashes: ``names``, or all of them.

        Raises:
            FasterViTError: names the first file that is missing or was changed.
        """
        for name in self.files if names is None else names:
            path, entry = folder / name, self.files[name]
            if not path.is_file():
                raise FasterViTError(f"'{path}' is missing though the manifest lists it; export the model again")
            if sha256_file(path) != entry["sha256"]:
                raise FasterViTError(f"'{path}' is not the file the manifest describes; export the model again")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


@contextmanager
def new_folder(output: Path, *, overwrite: bool = False, marker: str = MANIFEST_NAME) -> Iterator[Path]:
    """A temporary folder beside ``output`` that becomes ``output`` when the block succeeds and vanishes when it fails.

    With ``overwrite`` an existing folder stays in place until its successor is complete; only folders that hold
    ``marker`` (or nothing) are ever replaced.

    Raises:
        FasterViTError: ``output`` exists (without ``overwrite``), or its parent cannot be written to.
    """
    output = output.absolute()
    if output.exists():
        if not output.is_dir():
            raise FasterViTError(f"output '{output}' is an existing file; choose another --output")
        if not overwrite:
            raise FasterViTError(f"output '{output}' already exists; choose another --output or pass --overwrite")
        if any(output.iterdir()) and not (output / marker).exists():
            raise FasterViTError(f"output '{output}' holds no {marker}, so it is not replaced; choose another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise FasterViTError(
            f"cannot write output '{output}' ({error.strerror}); choose a writable --output"
        ) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if output.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
            output.replace(retired / "old")
            temporary.replace(output)
            shutil.rmtree(retired)
        else:
            temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` that becomes ``path`` when the block succeeds and vanishes when it fails.

    Raises:
        FasterViTError: ``path`` exists (without ``overwrite``), or its folder cannot be written to.
    """
    path = path.absolute()
    if path.exists() and not (overwrite and path.is_file()):
        raise FasterViTError(f"'{path}' already exists; choose another name or pass --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise FasterViTError(f"cannot write '{path}' ({error.strerror}); choose a writable place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_csv(rows: Sequence[Any], path: Path) -> None:
    """Rows of one dataclass, at least one, as a table whose columns are its fields."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(rows[0])])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
