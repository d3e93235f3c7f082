"""Between a sweep and the process of a cell: one JSON object per line, both ways.

The sweep sends a job, then says whose turn it is; the process answers with events. A process whose sweep is gone
ends itself, whatever it is at.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.plan import Options

__all__ = ["Channel", "Job"]

_ORPHANED = 74  # exit code


@dataclass(frozen=True)
class Job:
    """What a process is to measure."""

    cell: Cell
    options: Options
    has_accuracy: bool = False  # taken by another cell of the same artifact and backend
    examples: str = ""  # folder for outputs to draw, which the cell that takes the accuracy writes

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Job:
        return cls(Cell(**record["cell"]), Options(**record["options"]), record["has_accuracy"], record["examples"])


class Channel:
    """The process's side. Standard output is for events alone: what libraries print there goes to standard error."""

    def __init__(self) -> None:
        self._events = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, **event: Any) -> None:
        """One event. Sent from one thread only."""
        self._events.write(json.dumps(event) + "\n")

    def receive(self) -> dict[str, Any]:
        """The next command."""
        return self._commands.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._commands.put(json.loads(line))
        os._exit(_ORPHANED)
