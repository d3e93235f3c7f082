from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastervit_trt.accuracy import (
    AccuracyMeter,
    accuracy_from_logits,
    paired_drop,
    signal_to_noise_db,
    wilson_interval,
)


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
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 0, 0]]
    logits[4, 3], logits[5, 0], logits[6, 1] = np.nan, np.inf, -np.inf
    labels, reference = np.array([0, 1, 2, 0, 3, 0, 0]), np.eye(4, dtype=np.float32)[[0, 1, 1, 3, 3, 0, 0]]
    assert logits.argmax(axis=1).tolist() == [0, 1, 2, 3, 3, 0, 0]  # the NaN's place, the infinite one's, any
    result = accuracy_from_logits(logits, labels, reference)
    assert (result.images, result.top1, result.agreement, result.non_finite) == (7, 3 / 7, 3 / 7, 3)
    assert (result.low, result.high) == wilson_interval(3, 7)
    assert result.sqnr_db == -200.0
    alone = accuracy_from_logits(logits, labels, None)
    assert (alone.top1, alone.agreement, alone.sqnr_db) == (3 / 7, None, None)


def test_top5_needs_six_classes_and_takes_the_first_of_equals() -> None:
    logits = np.array([[9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, np.nan]], np.float32)
    for label, top1, top5 in ((0, 2, 2), (1, 0, 2), (4, 0, 2), (5, 0, 0)):
        result = accuracy_from_logits(logits, np.full(3, label), None)
        assert (result.top1, result.top5) == (top1 / 3, top5 / 3)
        assert (result.top5_low, result.top5_high) == wilson_interval(top5, 3)
        assert result.top1 == np.mean((logits.argmax(1) == label) & np.isfinite(logits).all(1))
    few = accuracy_from_logits(logits[:2, :5], np.zeros(2, int), None)
    assert (few.top5, few.top5_low, few.top5_high) == (None, None, None)


def test_batches_give_what_all_at_once_gives() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((100, 10)).astype(np.float32), rng.integers(0, 10, 100)
    reference = logits + 0.3 * rng.standard_normal(logits.shape).astype(np.float32)
    meter = AccuracyMeter()
    for start in range(0, 100, 32):
        some = slice(start, start + 32)
        meter.add(logits[some], labels[some], reference[some])
    result, whole = meter.result(), accuracy_from_logits(logits, labels, reference)
    assert result.sqnr_db == pytest.approx(signal_to_noise_db(reference, logits), abs=1e-6)
    assert result == replace(whole, sqnr_db=result.sqnr_db)
    assert result.top1 == np.mean(logits.argmax(1) == labels)
    assert result.top5 == np.mean((np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(1))
    assert result.agreement == np.mean(logits.argmax(1) == reference.argmax(1)) < 1
    np.testing.assert_array_equal(meter.right, logits.argmax(1) == labels)
    with pytest.raises(ValueError, match="for all batches or for none"):
        meter.add(logits, labels)


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
