"""One engine in the cache: a folder with the engine, its record and its key, and the checksums of all three."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.engines.cache_key import CacheKey

__all__ = ["CacheEntry", "CachedEngine", "checksum_path", "entry_at", "touch", "verified", "write_entry"]

_ENGINE, _RECORD, _KEY, _SUMS = "engine", "record.json", "key.json", "SHA256SUMS"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class CachedEngine:
    """An engine in the cache, its content verified, and what the manifest of its first build said of it."""

    path: Path
    record: dict[str, Any]
    sha256: str

    def copy_to(self, path: Path) -> bool:
        """Copy the engine; False, with nothing left behind, where it vanished or changed since it was found.

        Raises:
            OSError: ``path`` cannot be written.
        """
        try:
            source = self.path.open("rb")
        except OSError:
            return False  # another process made room
        with source:
            try:
                same = _copy(source, path) == self.sha256
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        if not same:
            path.unlink()
        return same


@dataclass(frozen=True)
class CacheEntry:
    """What takes room: an engine, or a timing cache, which has no key."""

    path: Path
    key: dict[str, Any]
    bytes: int
    last_used: float  # seconds since the epoch


def verified(entry: Path, key: CacheKey) -> CachedEngine | None:
    """The engine in ``entry``; None where a file is missing or is not what was written."""
    try:
        lines = (entry / _SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        if set(sums) != {_ENGINE, _RECORD, _KEY} or any(sha256_file(entry / n) != s for n, s in sums.items()):
            return None
        if json.loads((entry / _KEY).read_text()) != json.loads(key.json):
            return None  # a folder that was renamed
        return CachedEngine(entry / _ENGINE, json.loads((entry / _RECORD).read_text()), sums[_ENGINE])
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_entry(folder: Path, key: CacheKey, engine_path: Path, record: Mapping[str, Any]) -> None:
    """Fill the empty ``folder``.

    Raises:
        OSError: a file cannot be read or written.
    """
    (folder / _KEY).write_text(json.dumps(json.loads(key.json), indent=2) + "\n")
    (folder / _RECORD).write_text(json.dumps(dict(record), indent=2) + "\n")
    sums = {name: sha256_file(folder / name) for name in (_KEY, _RECORD)}
    with engine_path.open("rb") as source:
        sums[_ENGINE] = _copy(source, folder / _ENGINE)
    (folder / _SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def _copy(source: IO[bytes], path: Path) -> str:
    """Copy; gives the hash of what was copied."""
    digest = hashlib.sha256()
    with path.open("wb") as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def entry_at(path: Path) -> CacheEntry | None:
    """What lies at ``path``, intact or not; None where it was removed meanwhile."""
    try:
        files = list(path.iterdir()) if path.is_dir() else [path]
        if path.is_file() and checksum_path(path).exists():
            files.append(checksum_path(path))
        size = sum(file.stat().st_size for file in files)
        last_used = _used(path).stat().st_mtime if _used(path).exists() else 0.0
    except FileNotFoundError:
        return None
    key = {}
    with contextlib.suppress(OSError, ValueError):
        key = json.loads((path / _KEY).read_text())
    return CacheEntry(path, key, size, last_used)


def touch(path: Path) -> None:
    """Note that what lies at ``path`` was used now."""
    now = time.time_ns()  # the file system's own clock ticks every few milliseconds only
    with contextlib.suppress(OSError):  # of a cache that can be read only
        os.utime(_used(path), ns=(now, now))


def checksum_path(path: Path) -> Path:
    """Where the checksum of a timing cache lies."""
    return path.with_suffix(".sha256")


def _used(path: Path) -> Path:
    """The file whose time of change says when an entry was used."""
    return path / _SUMS if path.is_dir() else path
