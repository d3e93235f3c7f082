from __future__ import annotations

import math

import numpy as np
import pytest

from fastervit_trt.accuracy import accuracy_from_logits, paired_drop, signal_to_noise_db, wilson_interval


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


@pytest.mark.parametrize(
    ("actual", "db"),
    [
        ([3.0, 4.0], 200.0),
        ([3.0, 4.5], 20.0),
        ([3.3, 4.4], 20.0),
        ([0.0, 0.0], 0.0),
        ([30.0, 40.0], -19.085),
        ([3.0, math.nan], -200.0),
        ([3.0, -math.inf], -200.0),
    ],
)
def test_signal_to_noise(actual: list[float], db: float) -> None:
    assert signal_to_noise_db(np.array([3.0, 4.0]), np.array(actual)) == pytest.approx(db, abs=1e-3)


def test_noise_without_a_signal_is_no_exact_result() -> None:
    assert signal_to_noise_db(np.zeros(2), np.array([0.0, 1e-9])) == -200.0
    assert signal_to_noise_db(np.zeros(2), np.zeros(2)) == 200.0


def test_the_interval_of_a_paired_drop_covers_as_often_as_it_says() -> None:
    """Images that both get right or wrong say nothing; 2 % are lost and 1 % won."""
    rng, images = np.random.default_rng(0), 599
    covered = 0
    for _ in range(2000):
        kind = rng.choice(4, images, p=[0.90, 0.07, 0.02, 0.01])  # both right, both wrong, lost, won
        drop = paired_drop(np.isin(kind, (0, 2)), np.isin(kind, (0, 3)))
        assert drop.points == pytest.approx(100 * ((kind == 2).sum() - (kind == 3).sum()) / images)
        covered += drop.low <= 1.0 <= drop.high
    assert 0.93 < covered / 2000 < 0.98


def test_a_drop_is_uncertain_even_where_no_image_differs() -> None:
    right = np.ones(599, bool)
    drop = paired_drop(right, right)
    assert drop.points == 0
    assert drop.low == -drop.high == pytest.approx(-0.33, abs=0.005)
