"""Accuracy of one artifact on labelled images, with its uncertainty and its agreement with the fp32 model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Accuracy", "Drop", "accuracy_from_logits", "paired_drop", "signal_to_noise_db", "wilson_interval"]

_EXACT_DB = 200.0  # stands for infinity, which JSON does not have
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


def accuracy_from_logits(logits: np.ndarray, labels: np.ndarray, reference: np.ndarray | None) -> Accuracy:
    """Score logits (N, classes) against labels (N,) and, where given, the reference's predicted classes (N,)."""
    predicted = logits.argmax(axis=1)
    correct = int((predicted == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    agreement = None if reference is None else float((predicted == reference).mean())
    return Accuracy(len(labels), correct / len(labels), low, high, agreement, int((~np.isfinite(logits)).sum()))


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
    noise = float(np.square(reference - actual, dtype=np.float64).sum())
    power = float(np.square(reference, dtype=np.float64).sum())
    if noise == 0.0:
        return _EXACT_DB
    if power == 0.0 or not math.isfinite(power) or not math.isfinite(noise):
        return -_EXACT_DB
    return max(-_EXACT_DB, min(_EXACT_DB, 10 * math.log10(power / noise)))
