"""Folders whose content is trusted because nobody but their owner can write to them; files in them appear whole."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["alone", "make_private", "why_not_private", "write_whole"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LOCK = ".lock"
_PATIENCE = 600.0  # seconds; the work under a lock is copying a few gigabytes at most


def make_private(folder: Path) -> None:
    """Create ``folder`` for the user alone; one that exists is left as it is.

    Raises:
        OSError: it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def why_not_private(path: Path) -> str | None:
    """What speaks against trusting ``path``, a file or folder that exists: None where only its owner, who is the user
    or root, can write to it. On Windows, where the user's profile is private by itself, always None.

    Raises:
        OSError: it cannot be looked at.
    """
    if os.name != "posix":
        return None
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & _OTHERS_WRITE:
        return f"can be written by other users (mode {stat.S_IMODE(status.st_mode):04o}; chmod go-w makes it private)"
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other threads and processes out of ``folder``; the system frees the lock of a killed one.

    Raises:
        OSError: the folder cannot be written to, or another process does not come to an end.
    """
    from filelock import FileLock

    with FileLock(folder / _LOCK, timeout=_PATIENCE):
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Write ``path`` for the user alone, so that readers see the old file or the new one.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut could leave an empty file under the new name
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
