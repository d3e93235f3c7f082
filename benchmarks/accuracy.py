"""Accuracy of one artifact on labelled images, with its uncertainty and its agreement with the fp32 model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Accuracy", "accuracy_from_logits", "wilson_interval"]

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
