"""Rows in, their standing out: the Pareto front of accuracy against speed, and what dominates the rest, how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastervit_trt.benchmarks.rows import BenchmarkRow

__all__ = ["Axis", "Group", "Standing", "doubt", "front_line", "speed", "standings"]

Axis = Literal["throughput", "latency"]
Span = tuple[float, float, float]  # low, middle, high


@dataclass(frozen=True)
class Group:
    """What rows must share to be compared: where it ran, on which images, and what accuracy means there.

    Resolutions may differ: a model at 160 pixels stands against itself at 224 on the same pictures.
    """

    device: str
    device_kind: str
    machine: str
    batch: int
    dataset: str | None
    dataset_sha256: str
    transfers: bool
    cold_cache: bool
    metric: str = "top-1"

    @classmethod
    def of(cls, row: BenchmarkRow) -> Group:
        where = (row.device, row.device_kind, row.machine)
        data = (row.dataset, row.dataset_sha256)
        return cls(*where, row.batch, *data, row.transfers, row.cold_cache, row.metric)

    @property
    def title(self) -> str:
        """As a reader names it: device, machine, batch, images, the metric if not top-1, and what was unusual."""
        parts = [self.device or "unknown device", self.machine, f"batch {self.batch}", self.dataset or "no images"]
        parts += [self.metric] if self.metric != "top-1" else []
        parts += ["with transfers"] if self.transfers else []
        parts += ["cold L2 cache"] if self.cold_cache else []
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Standing:
    """Where a row stands among the rows of its group.

    Attributes:
        on_front: no other point is as accurate and as fast and better in one of the two; None: it takes no part.
        dominated_by: the point that is; of several one that dominates clearly, on the front, the fastest.
        clearly: it dominates by more than the uncertainty; False: the order of the two may be chance.
        why_not: why the row takes no part, if it does not.
    """

    row: BenchmarkRow
    group: Group
    on_front: bool | None
    dominated_by: BenchmarkRow | None = None
    clearly: bool | None = None
    why_not: str = ""


def standings(rows: Sequence[BenchmarkRow], axis: Axis = "throughput") -> list[Standing]:
    """The standing of every row, in order: one front per group, of accuracy and of ``axis``.

    A point dominates another that is nowhere better and somewhere worse, as measured. It does so *clearly* if, in
    accuracy or in speed, the two intervals do not even touch: 95 % intervals of accuracy, 20th to 80th percentile
    of single calls (wider than any interval of their median, since calls of one process are not independent). In the
    other of the two it has to be as good as measured only: a model and its fp16 twin get the same images right, and no
    number of images would part their intervals.

    A point whose time is doubtful (:func:`doubt`) dominates none that is beyond doubt: one drifting measurement must
    not push a sound one off the front. It may be dominated, and may stand on the front with its mark.
    """
    reasons = [_why_not(row, axis) for row in rows]
    groups: dict[Group, list[BenchmarkRow]] = {}
    for row, reason in zip(rows, reasons, strict=True):
        if not reason:
            groups.setdefault(Group.of(row), []).append(row)
    fronts = {
        group: {id(row) for row in members if not any(_dominates(other, row, axis) for other in members)}
        for group, members in groups.items()
    }
    found = []
    for row, reason in zip(rows, reasons, strict=True):
        group = Group.of(row)
        if reason:
            found.append(Standing(row, group, None, why_not=reason))
        elif id(row) in fronts[group]:
            found.append(Standing(row, group, on_front=True))
        else:
            found.append(_dominated(row, group, groups[group], fronts[group], axis))
    return found


def doubt(row: BenchmarkRow) -> str:
    """What casts doubt on the time of a measured row; empty: nothing."""
    unstable = f"unstable: {row.reason or 'the halves of the time differ'}" if row.status == "unstable" else ""
    return "; ".join(part for part in (unstable, row.flags) if part)


def speed(row: BenchmarkRow, axis: Axis) -> Span | None:
    """20th percentile, median and 80th of images/s or of ms per batch, whichever ``axis`` asks for."""
    if axis == "throughput":
        low, middle, high = row.throughput_p20_img_per_s, row.throughput_img_per_s, row.throughput_p80_img_per_s
    else:
        low, middle, high = row.latency_p20_ms, row.latency_p50_ms, row.latency_p80_ms
    if middle is None or middle <= 0:
        return None
    return (middle if low is None else low, middle, middle if high is None else high)


def front_line(standings_of_group: Sequence[Standing], axis: Axis = "throughput") -> list[tuple[float, float]]:
    """Corners (speed, accuracy) of the front from slow to fast; doubtful points bend it where there are no others."""
    front = [s.row for s in standings_of_group if s.on_front]
    sound = [row for row in front if not doubt(row)] or front
    corners = {(_middle(row, axis), row.score or 0.0) for row in sound}
    return sorted(corners, reverse=axis == "latency")


def _why_not(row: BenchmarkRow, axis: Axis) -> str:
    if not row.measured:
        return f"{row.status}: {row.reason or 'no reason was recorded'}"
    if row.score is None:
        return "no accuracy was measured"
    if speed(row, axis) is None:
        return f"no {axis} was measured"
    return "" if row.speed_is_meaningful else "its speed means nothing: the backend emulates the precision"


def _dominated(
    row: BenchmarkRow, group: Group, rivals: Sequence[BenchmarkRow], front: set[int], axis: Axis
) -> Standing:
    def rank(other: BenchmarkRow) -> tuple[bool, bool, float, float]:
        return (_clearly(other, row, axis), id(other) in front, _quickness(other, axis), other.score or 0.0)

    best = max((other for other in rivals if _dominates(other, row, axis)), key=rank)
    return Standing(row, group, on_front=False, dominated_by=best, clearly=_clearly(best, row, axis))


def _dominates(a: BenchmarkRow, b: BenchmarkRow, axis: Axis) -> bool:
    if doubt(a) and not doubt(b):
        return False
    mine, other = (a.score or 0.0, _quickness(a, axis)), (b.score or 0.0, _quickness(b, axis))
    return mine != other and mine[0] >= other[0] and mine[1] >= other[1]


def _clearly(a: BenchmarkRow, b: BenchmarkRow, axis: Axis) -> bool:
    """Whether ``a``, which dominates ``b``, does so beyond uncertainty; what has no interval decides nothing."""
    surely_better = a.score_low is not None and b.score_high is not None and a.score_low > b.score_high
    return surely_better or _surely_faster(a, b, axis)


def _surely_faster(a: BenchmarkRow, b: BenchmarkRow, axis: Axis) -> bool:
    if axis == "throughput":
        slowest, fastest = a.throughput_p20_img_per_s, b.throughput_p80_img_per_s
        return slowest is not None and fastest is not None and slowest > fastest
    longest, shortest = a.latency_p80_ms, b.latency_p20_ms
    return longest is not None and shortest is not None and longest < shortest


def _middle(row: BenchmarkRow, axis: Axis) -> float:
    span = speed(row, axis)
    assert span is not None  # rows without speed take no part
    return span[1]


def _quickness(row: BenchmarkRow, axis: Axis) -> float:
    """Larger is better, on either axis."""
    middle = _middle(row, axis)
    return middle if axis == "throughput" else -middle
