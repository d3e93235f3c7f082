"""A run and a baseline in; which rows fell behind it out, judged by ratios, since machines differ and drift.

The speed of a row is taken relative to a reference of the same run on the same device, and that ratio is compared with
the baseline's; :mod:`fastervit_trt.benchmarks.comparison.references` says what each reference cannot see.

A row fails when it fell by more than the limit even at the favourable end of the 95 % interval over rounds. Where one
side kept no samples, it must have fallen by more than the limit between medians, and its 20th to 80th percentiles must
not overlap those of the baseline. A guard that flaps is switched off; what the limit catches late, it catches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from fastervit_trt.benchmarks.comparison.pairing import SPEEDS, Pair, Speed, describe, pair_records, same_images
from fastervit_trt.benchmarks.comparison.references import Reference, absolute_reference, moved, relative_reference
from fastervit_trt.benchmarks.comparison.significance import round_logs, trimmed_shift
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.errors import FasterViTError

__all__ = ["Limits", "Verdict", "check_records"]

_SLACK = 1e-9  # of a point: 99.5 less 99.0 is not more than 0.5


@dataclass(frozen=True)
class Limits:
    """How far a row may fall: ``regression`` as a share of its speed, ``accuracy_points`` of accuracy in points."""

    regression: float
    accuracy_points: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What :func:`check_records` found, a line each.

    Attributes:
        falls: rows that fell by more than the limit, beyond noise.
        missing: measured in the baseline, not any more.
        doubtful: fell by more than the limit, but not beyond noise; no failure.
        cautions: what the judgement could not see.
        checked: speeds and accuracies judged.
        summary: all of it in a line.
    """

    falls: tuple[str, ...]
    missing: tuple[str, ...]
    doubtful: tuple[str, ...]
    cautions: tuple[str, ...]
    checked: int
    summary: str


@dataclass(frozen=True)
class _Change:
    value: float  # relative
    interval: str
    beyond_noise: bool


def check_records(
    now: Sequence[Record],
    baseline: Sequence[Record],
    limits: Limits,
    *,
    relative_to: str | None = None,
    absolute: bool = False,
    allow_missing: bool = False,
) -> Verdict:
    """Judge ``now`` by ``baseline``.

    Args:
        relative_to: a backend, which every row must then have beside it in both runs, or ``median``; by default
            ``torch`` where there is one, else the median.
        absolute: compare speeds themselves; ``relative_to`` is then not used.
        allow_missing: what the baseline has may be absent.

    Raises:
        FasterViTError: nothing in common, nothing to judge, no reference, another device (``absolute``) or other
            images (``limits.accuracy_points``).
    """
    pairing = pair_records(baseline, now)
    if not pairing.pairs:
        raise FasterViTError(
            "the results and the baseline have no condition in common; measure the same models, precisions, backends "
            "and batches, or make a new baseline"
        )
    missing = [f"{describe(lost.row, pairing.twins)}: missing" for lost in pairing.only_before if lost.row.measured]
    missing += [
        f"{pair.name}: {pair.after.row.status} now: {pair.after.row.reason}"
        for pair in pairing.pairs
        if pair.before.row.measured and not pair.after.row.measured
    ]
    measured = [pair for pair in pairing.pairs if pair.before.row.measured and pair.after.row.measured]
    timed = [p for p in measured if p.before.row.speed_is_meaningful and p.after.row.speed_is_meaningful]
    judge = absolute_reference if absolute else partial(relative_reference, pairs=timed, name=relative_to)
    falls, doubtful, speeds, used = _judge_speeds(timed, limits.regression, judge)
    lost_accuracy, no_accuracy, accuracies = _judge_accuracy(measured, limits.accuracy_points)
    missing += no_accuracy
    if not speeds and not accuracies and (allow_missing or not missing):
        raise FasterViTError(
            "there is nothing to judge: the rows in common emulate their precision, have no times, or are the "
            "reference itself; use --absolute, --relative-to median, or measure other backends beside it"
        )
    return Verdict(
        (*falls, *lost_accuracy),
        () if allow_missing else tuple(missing),
        tuple(doubtful),
        tuple(_cautions(timed, missing if allow_missing else [])),
        speeds + accuracies,
        _summary(speeds, accuracies, limits, used, timed),
    )


def _judge_speeds(
    pairs: Sequence[Pair], limit: float, judge: Callable[[Pair, Speed], Reference | None]
) -> tuple[list[str], list[str], int, list[str]]:
    """Lines of those that fell, of those that may have, how many were judged, and the references used."""
    falls: list[str] = []
    doubtful: list[str] = []
    used: list[str] = []
    for pair in pairs:
        for speed in SPEEDS:
            reference = judge(pair, speed) if moved(pair, speed) is not None else None
            if reference is None:
                continue
            used.append(reference.name)
            change = _change(pair, speed, reference, limit)
            if change.value < -limit:
                line = _line(pair, speed, reference, change)
                (falls if change.beyond_noise else doubtful).append(line)
    return falls, doubtful, len(used), list(dict.fromkeys(used))


def _change(pair: Pair, speed: Speed, reference: Reference, limit: float) -> _Change:
    before = _relative(-round_logs(speed.samples(pair.before)), reference.before)
    after = _relative(-round_logs(speed.samples(pair.after)), reference.after)
    shift = trimmed_shift(before, after)
    if shift is not None:
        value, low, high = (math.expm1(x) for x in (shift.value, shift.low, shift.high))
        return _Change(value, f" ({-100 * high:.1f} to {-100 * low:.1f})", high < -limit)
    value = math.expm1((moved(pair, speed) or 0.0) - reference.moved)
    slowest_then, fastest_now = speed.times(pair.before.row)[2], speed.times(pair.after.row)[0]
    if slowest_then is None or fastest_now is None:
        return _Change(value, " (no spread known)", True)
    return _Change(value, " (between medians)", fastest_now * math.exp(reference.moved) > slowest_then)


def _relative(own: np.ndarray, reference: np.ndarray | float) -> np.ndarray:
    """Rounds are of the same minutes for all rows of a run, which takes out what a minute did to all of them."""
    if isinstance(reference, float):
        return np.asarray(own - reference)
    both = min(len(own), len(reference))
    return np.asarray(own[:both] - reference[:both])


def _line(pair: Pair, speed: Speed, reference: Reference, change: _Change) -> str:
    verb = "fell" if speed.name == "throughput" else "worsened"
    said = f"{pair.name}: {speed.name} {verb} by {-100 * change.value:.1f} %{change.interval}"
    then, now = (speed.spoken(speed.shown(record.row) or 0.0) for record in (pair.before, pair.after))
    if reference.ratio is not None:
        ratio_now = reference.ratio * (1 + change.value)
        return f"{said}: {reference.ratio:.3f} times as fast as {reference.name} then, {ratio_now:.3f} now"
    against = f" against {reference.name} ({100 * math.expm1(reference.moved):+.1f} %)" if reference.name else ""
    return f"{said}{against}: {then} then, {now} now"


def _judge_accuracy(pairs: Sequence[Pair], limit: float | None) -> tuple[list[str], list[str], int]:
    """Lines of those that lost more, of those whose accuracy is gone, and how many were judged."""
    falls, missing, checked = [], [], 0
    for pair in pairs if limit is not None else []:
        then, now = pair.before.row, pair.after.row
        if then.score is None:
            continue
        if now.score is None:
            missing.append(f"{pair.name}: its accuracy is no longer measured")
            continue
        if not same_images(then, now):
            raise FasterViTError(
                f"{pair.name} was judged on other images ({then.images} of {then.dataset}) in the baseline than "
                f"now ({now.images} of {now.dataset}); use the same --data, or leave --max-accuracy-drop out"
            )
        checked += 1
        points = 100 * (then.score - now.score)
        if limit is not None and points > limit + _SLACK:
            shares = f"{100 * then.score:.2f} % then, {100 * now.score:.2f} % now"
            falls.append(f"{pair.name}: {then.metric} fell by {points:.2f} points: {shares}")
    return falls, missing, checked


def _cautions(pairs: Sequence[Pair], missing: Sequence[str]) -> Iterator[str]:
    others = {(p.before.row.device, p.after.row.device) for p in pairs if not p.same_place}
    for then, now in sorted(others):
        yield f"the baseline is of {then}, this run of {now}: ratios between backends depend on the device and threads"
    for pair in pairs:
        row = pair.after.row
        if row.status == "unstable" or row.flags:
            yield f"{pair.name}: {'; '.join(filter(None, (row.reason, row.flags)))}"
    if missing:
        yield f"{len(missing)} of the baseline are missing, which was allowed: {'; '.join(missing)}"


def _summary(speeds: int, accuracies: int, limits: Limits, used: Sequence[str], pairs: Sequence[Pair]) -> str:
    said = []
    if speeds:
        moves = [move for pair in pairs for speed in SPEEDS if (move := moved(pair, speed)) is not None]
        own = f"speeds themselves moved by {100 * math.expm1(median(moves)):+.1f} %, the median of all"
        how = f"relative to {', '.join(filter(None, used))}" if any(used) else "in absolute terms"
        blind = ", which does not see a slowdown of everything alike" if any(used) else ""
        said.append(f"{speeds} speeds, {how}{blind} ({own}), allowed to fall by {100 * limits.regression:g} %")
    if accuracies:
        said.append(f"{accuracies} accuracies, allowed to fall by {limits.accuracy_points:g} points")
    return "; ".join(said)
