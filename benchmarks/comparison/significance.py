"""Timings by round and answers by image of two runs in; by how much they differ and how likely chance does that out.

Calls within a round follow each other on the same clocks and caches, so they say little more than one of them: the unit
is the round, summed up by its median. Two runs are compared by 20 % trimmed means of the logarithms of these medians
(Yuen 1974), so that one disturbed round decides nothing, with Welch's degrees of freedom, so that few rounds give a
wide interval. What differs from one process to the next on the same machine is in no round of one run: a practical
threshold has to cover that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastervit_trt.accuracy import wilson_interval

__all__ = [
    "MIN_ROUNDS",
    "Shift",
    "holm",
    "mcnemar_p",
    "proportion_difference",
    "round_logs",
    "score_difference",
    "student_p",
    "student_quantile",
    "trimmed_shift",
]

MIN_ROUNDS = 3  # with two, the spread between rounds is one number
_TRIMMED = 0.2  # of the rounds, from either end
_MAX_DEGREES = 1e4  # beyond, Student's distribution is the normal one
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


@dataclass(frozen=True)
class Shift:
    """A difference of two means, its 95 % interval, and the two-sided p of there being none."""

    value: float
    low: float
    high: float
    p: float


def round_logs(rounds: Sequence[Sequence[float]]) -> np.ndarray:
    """The logarithm of the median of each round (seconds), (rounds,); empty rounds are left out."""
    return np.array([math.log(float(np.median(samples))) for samples in rounds if len(samples)])


def trimmed_shift(before: np.ndarray, after: np.ndarray) -> Shift | None:
    """``after`` less ``before``, each (rounds,); None with fewer than three rounds on a side."""
    if min(len(before), len(after)) < MIN_ROUNDS:
        return None
    (mean_a, variance_a, freedom_a), (mean_b, variance_b, freedom_b) = _trimmed(before), _trimmed(after)
    shift, variance = mean_b - mean_a, variance_a + variance_b
    if variance == 0.0:
        return Shift(shift, shift, shift, 1.0 if shift == 0.0 else 0.0)
    degrees = variance**2 / (variance_a**2 / freedom_a + variance_b**2 / freedom_b)
    error = math.sqrt(variance)
    half = student_quantile(degrees) * error
    return Shift(shift, shift - half, shift + half, student_p(shift / error, degrees))


def _trimmed(values: np.ndarray) -> tuple[float, float, int]:
    """Trimmed mean, its variance from the winsorised values, and its degrees of freedom."""
    cut = int(_TRIMMED * len(values))
    kept = len(values) - 2 * cut
    ordered = np.sort(values)
    winsorised = np.clip(ordered, ordered[cut], ordered[-cut - 1])
    spread = float(winsorised.var(ddof=1)) * (len(values) - 1)
    return float(ordered[cut : cut + kept].mean()), spread / (kept * (kept - 1)), kept - 1


def student_p(t: float, degrees: float) -> float:
    """Two-sided p of Student's distribution with two degrees of freedom or more.

    With x = √ν·cot φ the tails become ∫ sin^(ν−1) φ dφ from 0 to atan(√ν/|t|), which has no tail to cut off.
    """
    nu = min(degrees, _MAX_DEGREES)
    end = math.atan2(math.sqrt(nu), abs(t))
    angles = end * (_NODES + 1) / 2
    area = end / 2 * float(_WEIGHTS @ np.sin(angles) ** (nu - 1))
    log_whole = 0.5 * math.log(math.pi) + math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2)
    return min(1.0, 2 * area / math.exp(log_whole))


@lru_cache(maxsize=1024)
def student_quantile(degrees: float) -> float:
    """What |t| exceeds with probability 5 %."""
    low, high = 1.0, 10.0  # 1.96 with many degrees of freedom, 4.30 with two
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, degrees) > 0.05 else (low, middle)
    return high


def mcnemar_p(before: np.ndarray, after: np.ndarray) -> float:
    """Exact two-sided p that two models are right equally often on the same images; both (images,) bool.

    Only images on which they differ count; if neither were better, each of these would be a toss of a coin.
    """
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    tosses, fewer = lost + won, min(lost, won)
    ways = total = 1
    for k in range(fewer):
        ways = ways * (tosses - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / (1 << tosses))


def proportion_difference(before: tuple[float, int], after: tuple[float, int]) -> Shift:
    """``after`` less ``before``, each a share and of how many, measured apart.

    p is of the pooled score test, the interval Newcombe's (1998) from the two Wilson intervals. Of the same images both
    are too cautious, since they cannot know which images agree.
    """
    (p_a, n_a), (p_b, n_b) = before, after
    pooled = (p_a * n_a + p_b * n_b) / (n_a + n_b)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    (low_a, high_a), (low_b, high_b) = (wilson_interval(round(p * n), n) for p, n in (before, after))
    shift = p_b - p_a
    low = shift - math.hypot(p_b - low_b, high_a - p_a)
    high = shift + math.hypot(high_b - p_b, p_a - low_a)
    return Shift(shift, low, high, 1.0 if error == 0.0 else math.erfc(abs(shift) / error / math.sqrt(2)))


def score_difference(before: tuple[float, float, float], after: tuple[float, float, float]) -> Shift:
    """``after`` less ``before``, each the lower end, the value and the upper end of a 95 % interval, taken apart.

    Newcombe's way of squaring and adding (1998), which needs nothing but the intervals; p is of the normal distribution
    whose 95 % end lies where the interval ends on the side of no difference. Of the same images both are too cautious.
    """
    (low_a, value_a, high_a), (low_b, value_b, high_b) = before, after
    shift = value_b - value_a
    down, up = math.hypot(value_b - low_b, high_a - value_a), math.hypot(high_b - value_b, value_a - low_a)
    error = (down if shift > 0 else up) / _Z95
    p = 1.0 if shift == 0.0 else 0.0 if error == 0.0 else math.erfc(abs(shift) / error / math.sqrt(2))
    return Shift(shift, shift - down, shift + up, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p made fit for as many comparisons as there are (Holm 1979): below 0.05, all of them hold at 95 %."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
