"""A bundle's folder in, a ``.tar.zst`` that is the same everywhere, byte for byte, out; and back.

The reader is no tar reader: the admitted manifest says every byte of every header before it comes, so links, devices,
modes, extensions and paths that lead elsewhere need not be recognised to be refused: they are not what was to come.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastervit_trt.artifacts import new_file, new_folder
from fastervit_trt.deploy.bundle.container import END, MAGIC, MOST_FILE, DamageError, Entry, TarReader, compressed
from fastervit_trt.deploy.bundle.contents import Declared, check_declared, check_listing, check_path, open_regular
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, SIGNATURE_FILE, BundleManifest
from fastervit_trt.deploy.bundle.signature import MOST_SIGNATURE
from fastervit_trt.errors import FasterViTError

__all__ = [
    "MOST_BYTES",
    "MOST_MANIFEST",
    "Admit",
    "OnProgress",
    "is_archive",
    "read_archive",
    "write_archive",
]

MOST_BYTES = 64 << 30  # of all files of a bundle: several times the largest model, with engines for every GPU
MOST_MANIFEST = 4 << 20  # bytes; that of 4096 files has fewer

Admit = Callable[[bytes, bytes | None], Declared]  # bundle.json, bundle.sig → what else the archive may hold; raises
OnProgress = Callable[[int, int], None]  # bytes of files done, bytes of all files

_CHUNK = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a file that begins as zstd's files do, whatever its name."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)).startswith(MAGIC)
    except OSError:
        return False


def write_archive(folder: Path, path: Path, *, overwrite: bool = False, on_progress: OnProgress | None = None) -> None:
    """Write the bundle in ``folder`` to ``path``, whole or not at all.

    Equal bundles make equal archives (with the same release of zstd): manifest and signature first, then all files
    sorted by path, without owners, times or modes.

    Args:
        overwrite: replace a file that is there.
        on_progress: told how many bytes of files are written.

    Raises:
        FasterViTError: ``folder`` does not hold what its manifest says, or ``path`` exists or cannot be written.
    """
    manifest = _small(folder / BUNDLE_FILE, MOST_MANIFEST)
    bundle = _parsed(manifest, f"'{folder / BUNDLE_FILE}'")
    check_listing(folder, bundle.files)
    head = {BUNDLE_FILE: manifest}
    if (folder / SIGNATURE_FILE).exists():
        head[SIGNATURE_FILE] = _small(folder / SIGNATURE_FILE, MOST_SIGNATURE)
    first = [Entry(bundle.name, name, len(content)) for name, content in head.items()]
    entries = _entries(bundle.name, bundle.files)
    if large := next((entry.path for entry in entries if entry.size > MOST_FILE), None):
        raise FasterViTError(f"'{folder / large}' has more than 8 GiB, which no archive takes; keep the folder")
    progress = _Progress(on_progress, bundle.files)
    with (
        new_file(path, overwrite=overwrite) as temporary,
        temporary.open("wb") as stream,
        compressed(stream, first + entries) as out,
    ):
        for entry in first:
            out.write(entry.header + head[entry.path] + entry.padding)
        for entry in entries:
            out.write(entry.header)
            for chunk in progress.over(_declared_content(folder, entry, bundle.files)):
                out.write(chunk)
            out.write(entry.padding)
        out.write(END)


def read_archive(
    path: Path,
    destination: Path,
    admit: Admit,
    *,
    most_bytes: int = MOST_BYTES,
    on_progress: OnProgress | None = None,
) -> None:
    """Unpack the bundle in ``path`` to ``destination``, whole or not at all, in memory that does not grow with it.

    Args:
        destination: the bundle's folder to be; it does not exist yet, or is empty.
        admit: is given ``bundle.json`` and ``bundle.sig`` (None without one) before anything is written and before
            contents of other files are looked at; it raises, or returns the record of those files.
        most_bytes: that all files together may have.
        on_progress: told how many bytes of files are written.

    Raises:
        FasterViTError: ``path`` is no archive that :func:`write_archive` writes, is damaged, holds anything but what
            was admitted, or does not fit on the disk; or ``admit`` raised it.
    """
    try:
        with _opened(path) as stream:
            tar = TarReader(stream)
            head = _head(tar)
            declared = admit(head.manifest, head.signature)
            check_declared(declared)
            if _parsed(head.manifest, f"{BUNDLE_FILE} of '{path}'").name != head.bundle:
                raise DamageError(f"holds folder {head.bundle!r}, which is not the name in its {BUNDLE_FILE}")
            _check_room(path, destination, declared, most_bytes)
            empty = destination.is_dir() and not any(destination.iterdir())
            with new_folder(destination, overwrite=empty, marker=BUNDLE_FILE) as folder:
                _write(folder / BUNDLE_FILE, [head.manifest])
                if head.signature is not None:
                    _write(folder / SIGNATURE_FILE, [head.signature])
                _extract(tar, head, declared, folder, _Progress(on_progress, declared))
    except DamageError as damage:
        raise FasterViTError(f"'{path}' {damage}; copy the archive again, or pack the export again") from damage
    except OSError as error:
        reason = error.strerror or error
        raise FasterViTError(f"cannot unpack '{path}' to '{destination}' ({reason}); choose another place") from error


@dataclass(frozen=True)
class _Head:
    """What comes before the files, and the entry of the first of them, if there is one."""

    bundle: str
    manifest: bytes
    signature: bytes | None
    following: Entry | None


class _Progress:
    """Counts bytes of files for whoever asked."""

    def __init__(self, on_progress: OnProgress | None, declared: Declared) -> None:
        self._on_progress, self._done = on_progress, 0
        self._total = sum(entry["bytes"] for entry in declared.values())

    def over(self, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            yield chunk
            self._done += len(chunk)
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)


def _parsed(manifest: bytes, source: str) -> BundleManifest:
    """The manifest, whose record of files and whose name can be relied on."""
    bundle = BundleManifest.parse(manifest.decode(errors="replace"), source)
    check_declared(bundle.files)
    if not isinstance(bundle.name, str) or len(check_path(bundle.name).parts) != 1:
        raise FasterViTError(
            f"{source} names its bundle {bundle.name!r}, which is no folder's name; pack the export again"
        )
    return bundle


def _entries(bundle: str, declared: Declared) -> list[Entry]:
    """Of the files, in the order in which they follow manifest and signature."""
    return [Entry(bundle, name, declared[name]["bytes"]) for name in sorted(declared)]


def _small(path: Path, most: int) -> bytes:
    with open_regular(path) as stream:
        content: bytes = stream.read(most + 1)
    if len(content) > most:
        raise FasterViTError(f"'{path}' has more than {most >> 10} KiB, so it is no bundle's; pack the export again")
    return content


def _declared_content(folder: Path, entry: Entry, declared: Declared) -> Iterator[bytes]:
    """The file's content; an error at its end where it is not what was declared."""
    digest, left, chunk = hashlib.sha256(), entry.size, b""
    with open_regular(folder / entry.path) as stream:
        while left and (chunk := stream.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        if left or stream.read(1) or digest.hexdigest() != declared[entry.path]["sha256"]:
            raise FasterViTError(
                f"'{folder / entry.path}' is not the file that {BUNDLE_FILE} describes; pack the export again"
            )


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise FasterViTError(
            f"cannot read archive '{path}' ({error.strerror}); pass one that fastervit-deploy packed"
        ) from error


def _head(tar: TarReader) -> _Head:
    first = tar.entry()
    if first is None or first.path != BUNDLE_FILE:
        raise DamageError(f"does not begin with {BUNDLE_FILE}, so it is no bundle")
    manifest = _little(tar, first, MOST_MANIFEST)
    following, signature = tar.entry(), None
    if following is not None and (following.bundle, following.path) == (first.bundle, SIGNATURE_FILE):
        signature = _little(tar, following, MOST_SIGNATURE)
        following = tar.entry()
    return _Head(first.bundle, manifest, signature, following)


def _little(tar: TarReader, entry: Entry, most: int) -> bytes:
    if entry.size > most:
        raise DamageError(f"holds a {entry.path} of {entry.size} bytes; no bundle has more than {most}")
    return b"".join(tar.content(entry))


def _check_room(path: Path, destination: Path, declared: Declared, most_bytes: int) -> None:
    needed = sum(entry["bytes"] for entry in declared.values())
    if needed > most_bytes:
        raise FasterViTError(
            f"'{path}' unpacks to {needed / 1e9:.1f} GB, more than the {most_bytes / 1e9:.1f} GB of a bundle; "
            "pack it again with fewer engines"
        )
    place = next(folder for folder in (destination, *destination.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise FasterViTError(
            f"'{path}' unpacks to {needed / 1e9:.1f} GB and '{place}' has {free / 1e9:.1f} GB free; free some room or "
            "choose another place"
        )


def _extract(tar: TarReader, head: _Head, declared: Declared, folder: Path, progress: _Progress) -> None:
    """Write the files that are declared, each as it comes; nothing else may come."""
    following = head.following
    for entry in _entries(head.bundle, declared):
        if following != entry:
            found = "its end" if following is None else f"{following.path!r} of {following.size} bytes"
            raise DamageError(f"holds {found} where {BUNDLE_FILE} has {entry.path!r} of {entry.size} bytes")
        if _write(folder / entry.path, progress.over(tar.content(entry))) != declared[entry.path]["sha256"]:
            raise DamageError(f"holds another {entry.path!r} than its {BUNDLE_FILE} describes")
        following = tar.entry()
    if following is not None:
        raise DamageError(f"holds {following.path!r}, which its {BUNDLE_FILE} does not list")


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file that is not there yet, through no link; its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, flags, 0o644), "wb") as stream:
        for chunk in chunks:
            digest.update(chunk)
            stream.write(chunk)
    return digest.hexdigest()
