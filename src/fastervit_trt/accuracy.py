"""Accuracy of one artifact on labelled images, with its uncertainty and its agreement with the fp32 model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = [
    "TOP1",
    "Accuracy",
    "AccuracyMeter",
    "Drop",
    "accuracy_from_logits",
    "paired_drop",
    "signal_to_noise_db",
    "wilson_interval",
]

TOP1 = "top-1"
_EXACT_DB = 200.0  # stands for infinity, which JSON does not have
_TOP = 5
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in [0, 1] over ``images`` images, its 95 % Wilson interval, agreement with the reference's top-1."""

    images: int
    top1: float
    low: float
    high: float
    agreement: float | None  # share of images with the same top-1 as PyTorch fp32; None without a reference
    non_finite: int  # logits that are NaN or infinite
    top5: float | None = None  # None where there are too few classes for it to mean something
    top5_low: float | None = None
    top5_high: float | None = None
    sqnr_db: float | None = None  # of the logits against the reference's; None without a reference

    @property
    def metric(self) -> str:
        """As :attr:`Score.metric`."""
        return TOP1

    @property
    def value(self) -> float:
        """As :attr:`Score.value`."""
        return self.top1


class AccuracyMeter:
    """Accuracy of logits that come batch by batch and need not be kept.

    An image counts as right where its label's logit is the largest, the first of equal ones as in ``argmax``. Where any
    logit of an image is not finite, it is neither right nor in agreement: its ``argmax`` would be the NaN's place.
    """

    def __init__(self) -> None:
        self._ranks: list[np.ndarray] = []  # of each label among the logits of its image; 0 is the largest
        self._classes = 0
        self._agreeing: int | None = None
        self._power = self._noise = 0.0
        self._non_finite = 0

    @property
    def right(self) -> np.ndarray:
        """Which images (N,) were classified as labelled, in the order in which they came."""
        right: np.ndarray = self._all_ranks() == 0
        return right

    def add(self, logits: np.ndarray, labels: np.ndarray, reference: np.ndarray | None = None) -> None:
        """Score one batch.

        Args:
            logits: (B, classes).
            labels: (B,) class indices.
            reference: logits (B, classes) of PyTorch fp32 for the same images; for all batches or for none.
        """
        if self._ranks and (reference is None) != (self._agreeing is None):
            raise ValueError("reference logits are needed for all batches or for none")
        finite = np.isfinite(logits).all(axis=1)
        ranks = _ranks(logits, labels)
        ranks[~finite] = logits.shape[1]
        self._ranks.append(ranks)
        self._classes = logits.shape[1]
        self._non_finite += int((~np.isfinite(logits)).sum())
        if reference is not None:
            same = finite & (logits.argmax(axis=1) == reference.argmax(axis=1))
            self._agreeing = (self._agreeing or 0) + int(same.sum())
            power, noise = _powers(reference, logits)
            self._power, self._noise = self._power + power, self._noise + noise

    def result(self) -> Accuracy:
        """Of all batches so far, at least one image."""
        ranks = self._all_ranks()
        images, right = len(ranks), int((ranks == 0).sum())
        low, high = wilson_interval(right, images)
        among = int((ranks < _TOP).sum()) if self._classes > _TOP else None
        top5_low, top5_high = (None, None) if among is None else wilson_interval(among, images)
        return Accuracy(
            images=images,
            top1=right / images,
            low=low,
            high=high,
            agreement=None if self._agreeing is None else self._agreeing / images,
            non_finite=self._non_finite,
            top5=None if among is None else among / images,
            top5_low=top5_low,
            top5_high=top5_high,
            sqnr_db=None if self._agreeing is None else _decibels(self._power, self._noise),
        )

    def _all_ranks(self) -> np.ndarray:
        return np.concatenate(self._ranks) if self._ranks else np.zeros(0, np.int64)


def accuracy_from_logits(logits: np.ndarray, labels: np.ndarray, reference: np.ndarray | None) -> Accuracy:
    """Score logits (N, classes) against labels (N,) and, where given, the reference's logits (N, classes)."""
    meter = AccuracyMeter()
    meter.add(logits, labels, reference)
    return meter.result()


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927): sensible near 0 and 1, where the normal one is not."""
    p, z2 = successes / trials, _Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Drop:
    """Accuracy lost against a reference on the same images, in percentage points, with its 95 % interval."""

    points: float  # positive: worse than the reference
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} points (95 % interval {self.low:+.2f} to {self.high:+.2f})"


def paired_drop(reference_right: np.ndarray, right: np.ndarray) -> Drop:
    """From which images (N,) the reference and the artifact got right.

    The same images were put to both, so only those count on which they differ. Interval: Wald with half an image added
    to each of the four kinds of pairs (Agresti and Min 2005), which does not collapse where no image differs.
    """
    lost = int((reference_right & ~right).sum())
    won = int((right & ~reference_right).sum())
    n = len(right) + 2
    centre = (lost - won) / n
    half = _Z95 * math.sqrt((lost + won + 1) - (lost - won) ** 2 / n) / n
    return Drop(100 * (lost - won) / len(right), 100 * (centre - half), 100 * (centre + half))


def signal_to_noise_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """10 log10 of the power of ``reference`` over the power of the difference, within ±200 dB.

    −200 where there is nothing but noise: no power, or values that are not finite.
    """
    return _decibels(*_powers(reference, actual))


def _powers(reference: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Of the reference and of the difference."""
    noise = float(np.square(reference - actual, dtype=np.float64).sum())
    return float(np.square(reference, dtype=np.float64).sum()), noise


def _decibels(power: float, noise: float) -> float:
    if noise == 0.0:
        return _EXACT_DB
    if power == 0.0 or not math.isfinite(power) or not math.isfinite(noise):
        return -_EXACT_DB
    return max(-_EXACT_DB, min(_EXACT_DB, 10 * math.log10(power / noise)))


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many logits of an image come before its label's: the larger ones, and equal ones of smaller index."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ranks: np.ndarray = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return ranks
