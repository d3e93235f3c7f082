from __future__ import annotations

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.gpu.rows import (
    FAILED,
    OK,
    SKIPPED,
    STOPPED,
    Context,
    GpuRow,
    Result,
    RowFolder,
    read_rows,
)
from fastervit_trt.errors import FasterViTError

CONTEXT = Context(**{field.name: f"some {field.name}" for field in fields(Context)})
RESULT = Result(stage="core", case="window", peer="ours", status=OK, batch=8, time_us=1.5, time_p20_us=1.25)


def row(**changes: object) -> GpuRow:
    return GpuRow.of(replace(RESULT, **changes), CONTEXT, "2026-11-21T00:00:00+00:00")  # type: ignore[arg-type]


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    folder = RowFolder.open(tmp_path / "new")
    for peer in ("ours", "eager"):
        folder.add([row(peer=peer)])
        assert [r.peer for r in read_rows(tmp_path / "new" / "rows.json")][-1] == peer
    lines = list(csv.DictReader((tmp_path / "new" / "rows.csv").open()))
    assert [line["peer"] for line in lines] == ["ours", "eager"]
    assert list(lines[0]) == [field.name for field in fields(GpuRow)]
    assert lines[0]["time_us"] == "1.5"
    assert lines[0]["gpu"] == "some gpu"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rows.csv", "rows.json"]


def test_a_row_replaces_that_of_the_same_peer_and_case(tmp_path: Path) -> None:
    folder = RowFolder.open(tmp_path)
    folder.add([row(time_us=2.0), row(batch=1, time_us=3.0)])
    folder.add([row(time_us=1.0)])
    assert {(r.batch, r.time_us) for r in folder.rows} == {(1, 3.0), (8, 1.0)}


def test_resuming_keeps_what_is_settled(tmp_path: Path) -> None:
    statuses = {"ours": OK, "flash": SKIPPED, "slow": STOPPED, "broken": FAILED}
    RowFolder.open(tmp_path).add([row(peer=peer, status=status) for peer, status in statuses.items()] + [row(case="")])
    resumed = RowFolder.open(tmp_path, resume=True)
    assert {r.peer for r in resumed.rows} == {"ours", "flash"}
    assert resumed.settled == {("core", "window", 8, "ours"), ("core", "window", 8, "flash")}


def test_rows_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    RowFolder.open(tmp_path).add([row()])
    with pytest.raises(FasterViTError, match="pass --resume or --overwrite"):
        RowFolder.open(tmp_path)
    assert RowFolder.open(tmp_path, overwrite=True).rows == []


@pytest.mark.parametrize("content", ["{", "[1]", json.dumps([{"stage": "core"}])])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(FasterViTError, match="holds no rows of a GPU run"):
        RowFolder.open(tmp_path, resume=True)
