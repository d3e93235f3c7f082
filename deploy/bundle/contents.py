"""A folder's files in, a record of them out; and a folder and a record in, whether they are the same out.

Names are taken only where every file system of a target tells them apart and keeps them below the bundle's folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, SIGNATURE_FILE
from fastervit_trt.errors import FasterViTError

__all__ = [
    "Declared",
    "check_declared",
    "check_folder",
    "check_listing",
    "check_names",
    "check_path",
    "declare",
    "list_files",
    "open_regular",
]

Declared = Mapping[str, Mapping[str, Any]]  # path below the bundle, with "/" → sha256, bytes, role

_MOST_PATH = 100  # bytes: the field of a USTAR header; it also leaves room below Windows' 260 characters
_MOST_FILES = 4096  # a bundle has some dozens
_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_ON_WINDOWS = frozenset('\\:*?"<>|')  # a colon also names drives and alternate data streams
# Devices in every folder of Windows, whatever their suffix (Microsoft, "Naming Files, Paths, and Namespaces").
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"]
)


def check_path(name: str) -> PurePosixPath:
    """``name`` as the path of a file below a bundle's folder, on whatever system.

    Raises:
        FasterViTError: it leads elsewhere, or some file system takes it for another name.
    """
    if reason := _why_not(name):
        raise FasterViTError(f"{_shown(name)} cannot be the path of a file in a bundle: {reason}; rename the file")
    return PurePosixPath(name)


def check_names(names: Iterable[str]) -> None:
    """That all ``names`` are paths of files that can lie in one folder, on whatever system.

    Raises:
        FasterViTError: as :func:`check_path`; or two are the same but for case or Unicode's spelling, or one is both
            a file and the folder of another.
    """
    spellings: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        path = check_path(name)
        for upper in (path, *path.parents[:-1]):  # the last one is "."
            other = spellings.setdefault(_folded(str(upper)), str(upper))
            if other != str(upper):
                raise FasterViTError(
                    f"{_shown(name)} and {_shown(other)} are the same on some file systems; rename one of them"
                )
        if name in files:
            raise FasterViTError(f"{_shown(name)} is listed twice among the files of a bundle; list it once")
        files.add(name)
        folders.update(map(str, path.parents))
    if both := sorted(files & folders):
        raise FasterViTError(f"{_shown(both[0])} is both a file and a folder of a bundle; rename one of them")


def check_declared(declared: Declared) -> None:
    """That ``declared``, which may come from anybody, is the record of files that can lie in one folder.

    Raises:
        FasterViTError: a name, hash or size that no bundle has.
    """
    if not isinstance(declared, Mapping) or len(declared) > _MOST_FILES:
        raise FasterViTError(f"{BUNDLE_FILE} lists no files, or more than {_MOST_FILES}; pack the export again")
    check_names([BUNDLE_FILE, SIGNATURE_FILE, *declared])
    for name, entry in declared.items():
        sha256, size = (entry.get(key) if isinstance(entry, Mapping) else None for key in ("sha256", "bytes"))
        sound = isinstance(sha256, str) and _SHA256.fullmatch(sha256) and type(size) is int and size >= 0
        if not sound:
            raise FasterViTError(f"{BUNDLE_FILE} has no SHA-256 or no size of {_shown(name)}; pack the export again")


def list_files(folder: Path) -> list[str]:
    """Paths, with "/", of all regular files below ``folder``, sorted.

    Raises:
        FasterViTError: something else lies there, as a link, or it cannot be read.
    """
    names, pending = [], [""]
    try:
        while pending:
            below = pending.pop()
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{below}{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        names.append(below + entry.name)
                    else:
                        raise FasterViTError(
                            f"{_shown(below + entry.name)} in '{folder}' is a link or a device; put a copy of the file "
                            "in its place"
                        )
    except OSError as error:
        raise FasterViTError(f"cannot read '{error.filename}' ({error.strerror}); pass a bundle's folder") from error
    return sorted(names)


def check_listing(folder: Path, declared: Declared) -> None:
    """That ``folder`` holds the files of ``declared`` and its manifest, with or without a signature, and no others.

    Raises:
        FasterViTError: names the first file that is missing or that nobody declared.
    """
    check_declared(declared)
    found = {*list_files(folder)}
    if missing := sorted({BUNDLE_FILE, *declared} - found):
        raise FasterViTError(f"{_shown(missing[0])} is missing in bundle '{folder}'; copy the bundle again")
    if foreign := sorted(found - {BUNDLE_FILE, SIGNATURE_FILE, *declared}):
        raise FasterViTError(f"{_shown(foreign[0])} in bundle '{folder}' is not in its {BUNDLE_FILE}; remove it")


def check_folder(folder: Path, declared: Declared) -> None:
    """That ``folder`` holds exactly the files of ``declared``, byte for byte, its manifest and perhaps a signature.

    Raises:
        FasterViTError: names the first file that is missing, was changed, is no regular file, or that nobody declared.
    """
    check_listing(folder, declared)
    for name in sorted(declared):
        with open_regular(folder / name) as stream:
            digest, size = _digest(stream)
        if (digest, size) != (declared[name]["sha256"], declared[name]["bytes"]):
            raise FasterViTError(
                f"'{folder / name}' is not the file that {BUNDLE_FILE} describes; copy the bundle again"
            )


def declare(folder: Path, role_of: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """The record of all files below ``folder`` but the bundle's manifest and signature, sorted by path.

    Args:
        role_of: what the file of a path, with "/", is in the bundle.

    Raises:
        FasterViTError: a file that cannot be in a bundle, for its name or as it is a link.
    """
    record = {}
    for name in list_files(folder):
        if name in (BUNDLE_FILE, SIGNATURE_FILE):
            continue
        with open_regular(folder / name) as stream:
            digest, size = _digest(stream)
        record[name] = {"sha256": digest, "bytes": size, "role": role_of(name)}
    check_declared(record)
    return record


def open_regular(path: Path) -> BinaryIO:
    """``path``, open for reading, if it is a regular file and no link to one.

    Raises:
        FasterViTError: it is none, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        stream = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise FasterViTError(f"cannot read '{path}' ({error.strerror}); put the file itself there") from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise FasterViTError(f"'{path}' is no regular file; put the file itself there")
    return stream


def _why_not(name: str) -> str | None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not Unicode"
    if not 0 < size <= _MOST_PATH:
        return f"it has {size} bytes, and 1 to {_MOST_PATH} are allowed"
    if not name.isprintable():
        return "it holds control characters"
    if forbidden := sorted(_NOT_ON_WINDOWS & set(name)):
        return f"it holds {' '.join(forbidden)}"
    if unicodedata.normalize("NFC", name) != name:
        return "it is not spelt in Unicode's form NFC"
    return next(filter(None, map(_why_not_part, name.split("/"))), None)


def _why_not_part(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "it is absolute, or has an empty part, '.' or '..'"
    if part[-1] in " .":
        return "a part of it ends with a space or a dot"
    if part.split(".")[0].rstrip(" ").upper() in _DEVICES:
        return f"'{part}' is a device on Windows"
    return None


def _folded(name: str) -> str:
    """The same for names that differ in case or in how Unicode spells them."""
    return unicodedata.normalize("NFKC", name.casefold())


def _shown(name: str) -> str:
    """A foreign name, fit for a terminal."""
    return repr(name if len(name) <= _MOST_PATH else f"{name[:_MOST_PATH]}…")


def _digest(stream: BinaryIO) -> tuple[str, int]:
    """SHA-256 and number of the bytes in ``stream``."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size
