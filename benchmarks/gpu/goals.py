"""What the project set out to reach on a GPU, held against rows: each goal with what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from fastervit_trt.benchmarks.gpu.rows import OK, GpuRow

__all__ = ["GOALS", "Goal", "Outcome", "gain", "outcomes"]

_BATCH = 128
_CORE = ("core", "faster_vit_0_224 stage 3 window", _BATCH)
_BLOCK = ("block", "faster_vit_0_224 stage 3 block", _BATCH)
_OURS = "ours"  # peers that begin so; the fastest of them counts
_COMPILE = ("compile", "compile shipped", "compile planes")  # of the model as trained
_NOT_FP16 = "int8"

Found = tuple[float, str]  # a value, and whose it is


@dataclass(frozen=True)
class Outcome:
    """A goal at what was measured; None: nothing was."""

    goal: str
    at_least: float
    measured: float | None = None
    where: str = ""

    @property
    def met(self) -> bool:
        return self.measured is not None and self.measured >= self.at_least


@dataclass(frozen=True)
class Goal:
    """A value to reach; ``measure`` finds it in rows that were timed."""

    name: str
    at_least: float
    measure: Callable[[Sequence[GpuRow]], Found | None]


def outcomes(rows: Iterable[GpuRow]) -> list[Outcome]:
    """Every goal, met or not."""
    timed = [row for row in rows if row.status == OK and row.time_us and row.dtype != _NOT_FP16]
    found = [(goal, goal.measure(timed)) for goal in GOALS]
    return [Outcome(goal.name, goal.at_least, *(value or (None, ""))) for goal, value in found]


def gain(peer: GpuRow, rows: Iterable[GpuRow]) -> float | None:
    """Time of ``peer`` over that of our fastest way to do the same; ratios are of rounds in which both took turns."""
    ours = [
        row.time_over_ours
        for row in rows
        if row.peer.startswith(_OURS) and (row.stage, row.case, row.batch) == (peer.stage, peer.case, peer.batch)
        if row.time_over_ours
    ]
    return peer.time_over_ours / min(ours) if ours and peer.time_over_ours else None


def _share_of_copy(rows: Sequence[GpuRow]) -> Found | None:
    ours = _of(rows, *_CORE)
    return max(((row.share_of_copy, row.peer) for row in ours if _is_ours(row) and row.share_of_copy), default=None)


def _least_gain(rows: Sequence[GpuRow], case: tuple[str, str, int], is_peer: Callable[[GpuRow], bool]) -> Found | None:
    """Over the fastest of some peers."""
    return _least((gain(row, rows), row) for row in _of(rows, *case) if is_peer(row))


def _over_all(rows: Sequence[GpuRow], stage: str) -> Found | None:
    """The least gain over any peer in any case: 1 where none is faster."""
    return _least((gain(row, rows), row) for row in rows if row.stage == stage and not _is_ours(row))


def _latency_over_all(rows: Sequence[GpuRow]) -> Found | None:
    """The same for what one caller with one image waits."""
    single = [row for row in rows if row.stage == "models" and row.batch == 1 and row.latency_us]
    ours = {
        case: min(row.latency_us or 0 for row in single if _is_ours(row) and row.case == case)
        for case in {row.case for row in single if _is_ours(row)}
    }
    return _least(
        ((row.latency_us or 0) / ours[row.case], row) for row in single if not _is_ours(row) and row.case in ours
    )


def _least(values: Iterable[tuple[float | None, GpuRow]]) -> Found | None:
    named = [(value, f"{row.peer}, {row.case}, batch {row.batch}") for value, row in values if value is not None]
    return min(named, default=None)


def _of(rows: Sequence[GpuRow], stage: str, case: str, batch: int) -> list[GpuRow]:
    return [row for row in rows if (row.stage, row.case, row.batch) == (stage, case, batch)]


def _is_ours(row: GpuRow) -> bool:
    return row.peer.startswith(_OURS)


def _is_sdpa(row: GpuRow) -> bool:
    return row.peer.startswith("sdpa")


def _is_sdpa_with_copies(row: GpuRow) -> bool:
    return row.peer == "sdpa copies"


def _is_compile(row: GpuRow) -> bool:
    return row.peer in _COMPILE


GOALS = (
    Goal("attention core, batch 128: share of copy bandwidth", 0.7, _share_of_copy),
    Goal(
        "attention core, batch 128: over SDPA with copies",
        3,
        partial(_least_gain, case=_CORE, is_peer=_is_sdpa_with_copies),
    ),
    Goal("attention core, batch 128: over the fastest SDPA", 3, partial(_least_gain, case=_CORE, is_peer=_is_sdpa)),
    Goal("attention core: over any peer", 1, partial(_over_all, stage="core")),
    Goal("HAT block, batch 128: over torch.compile", 1.5, partial(_least_gain, case=_BLOCK, is_peer=_is_compile)),
    *(
        Goal(
            f"FasterViT-{i}, batch 128: over torch.compile",
            1.3,
            partial(_least_gain, case=("models", f"faster_vit_{i}_224", _BATCH), is_peer=_is_compile),
        )
        for i in range(4)
    ),
    Goal("models: over any peer at any batch", 1, partial(_over_all, stage="models")),
    Goal("models, batch 1: latency over any peer", 1, _latency_over_all),
)
