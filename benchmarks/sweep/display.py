"""What a user sees of a sweep while it runs: a bar with the time left, and a line per cell that is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.group import Watcher
from fastervit_trt.console import err_console, say

__all__ = ["SweepDisplay", "line_of", "sweep_display"]

_REFRESHES_PER_SECOND = 2  # more would take time from what is measured on a CPU


class SweepDisplay(Watcher):
    """A bar over the time that was estimated.

    Args:
        seconds: estimated per cell, by key.
    """

    def __init__(self, progress: Progress, seconds: Mapping[str, float], timed: float, count: int) -> None:
        self._progress, self._seconds, self._timed, self._count = progress, seconds, timed, count
        self._finished = 0
        self._spent: dict[str, float] = {}
        self._task = progress.add_task("starting", total=sum(seconds.values()))

    def at(self, cell: Cell, doing: str) -> None:
        self._progress.update(self._task, description=f"{self._finished}/{self._count} {cell.name}: {doing}")

    def opened(self, cell: Cell) -> None:
        self._advance(cell, max(0.0, self._seconds.get(cell.key, 0.0) - self._timed))

    def timed(self, cell: Cell, share: float) -> None:
        self._advance(cell, share * self._timed)

    def done(self, cell: Cell, row: BenchmarkRow) -> None:
        self._finished += 1
        self._advance(cell, self._seconds.get(cell.key, 0.0))
        say(f"{self._finished}/{self._count} {cell.name}: {line_of(row)}")

    def _advance(self, cell: Cell, seconds: float) -> None:
        """At most to what was estimated for the cell: a second attempt moves the bar no further."""
        before = self._spent.get(cell.key, 0.0)
        after = min(before + seconds, self._seconds.get(cell.key, 0.0))
        self._spent[cell.key] = after
        self._progress.update(self._task, advance=after - before)


@contextmanager
def sweep_display(seconds: Mapping[str, float], timed: float, count: int) -> Iterator[SweepDisplay]:
    """Shown until the block ends; lines of results go to standard output, the bar to standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console, refresh_per_second=_REFRESHES_PER_SECOND, transient=True) as progress:
        yield SweepDisplay(progress, seconds, timed, count)


def line_of(row: BenchmarkRow) -> str:
    """What came of a cell, in a few words."""
    if not row.measured:
        return f"{row.status}: {row.reason}"
    parts = [] if row.score is None else [f"{row.metric} {100 * row.score:.2f} %"]
    if not row.speed_is_meaningful:
        parts.append("speed means nothing (emulated)")
    elif row.throughput_img_per_s is not None and row.latency_p50_ms is not None:
        parts.append(f"{row.throughput_img_per_s:.4g} images/s, {row.latency_p50_ms:.4g} ms")
    if row.status == "unstable":
        parts.append("unstable")
    return ", ".join(parts + ([row.flags] if row.flags else []))
