from __future__ import annotations

import numpy as np
import pytest

from fastervit_trt.accuracy import accuracy_from_logits, wilson_interval


@pytest.mark.parametrize(
    # from the closed form evaluated by R's prop.test(..., correct = FALSE)
    ("successes", "trials", "low", "high"),
    [(95, 100, 0.8882, 0.9785), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_covers_as_often_as_it_says() -> None:
    rng, p, trials = np.random.default_rng(0), 0.97, 599
    draws = rng.binomial(trials, p, size=4000)
    covered = np.mean([low <= p <= high for low, high in (wilson_interval(int(k), trials) for k in draws)])
    assert 0.93 < covered < 0.97


def test_accuracy_agreement_and_stray_values() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]]
    logits[4, 0] = np.nan
    labels, reference = np.array([0, 1, 2, 0, 0]), np.array([0, 1, 1, 3, 0])
    result = accuracy_from_logits(logits, labels, reference)
    # argmax takes NaN for the largest, so the last row counts for class 0
    assert (result.images, result.top1, result.agreement, result.non_finite) == (5, 0.8, 0.8, 1)
    assert accuracy_from_logits(logits, labels, None).agreement is None
