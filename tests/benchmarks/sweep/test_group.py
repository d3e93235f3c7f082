"""Cells taking turns in processes of their own: order, deaths, silence, second attempts. The processes are real."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.group import Accuracies, Measurement, Watcher, measure_group
from fastervit_trt.benchmarks.sweep.plan import Options

WORKER = (str(Path(__file__).with_name("scripted_worker.py")),)
Measure = Callable[..., list[Measurement]]
HOLDER = """
import sys, time
from pathlib import Path
from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.channel import Job
from fastervit_trt.benchmarks.sweep.plan import Options
from fastervit_trt.benchmarks.sweep.process import CellProcess
cell = Cell("exports/fp16", "tiny", "fp16", "224x224", "hangs", 8, 1, key="hangs")
process = CellProcess(Job(cell, Options()), Path(sys.argv[1]), 60.0, (sys.argv[2],))
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Cells of the named backends, all of one export, in four rounds."""
    notes = tmp_path / "slices.txt"
    notes.touch()
    monkeypatch.setenv("SLICES", str(notes))

    def run(*backends: str, silence: float = 60.0, accuracies: Accuracies | None = None) -> list[Measurement]:
        cells = [
            Cell("exports/fp16", "tiny", "fp16", "224x224", name, batch=8, streams=1, key=f"{i}-{name}")
            for i, name in enumerate(backends)
        ]
        options = Options(data="digits", seconds=0.4, rounds=4, silence=silence)
        known = {} if accuracies is None else accuracies
        return measure_group(cells, options, known, tmp_path, Watcher(), WORKER)

    return run


def notes(tmp_path: Path) -> list[str]:
    return (tmp_path / "slices.txt").read_text().splitlines()


def test_cells_take_turns_and_all_samples_are_kept(measure: Measure, tmp_path: Path) -> None:
    first, second = measure("a", "b")
    assert [line for line in notes(tmp_path) if line.endswith("slice")] == ["a slice", "b slice"] * 4
    for found in (first, second):
        assert (found.failure, found.stable, found.attempts) == ("", True, 1)
        assert found.latency_s == found.throughput_s == [[0.01] * 3] * 4
        assert found.facts["warm_up_seconds"] == 0.5
        assert (found.facts["affinity"], found.facts["other_load"], found.facts["peak_rss_mib"]) == ("0-1", 0.0, 10)


def test_accuracy_is_taken_once_per_artifact_and_backend(measure: Measure, tmp_path: Path) -> None:
    found = measure("a", "a", "b")
    assert notes(tmp_path).count("a accuracy") == notes(tmp_path).count("b accuracy") == 1
    assert all(m.accuracy is not None and m.accuracy["columns"]["top1"] == 0.5 for m in found)


def test_accuracy_that_is_known_is_not_taken_again(measure: Measure, tmp_path: Path) -> None:
    known = {"columns": {"top1": 0.25}, "right": None, "note": ""}
    (found,) = measure("a", accuracies={("exports/fp16", "a"): known})
    assert found.accuracy == known
    assert "a accuracy" not in notes(tmp_path)


def test_what_goes_wrong_with_one_cell_is_its_reason_and_the_others_go_on(measure: Measure) -> None:
    wrong = {
        "dies-opening": "its process was ended by SIGKILL: out of memory?",
        "dies-in-turn": "its process was ended by SIGSEGV",
        "exits": "its process ended with exit code 3: out of luck",
        "refuses": "no such thing here",
    }
    before, *found, after = measure("a", *wrong, "b")
    assert {m.cell.backend: m.failure for m in found} == wrong
    for other in (before, after):
        assert other.failure == ""
        assert len(other.latency_s) == 4


def test_a_cell_that_says_nothing_is_given_up_and_ended(measure: Measure) -> None:
    wrong, fine = measure("hangs", "a", silence=3.0)
    assert wrong.failure == "no sign of life for 3 s"
    assert len(fine.throughput_s) == 4
    left = [p for p in psutil.Process().children(recursive=True) if "scripted_worker" in " ".join(p.cmdline())]
    assert not left


def test_an_unstable_cell_has_a_second_attempt_in_a_fresh_process(measure: Measure, tmp_path: Path) -> None:
    found = measure("a", "settles-later", "never-settles", "drifts-with-streams", "dies-again")
    assert [(m.attempts, m.stable) for m in found] == [(1, True), (2, True), (2, False), (2, False), (2, False)]
    _, later, _, _, dead = found
    assert dead.failure == "", "what the first attempt measured remains, unstable as it is"
    assert len(dead.latency_s) == 4
    assert notes(tmp_path).count("settles-later started") == notes(tmp_path).count("never-settles started") == 2
    assert later.latency_s == [[0.01] * 3] * 4, "samples of the first attempt are not mixed in"
    assert notes(tmp_path).count("never-settles accuracy") == 1


def test_a_process_ends_itself_when_its_sweep_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slices.txt").touch()
    monkeypatch.setenv("SLICES", str(tmp_path / "slices.txt"))
    sweep = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "log.txt"), *WORKER], stdout=subprocess.PIPE)
    assert sweep.stdout is not None
    worker = psutil.Process(int(sweep.stdout.readline()))
    while not notes(tmp_path):  # it has its job, and sleeps over it
        time.sleep(0.01)
    sweep.kill()
    sweep.communicate()
    _, alive = psutil.wait_procs([worker], timeout=30)
    assert not alive
