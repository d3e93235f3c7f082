"""Runs the stages of a GPU run, each in a process of its own, and starts it again where it died.

A process that dies or falls silent is at something, as its events say: that gets a row with the reason, and the next
process does what is left. Whoever is waiting for results has them one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from fastervit_trt.benchmarks.gpu.job import Job, Key
from fastervit_trt.benchmarks.gpu.rows import FAILED, STOPPED, Result

__all__ = ["STAGES", "Stage", "run_stage"]

_WORKER = ("-m", "fastervit_trt.benchmarks.gpu.worker")
_MOST_DEATHS = 12  # of one stage: something is wrong beyond single peers
_EXIT_SECONDS = 30
_PIPE = 1 << 16
_LONGEST_NOTE = 300


@dataclass(frozen=True)
class Stage:
    """How long a stage may take by default, and how long it may be silent."""

    name: str
    seconds: float
    silence: float
    what: str


STAGES = {
    stage.name: stage
    for stage in (
        Stage("environment", 90, 60, "the GPU, its copy bandwidth and matrix rate"),
        Stage("build", 400, 400, "the kernels compiled for this GPU"),
        Stage("facts", 240, 120, "whether TensorRT-RTX and ONNX Runtime run here"),
        Stage("kernels", 400, 400, "the project's tests of the kernels"),
        Stage("core", 400, 150, "attention on packed QKV against every peer"),
        Stage("half", 300, 150, "the attention half of a block"),
        Stage("partition", 150, 120, "windows out of maps, and back"),
        Stage("block", 300, 240, "one HAT block"),
        Stage("models", 570, 400, "whole models"),
        Stage("profile", 300, 150, "ncu's counters of each kernel (not by default)"),
    )
}


class _EndedError(Exception):
    """The process was ended: its time was up, or it was silent for too long."""


def run_stage(
    job: Job,
    seconds: float,
    silence: float,
    on_results: Callable[[Sequence[Result]], None],
    log: IO[bytes],
    environment: Mapping[str, str],
    worker: tuple[str, ...] = _WORKER,
) -> None:
    """Do ``job``.

    Args:
        seconds: for all of it.
        silence: in which nothing was begun, nothing found.
        on_results: takes results as they come, several where they come at once.
        log: receives what the process says besides.
        worker: arguments of Python.
    """
    deadline = time.monotonic() + seconds
    for _ in range(_MOST_DEATHS):
        process = _Process(job, worker, log, environment)
        done: list[Key] = []
        try:
            for results in process.results(deadline, silence):
                done += [result.key for result in results]
                on_results(results)
        except _EndedError as end:
            status, reason = STOPPED if time.monotonic() >= deadline else FAILED, str(end)
        else:
            code = process.wait()
            if code == 0:
                return
            status, reason = FAILED, process.last_words(code)
        finally:
            process.kill()
        late = time.monotonic() >= deadline
        if process.at is None and (late or not done):  # nothing in particular is to blame, and nothing was won
            on_results([Result(stage=job.stage, case="", peer="", status=status, note=reason)])
            return
        if process.at is not None:
            stage, case, batch, peer = process.at
            on_results([Result(stage=stage, case=case, batch=batch, peer=peer, status=status, note=reason)])
            done.append(process.at)
        if late:
            return
        job = replace(job, done=[*job.done, *done])
    note = f"given up after {_MOST_DEATHS} processes that died"
    on_results([Result(stage=job.stage, case="", peer="", status=FAILED, note=note)])


class _Process:
    """A worker, and what it is at."""

    def __init__(self, job: Job, worker: tuple[str, ...], log: IO[bytes], environment: Mapping[str, str]) -> None:
        self.at: Key | None = None
        self._log, self._said = log, os.fstat(log.fileno()).st_size
        with tempfile.TemporaryFile("w+") as request:
            job.dump(request)
            request.flush()
            request.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, *worker],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                start_new_session=True,  # so that its compilers end with it
            )

    def results(self, deadline: float, silence: float) -> Iterator[list[Result]]:
        """Until the process closes its output.

        Raises:
            _EndedError: it took too long.
        """
        assert self._process.stdout is not None
        pipe, rest, heard = self._process.stdout.fileno(), b"", time.monotonic()
        while True:
            patience = min(deadline, heard + silence) - time.monotonic()
            if patience <= 0:
                what = "the stage's time was up" if time.monotonic() >= deadline else f"silent for {silence:.0f} s"
                raise _EndedError(what)
            if not select.select([pipe], [], [], patience)[0]:
                continue
            chunk = os.read(pipe, _PIPE)
            if not chunk:
                return
            heard = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            results = [result for line in lines if (result := self._result(json.loads(line))) is not None]
            if results:
                yield results

    def _result(self, event: dict[str, Any]) -> Result | None:
        if "start" in event:
            key = event["start"]
            self.at = (key[0], key[1], key[2], key[3]) if key else None
            return None
        result = Result(**event["result"])
        if self.at == result.key:
            self.at = None
        return result

    def wait(self) -> int:
        """The exit code, once it has closed its output; 0 where it hangs on its way out, with all said."""
        try:
            return self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return 0

    def last_words(self, code: int) -> str:
        """Why it died: the signal or code, and the last line that it said."""
        end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._log.flush()
        with Path(self._log.name).open("rb") as log:
            log.seek(self._said)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"process ended ({end}): {lines[-1] if lines else 'no message'}"[:_LONGEST_NOTE]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
