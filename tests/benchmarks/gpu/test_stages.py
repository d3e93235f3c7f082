"""Stages whose processes do as they should, and every way in which they do not."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.gpu.job import Job
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, STOPPED, Result
from fastervit_trt.benchmarks.gpu.stages import STAGES, run_stage

JOB = Job(stage="core", checkout=".", build=".", output=".", device="cpu")

# What a stage's process has: its job, and how it says what it is at and what it found.
PROLOGUE = """
    import json, os, signal, sys, time
    job = json.load(sys.stdin)
    done = [key[3] for key in job["done"]]

    def say(event):
        print(json.dumps(event), flush=True)

    def start(peer):
        say({"start": ["core", "case", 8, peer]})

    def ok(peer):
        say({"result": {"stage": "core", "case": "case", "batch": 8, "peer": peer, "status": "ok"}})
"""

Run = Callable[..., list[tuple[str, str, str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a stage whose process is ``code``: peer, status and note of each result."""

    def run_code(code: str, seconds: float = 30, silence: float = 30) -> list[tuple[str, str, str]]:
        script = tmp_path / "worker.py"
        script.write_text(textwrap.dedent(PROLOGUE) + textwrap.dedent(code))
        results: list[Result] = []
        with (tmp_path / "log.txt").open("ab") as log:
            run_stage(JOB, seconds, silence, results.extend, log, os.environ, worker=(str(script),))
        return [(result.peer, result.status, result.note) for result in results]

    return run_code


def test_results_come_as_they_are(run: Run, tmp_path: Path) -> None:
    assert run("start('a'); ok('a'); ok('b'); sys.stderr.write('some noise')") == [("a", OK, ""), ("b", OK, "")]
    assert (tmp_path / "log.txt").read_text() == "some noise"


def test_what_killed_its_process_gets_the_blame_and_the_rest_goes_on(run: Run) -> None:
    code = """
        for peer in ("a", "b", "c"):
            if peer not in done:
                start(peer)
                if peer == "b":
                    sys.exit("illegal memory access")
                ok(peer)
    """
    assert run(code) == [
        ("a", OK, ""),
        ("b", FAILED, "process ended (exit code 1): illegal memory access"),
        ("c", OK, ""),
    ]


def test_a_process_that_is_killed_says_by_what(run: Run) -> None:
    ((peer, status, note),) = run("if not done: start('a'); os.kill(os.getpid(), signal.SIGSEGV)")
    assert (peer, status) == ("a", FAILED)
    assert note == "process ended (killed by SIGSEGV): no message"


def test_silence_ends_a_process_and_those_that_it_started(run: Run, tmp_path: Path) -> None:
    code = f"""
        import subprocess
        if not done:
            start("hangs")
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
            time.sleep(60)
        ok("b")
    """
    began = time.monotonic()
    assert run(code, silence=1.5) == [("hangs", FAILED, "silent for 2 s"), ("b", OK, "")]
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_time_is_up_for_the_stage_not_only_for_one_process(run: Run) -> None:
    results = run("ok('a'); start('b')\nwhile True: time.sleep(0.2); ok('again')", seconds=2, silence=1)
    assert results[0] == ("a", OK, "")
    assert [result for result in results if result[0] == "b"] == [("b", STOPPED, "the stage's time was up")]
    assert results[-1][0] == "b"
    assert {peer for peer, _, _ in results} == {"a", "b", "again"}


def test_a_stage_that_cannot_even_begin_is_tried_once(run: Run) -> None:
    assert run("raise SystemExit('no module')") == [("", FAILED, "process ended (exit code 1): no module")]


def test_a_lost_device_is_not_the_fault_of_who_comes_next(run: Run) -> None:
    """The peer that lost it has its row; the process ends, and another one does what is left."""
    code = """
        if not done:
            start("a"); ok("a"); sys.exit(75)
        start("b"); ok("b")
    """
    assert run(code) == [("a", OK, ""), ("b", OK, "")]


def test_a_stage_that_dies_again_and_again_is_given_up(run: Run) -> None:
    *deaths, last = run("start(f'peer {len(done)}'); sys.exit(1)")
    assert [(peer, status) for peer, status, _ in deaths] == [(f"peer {i}", FAILED) for i in range(len(deaths))]
    assert last[2].startswith(f"given up after {len(deaths)}")


def test_a_real_stage_in_a_real_process(tmp_path: Path) -> None:
    results: list[Result] = []
    with (tmp_path / "log.txt").open("ab") as log:
        run_stage(replace(JOB, stage="environment", seconds=0.01), 120, 120, results.extend, log, os.environ)
    values = {result.case: (result.value, result.unit) for result in results if result.time_us}
    assert set(values) == {"device-to-device copy", "matrix product"}, (tmp_path / "log.txt").read_text()
    assert values["device-to-device copy"][0] > 0  # type: ignore[operator]
    assert values["matrix product"][1] == "TFLOP/s"


def test_a_stage_that_raises_is_a_row(tmp_path: Path) -> None:
    results: list[Result] = []
    job = replace(JOB, stage="kernels", checkout=str(tmp_path))
    with (tmp_path / "log.txt").open("ab") as log:
        run_stage(job, 120, 120, results.extend, log, os.environ)
    assert [(r.stage, r.case, r.status) for r in results] == [("kernels", "", FAILED)]
    assert results[0].note.startswith(f"no tests/plugins in {tmp_path}")


def test_stages_have_time() -> None:
    assert all(0 < stage.silence <= stage.seconds for stage in STAGES.values())
