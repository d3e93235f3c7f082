from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from fastervit_trt.benchmarks.comparison.significance import (
    holm,
    mcnemar_p,
    proportion_difference,
    round_logs,
    score_difference,
    student_p,
    student_quantile,
    trimmed_shift,
)


@pytest.mark.parametrize(("degrees", "t"), [(2, 4.3027), (4, 2.7764), (10, 2.2281), (30, 2.0423), (1e9, 1.9602)])
def test_student_is_that_of_the_tables(degrees: float, t: float) -> None:
    assert student_quantile(degrees) == pytest.approx(t, abs=1e-4)
    assert student_p(t, degrees) == student_p(-t, degrees) == pytest.approx(0.05, abs=1e-4)
    assert student_p(0, degrees) == pytest.approx(1)


def test_tails_are_kept_where_they_are_tiny() -> None:
    assert student_p(40, 2) == pytest.approx(6.24e-4, rel=1e-2)
    assert student_p(40, 40) == pytest.approx(7.6e-34, rel=0.02)


def test_a_round_counts_as_its_median() -> None:
    logs = round_logs([[1.0, 1.0, 99.0], [], [math.e]])
    assert logs == pytest.approx([0.0, 1.0])


def test_intervals_hold_the_true_shift_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    shifts = [trimmed_shift(rng.normal(0, 0.01, 8), rng.normal(0.05, 0.02, 6)) for _ in range(600)]
    held = [shift is not None and shift.low < 0.05 < shift.high for shift in shifts]
    assert 0.925 < sum(held) / len(held) < 0.985
    assert sum(shift is not None and shift.p < 0.05 for shift in shifts) / len(shifts) > 0.95


def test_one_disturbed_round_neither_hides_nor_makes_a_difference() -> None:
    quiet = np.linspace(-0.01, 0.01, 10)
    disturbed = quiet.copy()
    disturbed[3] = 2.0
    same, slower = trimmed_shift(quiet, disturbed), trimmed_shift(disturbed, quiet + 0.05)
    assert same is not None and slower is not None
    assert abs(same.value) < 0.003
    assert same.p > 0.5
    assert slower.p < 1e-3


@pytest.mark.parametrize("rounds", [3, 5, 8])
def test_runs_of_the_same_thing_differ_as_rarely_as_promised(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    p = [trimmed_shift(*rng.normal(0, 1, (2, rounds))).p for _ in range(800)]
    assert sum(x < 0.05 for x in p) / len(p) < 0.07  # 2.6 standard errors above 0.05
    assert sum(x < 0.5 for x in p) / len(p) > 0.4  # and is no less sensitive than it may be


def test_two_rounds_are_too_few() -> None:
    assert trimmed_shift(np.zeros(2), np.zeros(9)) is None


def test_rounds_without_any_scatter() -> None:
    same, other = trimmed_shift(np.zeros(4), np.zeros(4)), trimmed_shift(np.zeros(4), np.ones(4))
    assert same is not None and other is not None
    assert (same.p, other.p, other.value) == (1.0, 0.0, 1.0)


def test_mcnemar_is_the_exact_chance_of_so_uneven_tosses() -> None:
    for lost, won in product(range(7), range(7)):
        before = np.array([True] * lost + [False] * won + [True] * 5)
        after = np.array([False] * lost + [True] * won + [True] * 5)
        tosses = [sum(side) for side in product((0, 1), repeat=lost + won)]
        uneven = sum(abs(2 * heads - lost - won) >= abs(lost - won) for heads in tosses) / len(tosses)
        assert mcnemar_p(before, after) == pytest.approx(uneven)


def test_mcnemar_of_a_whole_imagenet_is_quick_and_finite() -> None:
    before = np.arange(50_000) % 5 > 0
    after = np.roll(before, 1)
    assert mcnemar_p(before, after) == 1.0
    assert 0 < mcnemar_p(before, before & (np.arange(50_000) % 101 > 0)) < 1e-100


def test_two_shares() -> None:
    shift = proportion_difference((0.90, 1000), (0.80, 1000))
    assert shift.value == pytest.approx(-0.1)
    published = proportion_difference((48 / 80, 80), (56 / 70, 70))  # Newcombe (1998), example (a), method 10
    assert (round(published.low, 4), round(published.high, 4)) == (0.0524, 0.3339)
    assert shift.p < 1e-8
    assert proportion_difference((1.0, 50), (1.0, 50)).p == 1.0
    assert proportion_difference((0.9, 100), (0.89, 100)).p > 0.5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_scores_differ_by_what_their_intervals_allow() -> None:
    assert score_difference((0.4, 0.5, 0.6), (0.4, 0.5, 0.6)).p == 1.0
    away = 0.5 - math.hypot(0.03, 0.04)
    assert score_difference((0.46, 0.5, 0.59), (away - 0.2, away, away + 0.03)).p == pytest.approx(0.05)
    skewed = score_difference((0.5, 0.5, 0.6), (0.6, 0.7, 0.7))  # only the ends that face each other count
    assert (skewed.low, skewed.high) == pytest.approx((0.2 - math.hypot(0.1, 0.1), 0.2))
    assert score_difference((0.5, 0.5, 0.5), (0.6, 0.6, 0.6)).p == 0.0
