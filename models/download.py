"""The official checkpoints, downloaded once: resumed after any interruption, checked before they count as there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.console import err_console, step
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import cache_folder

if TYPE_CHECKING:
    from requests import Response, Session

__all__ = ["OfficialFile", "download_checkpoint", "official_file"]

_REPOSITORY = "nvidia/FasterViT/resolve/main"
_ATTEMPTS = 6  # in a row, none of which brought _PROGRESS more bytes
_FIRST_ATTEMPTS = 3  # while nothing has answered yet: being offline should not take half a minute to find out
_PROGRESS = 1 << 20
_BACKOFF = 1.0  # seconds before the second attempt; doubles from there
_LONGEST_WAIT = 60.0
_TIMEOUT = (10, 30)  # seconds to connect, and between two packets
_CHUNK = 1 << 16
_SIZE_TOLERANCE = 0.1  # of the table's sizes, where the server tells no hash
_MB = 1_000_000


@dataclass(frozen=True)
class OfficialFile:
    """A checkpoint as published: file name and approximate size."""

    name: str
    bytes: int


_1K_MB = (379, 215, 306, 1920, 4390, 11500, 16300)  # FasterViT-0 to 6
_21K_MB = {(224, 14): 3310, (384, 24): 3590, (512, 32): 4260, (768, 48): 8180}  # (resolution, window) of FasterViT-4

# A model of any resolution takes the file of the fixed one.
_OFFICIAL = {
    **{
        f"faster_vit_{size}_{kind}": OfficialFile(f"fastervit_{size}_224_1k.pth.tar", mb * _MB)
        for size, mb in enumerate(_1K_MB)
        for kind in ("224", "any_res")
    },
    **{
        f"faster_vit_4_21k_{side}{kind}": OfficialFile(f"fastervit_4_21k_{side}_w{window}.pth.tar", mb * _MB)
        for (side, window), mb in _21K_MB.items()
        for kind in ("", "_any_res")
    },
}


def official_file(name: str) -> OfficialFile | None:
    """The published checkpoint of model ``name``, or None where there is none."""
    return _OFFICIAL.get(name)


def download_checkpoint(name: str, cache: Path | None = None) -> Path:
    """The local path of the official checkpoint of model ``name``, downloaded unless it is there already.

    Args:
        name: a model with an official file.
        cache: the folder that keeps it; ``$FASTERVIT_TRT_CACHE`` by default, else the user's cache folder.

    Raises:
        FasterViTError: no official file, no connection, no room, or the server sends no such file. What has arrived
            stays for the next call, unless it proved wrong.
    """
    official = official_file(name)
    if official is None:
        raise FasterViTError(f"there is no official checkpoint of '{name}'; pass your own with --checkpoint FILE")
    folder = cache or cache_folder()
    path = folder / official.name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.is_file():  # or else another process was faster
                _Download(official, path).run()
    except OSError as error:
        raise FasterViTError(
            f"cannot write to cache '{folder}' ({error.strerror or error}); make room there, name another folder in "
            "FASTERVIT_TRT_CACHE, or pass --checkpoint FILE"
        ) from error
    return path


@dataclass(frozen=True)
class _Remote:
    """What the server says of the file."""

    identity: str | None  # as long as it is the same, so is the content
    sha256: str | None
    size: int | None
    start: int | None  # where in the file the answer begins


class _DownloadError(Exception):
    """Why an attempt failed, whether another one may succeed, and after how many seconds at the earliest."""

    def __init__(self, reason: str, *, retry: bool, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.retry = retry
        self.wait = wait


class _Download:
    """One file on its way to ``path``; until it is complete and checked, it is a ``.part`` beside it."""

    def __init__(self, official: OfficialFile, path: Path) -> None:
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.official, self.path, self.url = official, path, f"{endpoint}/{_REPOSITORY}/{official.name}"
        self.answered = False

    def run(self) -> None:
        """Attempt after attempt until the file is there."""
        import requests

        failures, most = 0, _size(self._held())
        columns = (BarColumn(bar_width=28), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        bar = Progress(TextColumn("{task.description}"), *columns, console=err_console)
        bar.add_task(self.official.name, total=self.official.bytes)
        try:
            with requests.Session() as session, bar:
                while True:
                    try:
                        part, remote = self._attempt(session, bar)
                        break
                    except _DownloadError as error:
                        if _size(self._held()) >= most + _PROGRESS:
                            failures, most = 0, _size(self._held())
                        failures += 1
                        if not error.retry or failures >= (_ATTEMPTS if self.answered else _FIRST_ATTEMPTS):
                            raise
                        wait = min(max(_BACKOFF * 2 ** (failures - 1), error.wait), _LONGEST_WAIT)
                        bar.console.print(f"{error}; trying again in {wait:.0f} s", markup=False, soft_wrap=True)
                        time.sleep(wait)
            self._check(part, remote)
        except _DownloadError as error:
            hint = f"download the file elsewhere and put it at '{self.path}' or pass it with --checkpoint FILE"
            if error.retry and (arrived := _size(self._held())):
                hint = f"run again to go on from the {arrived / _MB:.1f} MB that have arrived, or {hint}"
            tries = f" in {failures} attempts" if failures > 1 else ""
            raise FasterViTError(f"cannot download {self.url}{tries}: {error}; {hint}") from error
        part.replace(self.path)

    def _attempt(self, session: Session, bar: Progress) -> tuple[Path, _Remote]:
        """Ask for what is missing; gives the complete, unchecked file."""
        import requests
        from urllib3.exceptions import HTTPError

        held = self._held()
        start = _size(held)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            with session.get(self.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                self.answered = True
                _check_status(response)
                remote = _remote(response)
                if remote.sha256 is None and response.ok and not self._plausible(remote.size):
                    raise _DownloadError(
                        f"the server sends {remote.size or 'untold'} bytes, not about {self.official.bytes}",
                        retry=False,
                    )
                part = self.path.with_name(".".join(filter(None, (self.path.name, remote.identity, "part"))))
                for stale in self._identified():
                    if stale != part:
                        stale.unlink()
                if response.status_code == 416 and part == held and remote.size == start:
                    return part, remote  # a process was killed between the last byte and the renaming
                if response.status_code != 200 and (part != held or remote.start != start):
                    part.unlink(missing_ok=True)
                    raise _DownloadError("the file on the server is not the one that was begun", retry=True)
                if response.status_code == 200:  # nothing was begun, or the server ignores ranges
                    start = 0
                    part.unlink(missing_ok=True)
                total = remote.size or self.official.bytes
                if (free := shutil.disk_usage(self.path.parent).free) < total - start:
                    raise OSError(errno.ENOSPC, f"{(total - start) / _MB:.0f} MB to come, {free / _MB:.0f} MB free")
                bar.reset(bar.task_ids[0], total=total, completed=start)
                with part.open("ab") as stream:
                    # read1 hands over what there is; iter_content would lose it if the connection broke meanwhile
                    while chunk := response.raw.read1(_CHUNK, decode_content=False):
                        stream.write(chunk)
                        stream.flush()  # a killed process takes its buffer with it
                        bar.advance(bar.task_ids[0], len(chunk))
                    os.fsync(stream.fileno())  # the name must not reach the disk before the content
        except (requests.RequestException, HTTPError) as error:
            lost = (requests.ConnectionError, requests.Timeout, HTTPError)
            raise _DownloadError(_reason(error), retry=isinstance(error, lost)) from error
        if _size(part) < (remote.size or 0):
            raise _DownloadError(f"the answer ended after {_size(part)} of {remote.size} bytes", retry=True)
        return part, remote

    def _check(self, part: Path, remote: _Remote) -> None:
        """Compare with what the server says; a wrong file is removed."""
        size, problem = _size(part), ""
        if remote.size not in (None, size):
            problem = f"{size} bytes arrived instead of {remote.size}"
        elif remote.sha256 is not None:
            with step(f"checking {self.official.name}"):
                digest = sha256_file(part)
            if digest != remote.sha256:
                problem = f"its sha256 is {digest} instead of {remote.sha256}"
        if problem:
            part.unlink()
            raise _DownloadError(f"the file arrived damaged and was removed ({problem}); run again", retry=False)

    def _plausible(self, size: int | None) -> bool:
        """Whether it can be the checkpoint, and not the page of some proxy."""
        return size is not None and abs(size - self.official.bytes) <= _SIZE_TOLERANCE * self.official.bytes

    def _identified(self) -> list[Path]:
        """What was begun of content that can be told from a later version, so that it can be continued."""
        return sorted(self.path.parent.glob(f"{self.path.name}.*.part"))

    def _held(self) -> Path | None:
        return max(self._identified(), key=_size, default=None)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other threads and processes from downloading ``path``; the system frees the lock of a killed one."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with step(f"waiting for another download of {path.name}"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_status(response: Response) -> None:
    status, asked = response.status_code, response.headers.get("Retry-After", "")
    if status not in (200, 206, 416):
        raise _DownloadError(
            f"the server answered {status} {response.reason or ''}".strip(),
            retry=status >= 500 or status in (408, 429),
            wait=float(asked) if asked.isdecimal() else 0.0,
        )


def _remote(response: Response) -> _Remote:
    """Hugging Face describes the file where it redirects to its storage, whose own ETag is no hash of the content."""
    told = {name: value for r in (response, *response.history) for name, value in r.headers.lower_items()}
    linked = told.get("x-linked-etag", "").strip('"')
    etag = linked or response.headers.get("ETag") or "W/"
    answered = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+)$", response.headers.get("Content-Range", ""))
    length = answered[2] if answered else response.headers.get("Content-Length") if response.ok else None
    size = told.get("x-linked-size", length)
    if length not in (None, size):
        raise _DownloadError(f"the server has {length} bytes of it instead of {size}", retry=False)
    return _Remote(
        identity=None if etag.startswith("W/") else sha256(etag.encode()).hexdigest()[:16],
        sha256=linked.lower() if re.fullmatch("[0-9a-fA-F]{64}", linked) else None,
        size=int(size) if size and size.isdecimal() else None,
        start=int(answered[1]) if answered and answered[1] else None,
    )


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


def _reason(error: BaseException) -> str:
    """The innermost cause: "Connection refused" rather than the names of the layers above it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
