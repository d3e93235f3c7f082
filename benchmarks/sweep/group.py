"""Cells in, what came of each out: opened one after the other, timed in turns, again in fresh processes where unstable.

Only what was measured within the same minutes is to be compared: a machine drifts by more than precisions differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.channel import Job
from fastervit_trt.benchmarks.sweep.plan import Options
from fastervit_trt.benchmarks.sweep.process import WORKER, CellFailedError, CellProcess
from fastervit_trt.benchmarks.timing import Rounds

__all__ = ["Accuracies", "Measurement", "Watcher", "measure_group"]

Accuracies = dict[tuple[str, str], Mapping[str, Any]]  # by Cell.artifact


class Watcher:
    """Told what happens; does nothing of itself."""

    def at(self, cell: Cell, doing: str) -> None:
        """``cell`` is at something now, in words."""

    def opened(self, cell: Cell) -> None:
        """``cell`` is ready to be timed."""

    def timed(self, cell: Cell, share: float) -> None:
        """So much of the time it has is over."""


@dataclass
class Measurement:
    """What came of one cell; ``failure`` is "" where it was measured."""

    cell: Cell
    failure: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] | None = None
    latency_s: list[list[float]] = field(default_factory=list)
    throughput_s: list[list[float]] = field(default_factory=list)
    attempts: int = 1

    @property
    def latency(self) -> Rounds:
        return Rounds(tuple(map(tuple, self.latency_s)))

    @property
    def throughput(self) -> Rounds:
        return Rounds(tuple(map(tuple, self.throughput_s)))

    @property
    def stable(self) -> bool:
        return self.latency.stable and self.throughput.stable


def measure_group(
    cells: Sequence[Cell],
    options: Options,
    accuracies: Accuracies,
    logs: Path,
    watcher: Watcher,
    worker: tuple[str, ...] = WORKER,
    examples: Path | None = None,
) -> list[Measurement]:
    """Measure ``cells`` in turns; one measurement per cell, in order.

    Args:
        accuracies: read and added to.
        examples: folder for outputs to draw; None: nobody wants any.
    """
    measured = _attempt(cells, options, accuracies, logs, watcher, worker, examples)
    for attempt in range(2, options.attempts + 1):
        again = [i for i, m in enumerate(measured) if not m.failure and not m.stable]
        if not again:
            break
        second = _attempt([cells[i] for i in again], options, accuracies, logs, watcher, worker, examples)
        for i, repeated in zip(again, second, strict=True):
            if not repeated.failure:  # else what there is remains, unstable as it is
                measured[i] = repeated
            measured[i].attempts = attempt
    return measured


def _attempt(
    cells: Sequence[Cell],
    options: Options,
    accuracies: Accuracies,
    logs: Path,
    watcher: Watcher,
    worker: tuple[str, ...],
    examples: Path | None,
) -> list[Measurement]:
    measured = [Measurement(cell) for cell in cells]
    processes: dict[int, CellProcess] = {}
    try:
        for i, cell in enumerate(cells):
            watcher.at(cell, "starting")
            job = Job(cell, options, cell.artifact in accuracies, str(examples or ""))
            processes[i] = CellProcess(job, logs / f"{cell.key}.txt", options.silence, worker)
            _while_alive(processes, measured[i], i, lambda p, m: _open(p, m, accuracies, watcher))
        for turn in range(options.rounds):
            for i in list(processes):
                watcher.at(cells[i], f"timing, round {turn + 1} of {options.rounds}")
                _while_alive(processes, measured[i], i, lambda p, m: _slice(p, m, options))
                watcher.timed(cells[i], 1 / options.rounds)
        for i in list(processes):
            _while_alive(processes, measured[i], i, _finish)
    finally:
        for process in processes.values():
            process.kill()
    for m in measured:
        m.accuracy = accuracies.get(m.cell.artifact)
    return measured


def _while_alive(
    processes: dict[int, CellProcess],
    measurement: Measurement,
    i: int,
    step: Callable[[CellProcess, Measurement], None],
) -> None:
    """Do ``step``; a process that cannot go on is ended, and the others go on."""
    try:
        step(processes[i], measurement)
    except CellFailedError as failure:
        measurement.failure = str(failure)
        processes.pop(i).kill()


def _open(process: CellProcess, measurement: Measurement, accuracies: Accuracies, watcher: Watcher) -> None:
    """Until it is ready to be timed."""
    cell = measurement.cell
    while True:
        event = process.receive()
        if "progress" in event:
            watcher.at(cell, f"{event['progress']}, {event['done']} of {event['total']} images")
        elif "begin" in event:
            watcher.at(cell, event["begin"])
        elif "accuracy" in event:
            accuracies[cell.artifact] = event["accuracy"]
        elif "ready" in event:
            measurement.facts = {**event["context"], **event["ready"], "warm_up_seconds": event["warm_up_seconds"]}
            watcher.opened(cell)
            return


def _slice(process: CellProcess, measurement: Measurement, options: Options) -> None:
    process.send({"slice": options.seconds / options.rounds})
    taken = process.receive()["slice"]
    measurement.latency_s.append(taken["latency"])
    measurement.throughput_s.append(taken["throughput"])


def _finish(process: CellProcess, measurement: Measurement) -> None:
    process.send({"slice": None})
    event = process.receive()
    measurement.facts = {**measurement.facts, **event["finished"]}
    process.end()
