"""A description of a build in, the engine that was built from it before out; and TensorRT's timing caches.

An engine is code that runs in the process that loads it. Entries are trusted because the folder is the user's own: one
that others can write to is not used.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.console import warn
from fastervit_trt.engines.cache_entry import (
    CachedEngine,
    CacheEntry,
    checksum_path,
    entry_at,
    touch,
    verified,
    write_entry,
)
from fastervit_trt.engines.cache_key import BUILDER_SCHEMA, CacheKey, graph_sha256
from fastervit_trt.engines.machine import platform_name
from fastervit_trt.engines.private_folder import alone, make_private, why_not_private, write_whole
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import CACHE_VARIABLE, cache_folder

__all__ = [
    "BUILDER_SCHEMA",
    "LIMIT_VARIABLE",
    "CacheEntry",
    "CacheKey",
    "CachedEngine",
    "EngineCache",
    "graph_sha256",
    "parse_size",
]

P = ParamSpec("P")
T = TypeVar("T")

LIMIT_VARIABLE = "FASTERVIT_TRT_CACHE_LIMIT"

_DEFAULT_LIMIT = "20GB"  # some 300 engines of FasterViT-0 in fp16, or 3 of FasterViT-6 in fp32
_DIGEST = re.compile("[0-9a-f]{64}")
_TIMING = "timing"
_TEMPORARY = ".tmp-"


def _spared(method: Callable[Concatenate[EngineCache, P], T]) -> Callable[Concatenate[EngineCache, P], T | None]:
    """Troubles of the cache itself become one warning: the build goes on without it."""

    @functools.wraps(method)
    def wrapper(self: EngineCache, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            where = f" ('{error.filename}')" if error.filename not in (None, str(self.folder)) else ""
            self._warn_once(
                f"engine cache '{self.folder}' is not used: {error.strerror or error}{where}; name another folder in "
                f"{CACHE_VARIABLE} if it stays so"
            )
            return None

    return wrapper


class EngineCache:
    """Engines in ``folder``; when they take more than ``limit_bytes``, those unused for longest make room."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._warned = False

    @classmethod
    def default(cls) -> EngineCache:
        """The user's cache, in ``$FASTERVIT_TRT_CACHE``, of the size in ``$FASTERVIT_TRT_CACHE_LIMIT``.

        Raises:
            FasterViTError: the limit is no size.
        """
        return cls(cache_folder() / "engines", parse_size(os.environ.get(LIMIT_VARIABLE) or _DEFAULT_LIMIT))

    @_spared
    def get(self, key: CacheKey) -> CachedEngine | None:
        """The engine built from ``key`` before; every byte is as it was put, or the entry is removed."""
        entry = self.folder / key.digest
        if not self._trusted() or not entry.exists():
            return None
        found = verified(entry, key)
        if found is not None:
            touch(entry)
        elif entry.exists():  # else it made room meanwhile
            warn(f"cached engine '{entry}' is damaged; it is removed and built anew")
            self._remove(entry)
        return found

    @_spared
    def put(self, key: CacheKey, engine_path: Path, record: Mapping[str, Any]) -> None:
        """Keep a copy of an engine and its record. An intact entry of the same key stays: somebody may be reading it.

        Args:
            record: what the manifest says of the engine, as JSON can write it.
        """
        if (size := engine_path.stat().st_size) > self.limit_bytes:
            warn(
                f"engine '{engine_path.name}' of {_megabytes(size)} is not cached: the limit of the cache is "
                f"{_megabytes(self.limit_bytes)} ({LIMIT_VARIABLE})"
            )
            return
        with self._alone():
            entry = self.folder / key.digest
            if entry.exists() and verified(entry, key) is None:
                self._remove(entry)
            if not entry.exists():
                new = self._temporary()
                try:
                    write_entry(new, key, engine_path, record)
                    new.replace(entry)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
            touch(entry)
            self._make_room(entry)

    @_spared
    def timing_cache(self, runtime: str, version: str, gpu: str | None, target: str) -> Path | None:
        """The intact timing cache of earlier builds; None where there is none.

        It holds times of kernels on one GPU model. TensorRT-RTX, which times nothing when it builds, has deprecated it.
        """
        path = self._timing_path(runtime, version, gpu, target)
        if path is None or not self._trusted() or not path.is_file():
            return None
        with self._alone():  # or the checksum could be that of another process's file
            if not (sums := checksum_path(path)).is_file() or sums.read_bytes() != sha256_file(path).encode():
                warn(f"timing cache '{path}' is damaged and not used; kernels are timed anew")
                return None
            touch(path)
        return path

    @_spared
    def store_timing_cache(self, runtime: str, version: str, gpu: str | None, target: str, data: bytes) -> None:
        """Put ``data`` in place of the timing cache; nothing where ``timing_cache`` can never have one.

        The caller combines what it measured with what ``timing_cache`` gave, best anew just before this call: other
        builds may have ended meanwhile.
        """
        path = self._timing_path(runtime, version, gpu, target)
        if path is None or len(data) > self.limit_bytes:
            return
        with self._alone():
            make_private(path.parent)
            write_whole(path, data)
            write_whole(checksum_path(path), hashlib.sha256(data).hexdigest().encode())
            self._make_room(path)

    def entries(self) -> list[CacheEntry]:
        """Engines and timing caches, those unused for longest first."""
        engines = (path for path in self.folder.glob("*") if _DIGEST.fullmatch(path.name))
        found = (entry_at(path) for path in (*engines, *self.folder.glob(f"{_TIMING}/*.cache")))
        return sorted((entry for entry in found if entry is not None), key=lambda e: (e.last_used, e.path))

    def size_bytes(self) -> int:
        """What counts towards the limit: engines, their records, timing caches."""
        return sum(entry.bytes for entry in self.entries())

    def clear(self) -> int:
        """Remove everything; gives how many bytes that freed."""
        return self._clear() or 0

    @_spared
    def _clear(self) -> int:
        if not self._trusted():
            return 0
        with self._alone():
            before = self.size_bytes()
            for entry in self.entries():
                self._remove(entry.path)
            return before - self.size_bytes()

    def _trusted(self) -> bool:
        """Whether the folder is there; a folder that others can write to is an error."""
        if not self.folder.exists():
            return False
        if (reason := why_not_private(self.folder)) is not None:
            raise PermissionError(errno.EPERM, f"it {reason}, and engines are executable")
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time writes, so whatever is temporary now was left by a killed one."""
        make_private(self.folder)
        self._trusted()
        with alone(self.folder):
            for left in self.folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    def _temporary(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))

    def _remove(self, path: Path) -> None:
        """Readers see all of an entry or none."""
        if path.is_dir():
            doomed = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):
                path.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
            checksum_path(path).unlink(missing_ok=True)

    def _make_room(self, kept: Path) -> None:
        entries = self.entries()
        excess = sum(entry.bytes for entry in entries) - self.limit_bytes
        for entry in entries:
            if excess > 0 and entry.path != kept:
                self._remove(entry.path)
                excess -= entry.bytes

    def _timing_path(self, runtime: str, version: str, gpu: str | None, target: str) -> Path | None:
        if runtime != "tensorrt" or gpu is None:
            return None
        identity = json.dumps([version, gpu, target, platform_name()])
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{version}-{gpu}-sm{target}")
        return self.folder / _TIMING / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.cache"

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            warn(text)
        self._warned = True


def parse_size(text: str) -> int:
    """Bytes in ``"20GB"``, ``"1.5 GiB"`` or ``"1000000"``; 0 keeps nothing.

    Raises:
        FasterViTError: not a size.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(I?)B?)?", text.strip().upper())
    if parts is None or (parts[3] and not parts[2]):
        raise FasterViTError(f"'{text}' is no size for the engine cache; {LIMIT_VARIABLE} takes 20GB, 500MB or 0")
    return int(float(parts[1]) * (1024 if parts[3] else 1000) ** " KMGT".index(parts[2] or " "))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
