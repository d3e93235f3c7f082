"""A job in, a process that does it; its events out, or why there will be none."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fastervit_trt.benchmarks.sweep.channel import Job

__all__ = ["WORKER", "CellFailedError", "CellProcess"]

WORKER = ("-m", "fastervit_trt.benchmarks.sweep.worker")
_EXIT_SECONDS = 30
_LONGEST_REASON = 400


class CellFailedError(Exception):
    """The process cannot go on; the message says why, for a row."""


class CellProcess:
    """A process at work on ``job``; what it and its libraries print goes to ``log``.

    Args:
        silence: seconds without an event after which it is given up.
        worker: arguments of Python.
    """

    def __init__(self, job: Job, log: Path, silence: float, worker: tuple[str, ...] = WORKER) -> None:
        self._log, self._silence = log, silence
        threads = str(job.options.threads)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its processes itself
                env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"},
            )
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.send(job.record())

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: dict[str, Any]) -> None:
        """One command.

        Raises:
            CellFailedError: the process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise CellFailedError(self._why_gone()) from error

    def receive(self) -> dict[str, Any]:
        """The next event.

        Raises:
            CellFailedError: the process reports a failure, is gone, or was silent for too long; :meth:`kill` it.
        """
        try:
            line = self._events.get(timeout=self._silence)
        except queue.Empty:
            raise CellFailedError(f"no sign of life for {self._silence:.0f} s") from None
        if line is None:
            raise CellFailedError(self._why_gone())
        event: dict[str, Any] = json.loads(line)
        if "failed" in event:
            raise CellFailedError(event["failed"][:_LONGEST_REASON])
        return event

    def end(self) -> None:
        """Wait for an orderly exit; end it if it does not come."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it and everything it started."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(line)
        self._events.put(None)

    def _why_gone(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        code = self._process.poll()
        if code is not None and code < 0:
            return f"its process was ended by {_signal_name(-code)}{_hint(-code)}"
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its process ended with exit code {code}: {lines[-1].strip() if lines else 'no message'}"[
            :_LONGEST_REASON
        ]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _hint(number: int) -> str:
    return ": out of memory?" if number == getattr(signal, "SIGKILL", None) else ""
