"""A pair of rows and the others of their runs in; what its speed is judged relative to out.

References, and what each cannot see:

- another backend, by default ``torch``, of the same model, resolution and batch, in the same precision where there is
  one: a slowdown of both alike is not seen, and if that backend becomes faster, all others seem to fall;
- ``median``, where there is no such row: the median change of all rows of the device. Most rows must not have changed,
  or they hide what they share; a few that became faster or slower do not move it, as they would move a mean;
- none: speeds themselves, on the same device only. Sees everything, the weather included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from fastervit_trt.benchmarks.comparison.pairing import Pair, Speed, place_of
from fastervit_trt.benchmarks.comparison.significance import round_logs
from fastervit_trt.errors import FasterViTError

__all__ = ["MEDIAN", "Reference", "absolute_reference", "moved", "relative_reference"]

MEDIAN = "median"
_DEFAULT = "torch"
_FEWEST = 3  # rows for a median that one of them does not decide


@dataclass(frozen=True)
class Reference:
    """What a row's speed is relative to: rounds of both runs as log speed, and how much it moved by medians."""

    name: str
    before: np.ndarray | float
    after: np.ndarray | float
    moved: float  # log of speed now over speed then
    ratio: float | None  # of the row's speed to it, then


def moved(pair: Pair, speed: Speed) -> float | None:
    """Log of the speed now over that of the baseline, between medians."""
    then, now = (speed.times(record.row)[1] for record in (pair.before, pair.after))
    return None if not then or not now else math.log(then / now)


def absolute_reference(pair: Pair, speed: Speed) -> Reference:
    """The row itself.

    Raises:
        FasterViTError: the two runs are of different devices.
    """
    if not pair.same_place:
        raise FasterViTError(
            f"{pair.name} is of {pair.before.row.device} in the baseline and of "
            f"{pair.after.row.device} now, or on other threads; leave --absolute out to compare ratios"
        )
    return Reference("", 0.0, 0.0, 0.0, None)


def relative_reference(pair: Pair, speed: Speed, *, pairs: Sequence[Pair], name: str | None) -> Reference | None:
    """What ``pair`` is judged by; None if it is what the others are judged by.

    Args:
        pairs: all that both runs have, measured.
        name: a backend, ``median``, or None: ``torch`` if there is such a row, else the median.

    Raises:
        FasterViTError: there is no row of the backend that was asked for, or too few for a median.
    """
    backend = name or _DEFAULT
    if backend == MEDIAN:
        return _median_reference(pair, pairs, speed)
    if pair.before.row.backend == backend:
        return None
    beside = [other for other in pairs if _is_beside(other, pair, backend) and moved(other, speed) is not None]
    if beside:
        return _row_reference(pair, max(beside, key=lambda other: _likeness(other, pair)), speed)
    if name is not None:
        raise FasterViTError(
            f"{pair.name} has no row of backend '{backend}' beside it in both runs (same device, "
            "model, resolution and batch); measure it, or choose another --relative-to"
        )
    return _median_reference(pair, pairs, speed)


def _is_beside(other: Pair, pair: Pair, backend: str) -> bool:
    mine, its = pair.before.row, other.before.row
    same = all(getattr(mine, name) == getattr(its, name) for name in ("model", "task", "resolution", "batch"))
    return its.backend == backend and same and _places(other) == _places(pair)


def _likeness(other: Pair, pair: Pair) -> tuple[bool, ...]:
    names = ("precision", "streams", "transfers", "cold_cache")
    return tuple(getattr(other.before.row, name) == getattr(pair.before.row, name) for name in names)


def _places(pair: Pair) -> tuple[object, object]:
    return place_of(pair.before.row), place_of(pair.after.row)


def _row_reference(pair: Pair, other: Pair, speed: Speed) -> Reference:
    own, its = speed.times(pair.before.row)[1], speed.times(other.before.row)[1]
    row = other.before.row
    like = row.precision == pair.before.row.precision
    return Reference(
        row.backend if like else f"{row.backend} {row.precision}",
        -round_logs(speed.samples(other.before)),
        -round_logs(speed.samples(other.after)),
        moved(other, speed) or 0.0,
        its / own if own and its else None,
    )


def _median_reference(pair: Pair, pairs: Sequence[Pair], speed: Speed) -> Reference:
    beside = [moved(other, speed) for other in pairs if _places(other) == _places(pair)]
    moves = [move for move in beside if move is not None]
    if len(moves) < _FEWEST:
        raise FasterViTError(
            f"{pair.name} has neither a reference row beside it nor {_FEWEST} rows of its device in "
            f"common to take the median {speed.name} of; measure backend '{_DEFAULT}', too, or use --absolute"
        )
    return Reference(f"the median of {len(moves)} rows", 0.0, median(moves), median(moves), None)
