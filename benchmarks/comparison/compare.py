"""Two runs in; what differs between them beyond chance and beyond a practical threshold out, worst first.

Times are compared by rounds where both runs kept their samples (:mod:`significance`, beside this file), else by
their 20th to 80th percentiles, which must not overlap. Accuracy is compared image by image where both kept which
images they got right, else as two independent shares; other metrics by their intervals. All p-values of one comparison
are adjusted together (Holm).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastervit_trt.accuracy import paired_drop
from fastervit_trt.benchmarks.comparison.pairing import SPEEDS, Pair, Speed, describe, pair_records, same_images
from fastervit_trt.benchmarks.comparison.significance import (
    holm,
    mcnemar_p,
    proportion_difference,
    round_logs,
    score_difference,
    trimmed_shift,
)
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import METRICS, BenchmarkRow

__all__ = ["Comparison", "Difference", "compare_records"]

_ALPHA = 0.05  # for all comparisons of a call together
_CONTEXT = (
    *("machine", "device", "threads", "affinity", "driver", "cuda", "os", "python"),
    *("torch", "onnxruntime", "tensorrt", "openvino", "fastervit_trt"),
)


@dataclass(frozen=True)
class Difference:
    """One thing that two runs of a condition do not share.

    Attributes:
        metric: "throughput" (img/s), "latency" (p50 ms), "status", or what accuracy is, as "top-1" (%).
        before: the first run's value, in the metric's unit.
        change: relative for times (0.1: a tenth more), percentage points for accuracy; ``low`` to ``high`` its 95 %
            interval before adjustment, None where only percentiles were there.
        p: adjusted for all comparisons of the call; None where there is none.
        basis: what it was decided by; empty for a status.
        note: what a reader must know, "; " between.
    """

    condition: str
    metric: str
    before: float | str | None
    after: float | str | None
    worse: bool
    basis: str
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_records` found.

    Attributes:
        differences: worst first: what is no longer measured, accuracy lost, speed lost, then what got better.
        pairs: conditions that both runs have.
        compared: comparisons made within them; those without a difference are ``compared - len(differences)``,
            changes of status, which are no comparisons, apart.
        not_comparable: why a comparison could not be made, and how often.
        only_before: conditions without a partner, likewise ``only_after``.
        context: what else changed between the runs.
    """

    differences: tuple[Difference, ...]
    pairs: int
    compared: int
    not_comparable: dict[str, int]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    context: tuple[str, ...]

    @property
    def not_different(self) -> int:
        return self.compared - sum(found.metric != "status" for found in self.differences)


@dataclass(frozen=True)
class _Candidate:
    """A comparison before it is known how many there are."""

    difference: Difference
    certain: bool  # big enough to matter and, without a p, beyond the spread


def compare_records(
    before: Sequence[Record], after: Sequence[Record], *, least: float = 0.02, across_devices: bool = False
) -> Comparison:
    """Compare two runs condition by condition.

    Args:
        least: times that differ by less, relatively, are not reported: from one process to the next the same program
            on the same machine differs by a per cent or two, which no sample of one run shows.
        across_devices: compare times of different devices, too.

    Raises:
        FasterViTError: a run measured a condition twice on one device.
    """
    pairing = pair_records(before, after)
    statuses: list[Difference] = []
    candidates: list[_Candidate] = []
    reasons: Counter[str] = Counter()
    for pair in pairing.pairs:
        if pair.before.row.measured and pair.after.row.measured:
            for found in _compare_pair(pair, least, across_devices):
                if isinstance(found, str):
                    reasons[found] += 1
                else:
                    candidates.append(found)
        elif pair.before.row.measured or pair.after.row.measured:
            statuses.append(_status(pair))
        else:
            reasons["not measured in either run"] += 1
    return Comparison(
        tuple(sorted((*statuses, *_decided(candidates)), key=_severity)),
        len(pairing.pairs),
        len(candidates),
        dict(reasons),
        tuple(describe(record.row, pairing.twins) for record in pairing.only_before),
        tuple(describe(record.row, pairing.twins) for record in pairing.only_after),
        tuple(_context([pair.before.row for pair in pairing.pairs], [pair.after.row for pair in pairing.pairs])),
    )


def _status(pair: Pair) -> Difference:
    before, after = pair.before.row, pair.after.row
    lost = before.measured
    reason = f"{after.status} now: {after.reason}" if lost else f"was {before.status}: {before.reason}"
    return Difference(pair.name, "status", before.status, after.status, lost, "", note=reason)


def _compare_pair(pair: Pair, least: float, across_devices: bool) -> Iterator[_Candidate | str]:
    """Comparisons, or why there is none."""
    if not (pair.before.row.speed_is_meaningful and pair.after.row.speed_is_meaningful):
        yield "speed of an emulated precision"
    elif not pair.same_place and not across_devices:
        yield "speed on another device"
    else:
        for speed in SPEEDS:
            if speed.shown(pair.before.row) is not None or speed.shown(pair.after.row) is not None:
                yield _compare_speed(pair, speed, least)
    if pair.before.row.score is not None or pair.after.row.score is not None:
        yield _compare_accuracy(pair)


def _compare_speed(pair: Pair, speed: Speed, least: float) -> _Candidate | str:
    shift = trimmed_shift(round_logs(speed.samples(pair.before)), round_logs(speed.samples(pair.after)))
    if shift is None:
        return _compare_percentiles(pair, speed, least)
    sign = -1 if speed.rising else 1  # shifts are of time, while more throughput is less time
    change, *ends = (math.expm1(sign * x) for x in (shift.value, shift.low, shift.high))
    difference = _speed_difference(pair, speed, change, "rounds")
    difference = replace(difference, low=min(ends), high=max(ends), p=shift.p)
    return _Candidate(difference, abs(change) >= least)


def _compare_percentiles(pair: Pair, speed: Speed, least: float) -> _Candidate | str:
    (low_a, middle_a, high_a), (low_b, middle_b, high_b) = speed.times(pair.before.row), speed.times(pair.after.row)
    if middle_a is None or middle_b is None:
        return f"{speed.name} measured in one run only"
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return f"{speed.name} without samples or percentiles"
    change = (middle_a / middle_b if speed.rising else middle_b / middle_a) - 1
    apart = low_a > high_b or low_b > high_a
    difference = _speed_difference(pair, speed, change, "20th to 80th percentiles apart")
    return _Candidate(difference, apart and abs(change) >= least)


def _speed_difference(pair: Pair, speed: Speed, change: float, basis: str) -> Difference:
    return Difference(
        condition=pair.name,
        metric=speed.name,
        before=speed.shown(pair.before.row),
        after=speed.shown(pair.after.row),
        change=change,
        worse=change < 0 if speed.rising else change > 0,
        basis=basis,
        note=_note(pair),
    )


def _compare_accuracy(pair: Pair) -> _Candidate | str:
    before, after = pair.before.row, pair.after.row
    if before.score is None or after.score is None:
        return "accuracy measured in one run only"
    if not same_images(before, after):
        return "accuracy on other images"
    right_a, right_b = pair.before.right, pair.after.right
    if before.dataset_sha256 and right_a is not None and right_b is not None and len(right_a) == len(right_b):
        drop = paired_drop(right_a, right_b)
        change, low, high = -drop.points, -drop.high, -drop.low
        p, basis = mcnemar_p(right_a, right_b), "image by image (McNemar)"
    elif before.task != "classification":
        ends = _interval(before), _interval(after)
        if ends[0] is None or ends[1] is None:
            return f"{before.metric} without its interval"
        shift = score_difference(ends[0], ends[1])
        change, low, high, p = 100 * shift.value, 100 * shift.low, 100 * shift.high, shift.p
        basis = "two intervals, cautious: as if of different images"
    elif before.images and after.images:
        shift = proportion_difference((before.score, before.images), (after.score, after.images))
        change, low, high, p = 100 * shift.value, 100 * shift.low, 100 * shift.high, shift.p
        basis = "two shares, cautious: which images were right was not kept"
    else:
        return "accuracy without the number of images"
    difference = Difference(
        condition=pair.name,
        metric=before.metric,
        before=100 * before.score,
        after=100 * after.score,
        worse=change < 0,
        basis=basis,
        change=change,
        low=low,
        high=high,
        p=p,
        note=_note(pair),
    )
    return _Candidate(difference, True)


def _interval(row: BenchmarkRow) -> tuple[float, float, float] | None:
    """Low, middle and high of its score."""
    if row.score is None or row.score_low is None or row.score_high is None:
        return None
    return row.score_low, row.score, row.score_high


def _note(pair: Pair) -> str:
    before, after = pair.before.row, pair.after.row
    said = []
    if not pair.same_place:
        said.append(f"other device: {_place(before)}, now {_place(after)}")
    if before.artifact_sha256 != after.artifact_sha256:
        said.append("another file")
    for when, row in (("before", before), ("now", after)):
        if row.status == "unstable":
            said.append(f"unstable {when}")
        if row.flags:
            said.append(f"{when}: {row.flags}")
    return "; ".join(said)


def _place(row: BenchmarkRow) -> str:
    threads = f" ({row.threads} threads)" if row.device_kind == "cpu" else ""
    return f"{row.device}{threads}"


def _decided(candidates: Sequence[_Candidate]) -> Iterator[Difference]:
    """Those that stand once all are counted; a difference too small to report still counts as a comparison."""
    tested = [candidate for candidate in candidates if candidate.difference.p is not None]
    adjusted = holm([candidate.difference.p or 0.0 for candidate in tested])
    for candidate, p in zip(tested, adjusted, strict=True):
        if candidate.certain and p < _ALPHA:
            yield replace(candidate.difference, p=p)
    for candidate in candidates:
        if candidate.certain and candidate.difference.p is None:
            yield candidate.difference


def _severity(found: Difference) -> tuple[Any, ...]:
    """Lost measurements, accuracy, speed; then gains, the largest last."""
    kind = {"status": 0, "throughput": 2, "latency": 3}.get(found.metric, 1)
    change = found.change or 0.0
    size = abs(change if found.metric in METRICS.values() else math.log1p(change))  # half and double are as far away
    return (not found.worse, min(kind, 2), -size if found.worse else size, found.condition, kind)


def _context(before: Sequence[BenchmarkRow], after: Sequence[BenchmarkRow]) -> Iterator[str]:
    for name in _CONTEXT:
        sides = [sorted({str(getattr(row, name) or "") for row in rows} - {""}) for rows in (before, after)]
        if sides[0] != sides[1] and all(sides):
            yield f"{name} {', '.join(sides[0])} → {', '.join(sides[1])}"
