"""Intervals over images: they cover what they say, and a paired one is narrow where two models err alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fastervit_trt.bootstrap import bootstrap_interval, paired_bootstrap


@dataclass(frozen=True)
class Ratio:
    """A figure that is no mean over images: of all images together, right ones over counted ones."""

    numbers: np.ndarray
    right: np.ndarray
    counted: np.ndarray

    def values(self, weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (weights @ self.right) / (weights @ self.counted)


def drawn(rng: np.random.Generator, images: int) -> Ratio:
    """Images differ in size and difficulty; the figure of all that could be drawn is 0.6."""
    counted = rng.integers(1, 200, images)
    return Ratio(np.arange(images), rng.binomial(counted, rng.beta(3, 2, images)), counted)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    intervals = np.array([bootstrap_interval(drawn(rng, 60)) for _ in range(150)])
    covered = (intervals[:, 0] <= 0.6) & (intervals[:, 1] >= 0.6)
    # 150 times 95 %, give or take three and a half standard deviations of 1.8 %
    assert 0.89 <= covered.mean() < 1
    assert {(intervals[:, 0] > 0.6).any(), (intervals[:, 1] < 0.6).any()} == {True}  # missed on both sides
    wide, narrow = (np.mean([np.ptp(bootstrap_interval(drawn(rng, n))) for _ in range(15)]) for n in (30, 270))
    assert wide / narrow == pytest.approx(3, rel=0.2)  # the root of 9


@dataclass(frozen=True)
class Largest:
    """A figure that is higher on many images than on few: on resamples it is too low."""

    numbers: np.ndarray
    each: np.ndarray

    def values(self, weights: np.ndarray) -> np.ndarray:
        largest: np.ndarray = np.where(weights > 0, self.each, 0).max(axis=1)
        return largest


def test_the_error_that_resamples_show_is_taken_back() -> None:
    each = np.linspace(0, 0.8, 40)
    resampled = Largest(np.arange(40), each)
    low, high = bootstrap_interval(resampled)
    assert low == pytest.approx(0.8)  # no resample is above
    assert 0.82 < high < 0.9  # some are as far below
    beyond = bootstrap_interval(Largest(np.arange(40), each + 0.18))
    assert beyond == pytest.approx((0.98, 1))  # a figure is no more than 1


def test_the_same_images_give_the_same_interval() -> None:
    one = drawn(np.random.default_rng(1), 50)
    assert bootstrap_interval(one) == bootstrap_interval(one)


def test_a_paired_comparison_knows_that_the_images_were_the_same() -> None:
    one = drawn(np.random.default_rng(2), 100)
    worse = Ratio(one.numbers, np.maximum(one.right - 2, 0), one.counted)
    drop = paired_bootstrap(one, worse)
    lost = 100 * (one.right.sum() - worse.right.sum()) / one.counted.sum()
    assert drop.points == pytest.approx(lost)
    assert 0 < drop.low < drop.points < drop.high
    assert drop.high - drop.low < 0.1 * 100 * np.ptp(bootstrap_interval(one))
    same = paired_bootstrap(one, one)
    assert (same.points, same.low, same.high) == (0, 0, 0)
    won = paired_bootstrap(worse, one)
    assert won.points == pytest.approx(-lost)
    assert won.low < won.high < 0


def test_other_images_are_no_pair() -> None:
    one = drawn(np.random.default_rng(3), 10)
    with pytest.raises(ValueError, match="the same images"):
        paired_bootstrap(one, Ratio(one.numbers + 1, one.right, one.counted))


def test_resamples_that_mean_nothing_do_not_count() -> None:
    empty = np.zeros(30, int)
    counted = empty.copy()
    counted[:2] = 10  # one resample in eight has neither
    low, high = bootstrap_interval(Ratio(np.arange(30), np.where(counted, 7, empty), counted))
    assert (low, high) == pytest.approx((0.7, 0.7))
