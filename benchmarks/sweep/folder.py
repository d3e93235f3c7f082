"""The folder of a sweep: one sweep at a time, records that survive whatever ends it, rows made from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fastervit_trt.artifacts import MANIFEST_NAME
from fastervit_trt.benchmarks.examples import EXAMPLES
from fastervit_trt.benchmarks.records import CELLS, Record, read_records, write_record
from fastervit_trt.benchmarks.rows import ROWS_NAME, write_rows
from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.plan import PLAN_FILE
from fastervit_trt.errors import FasterViTError

__all__ = ["EXPORTS", "SweepFolder", "open_folder"]

EXPORTS = "exports"
_LOCK = ".lock"
_LOGS = "logs"


@dataclass(frozen=True)
class SweepFolder:
    """``cells/KEY.json`` per cell; ``rows.csv`` and ``rows.json`` are made from these."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / _LOGS

    @property
    def exports(self) -> Path:
        return self.path / EXPORTS

    @property
    def examples(self) -> Path:
        return self.path / EXAMPLES

    def record_path(self, cell: Cell) -> Path:
        return self.path / CELLS / f"{cell.key}.json"

    def has(self, cell: Cell) -> bool:
        return self.record_path(cell).is_file()

    def keep(self, cell: Cell, record: Record) -> None:
        write_record(record, self.record_path(cell))

    def forget(self, cell: Cell) -> None:
        self.record_path(cell).unlink(missing_ok=True)

    def forget_unsettled(self) -> None:
        """What failed, was skipped or is unstable."""
        for record in self.records():
            if record.row.status != "ok" and record.path is not None:
                record.path.unlink()

    def records(self) -> list[Record]:
        """All there are, in the order of their keys."""
        return read_records(self.path) if any((self.path / CELLS).glob("*.json")) else []

    def write_rows(self, records: Iterable[Record]) -> None:
        """Rows of ``records``, replaced as one."""
        rows = [record.row for record in records]
        if not rows:
            return
        scratch = self.path / ".rows"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            for file in write_rows(rows, scratch):
                file.replace(self.path / file.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def open_folder(path: Path, *, resume: bool, overwrite: bool) -> Iterator[SweepFolder]:
    """The folder to write to, which is nobody else's meanwhile.

    Args:
        resume: go on with the cells that are there.
        overwrite: remove what an earlier sweep left there.

    Raises:
        FasterViTError: another sweep is writing to it; there are results, and it was not said what becomes of them; or
            it is something else's folder.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise FasterViTError(f"output '{path}' is an existing file; choose another --output")
    if path.is_dir() and any(path.iterdir()):
        _check_ours(path, resume=resume, overwrite=overwrite)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FasterViTError(f"another sweep is writing to '{path}'; wait for it, or choose another --output") from None
    try:
        if overwrite and not resume:
            _clear(path)
        for name in (CELLS, _LOGS):
            (path / name).mkdir(exist_ok=True)
        yield SweepFolder(path)
    finally:
        lock.release()


def _check_ours(path: Path, *, resume: bool, overwrite: bool) -> None:
    ours = any((path / name).exists() for name in (ROWS_NAME, CELLS, PLAN_FILE)) and not (path / MANIFEST_NAME).exists()
    left_by_lock = [entry.name for entry in path.iterdir()] == [_LOCK]
    if not ours and not left_by_lock:
        raise FasterViTError(f"output '{path}' holds no {ROWS_NAME}, so it is not replaced; choose another --output")
    if ours and not (resume or overwrite):
        raise FasterViTError(
            f"output '{path}' already exists; pass --resume to go on with it, --overwrite, or another --output"
        )


def _clear(path: Path) -> None:
    """Everything but the lock, which is held."""
    for entry in path.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
