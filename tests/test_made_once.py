"""What processes that share the tests share: folders made once for all of them, and an order of files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import LONGEST_FIRST, ROOT, made_once, pytest_collection_modifyitems


class Run:
    """What :func:`made_once` asks of pytest: the folder of one process, beside those of the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def getbasetemp(self) -> Path:
        return self.folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Two processes of one run."""
    monkeypatch.setattr(conftest, "WORKER", "gw0")
    return [Run(tmp_path / f"popen-gw{i}") for i in range(2)]


def test_who_asks_second_waits_for_what_the_first_makes(runs: list[Run]) -> None:
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def make(folder: Path) -> None:
        begun.set()
        assert go_on.wait(30)
        (folder / "file").write_text(f"made {len(list(folder.iterdir())) + 1}")

    def ask(run: Run) -> None:
        folder = made_once(run, "exports", make)  # type: ignore[arg-type]
        seen.append((folder, (folder / "file").read_text()))

    first, second = (threading.Thread(target=ask, args=(run,)) for run in runs)
    first.start()
    assert begun.wait(30)
    begun.clear()
    second.start()
    second.join(0.2)
    assert second.is_alive() and not seen
    go_on.set()
    first.join(30)
    second.join(30)
    assert seen == [(runs[0].folder.parent / "exports", "made 1")] * 2
    assert not begun.is_set()  # a second time


def test_what_failed_is_made_again_from_nothing(runs: list[Run]) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("as it happens")

    with pytest.raises(RuntimeError, match="as it happens"):
        made_once(runs[0], "exports", fail)  # type: ignore[arg-type]
    folder = made_once(runs[1], "exports", lambda folder: (folder / "whole").touch())  # type: ignore[arg-type]
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_alone_nothing_lies_beside_the_runs_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the runs before lie, whose exports are not of this code."""
    monkeypatch.setattr(conftest, "WORKER", None)
    run = Run(tmp_path / "pytest-7")
    assert made_once(run, "exports", lambda folder: None).parent == run.folder  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [run.folder]


class Item:
    """A collected test."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def items_of(*files: str) -> Iterator[Item]:
    return (Item(f"{file}::test_{i}") for file in files for i in range(2))


def test_long_files_come_first_where_several_processes_share_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all((ROOT / file).is_file() for file in LONGEST_FIRST)
    for worker, files in ((None, ("a.py", *LONGEST_FIRST[::-1], "b.py")), ("gw1", (*LONGEST_FIRST, "a.py", "b.py"))):
        monkeypatch.setattr(conftest, "WORKER", worker)
        items = list(items_of("a.py", *LONGEST_FIRST[::-1], "b.py"))
        pytest_collection_modifyitems(items)  # type: ignore[arg-type]
        assert [item.nodeid for item in items] == [item.nodeid for item in items_of(*files)]
