"""The folder of a sweep: whose it is, what it keeps, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.folder import open_folder
from fastervit_trt.errors import FasterViTError

CELL = Cell("exports/fp16", "tiny", "fp16", "224x224", "ort-cpu", 8, 1, key="tiny-fp16-ort-cpu-b8-s1-abc")
ROW = BenchmarkRow(model="tiny", precision="fp16", backend="ort-cpu", resolution="224x224", batch=8, status="ok")
HOLD = """
import sys
from pathlib import Path
from fastervit_trt.benchmarks.sweep.folder import open_folder
with open_folder(Path(sys.argv[1]), resume=False, overwrite=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_records_survive_and_are_found_by_resume_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    record = Record(ROW, ((0.1, 0.2),), ((0.3,),), np.array([True, False, True]))
    with open_folder(output, resume=False, overwrite=False) as folder:
        assert not folder.has(CELL)
        folder.keep(CELL, record)
    with pytest.raises(FasterViTError, match="already exists; pass --resume to go on with it"):
        open_folder(output, resume=False, overwrite=False).__enter__()
    with open_folder(output, resume=True, overwrite=False) as folder:
        assert folder.has(CELL)
        (found,) = folder.records()
        assert (found.row, found.latency_s, found.throughput_s) == (ROW, ((0.1, 0.2),), ((0.3,),))
        assert found.right is not None
        assert found.right.tolist() == [True, False, True]
    with open_folder(output, resume=False, overwrite=True) as folder:
        assert not folder.has(CELL)


def test_what_failed_was_skipped_or_is_unstable_is_forgotten_on_request(tmp_path: Path) -> None:
    with open_folder(tmp_path / "out", resume=False, overwrite=False) as folder:
        for status in ("ok", "unstable", "failed", "skipped"):
            folder.keep(replace(CELL, key=status), Record(replace(ROW, status=status)))
        folder.forget_unsettled()
        assert [record.row.status for record in folder.records()] == ["ok"]


def test_a_second_sweep_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    output = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume, overwrite in ((True, False), (False, True)):
            with pytest.raises(FasterViTError, match="another sweep is writing to"):
                open_folder(output, resume=resume, overwrite=overwrite).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with open_folder(output, resume=True, overwrite=False):
        pass  # a killed sweep holds nothing


def test_folders_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "export").mkdir()
    for name in ("manifest.json", "rows.json"):
        (tmp_path / "export" / name).touch()
    (tmp_path / "file").touch()
    for name, message in (
        ("photos", "holds no rows.json"),
        ("export", "holds no rows.json"),
        ("file", "existing file"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FasterViTError, match=message):
            open_folder(tmp_path / name, resume=True, overwrite=True).__enter__()
        assert sorted(tmp_path.rglob("*")) == before


def test_a_record_that_cannot_be_written_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_folder(tmp_path / "out", resume=False, overwrite=False) as folder:
        folder.keep(CELL, Record(ROW))

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        def broken(path: Path, target: Path) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", broken)
            with pytest.raises(OSError, match="Input/output"):
                folder.keep(CELL, Record(replace(ROW, batch=1)))
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            folder.keep(replace(CELL, key="other"), Record(ROW))
        with pytest.raises(OSError, match="No space left"):
            folder.keep(CELL, Record(replace(ROW, batch=1)))
        assert [record.row for record in folder.records()] == [ROW]
        assert [path.name for path in (folder.path / "cells").iterdir()] == [f"{CELL.key}.json"]
