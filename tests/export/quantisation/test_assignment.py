"""The choice of units stays within its budget, and saves nearly as much as the best of all choices does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Int8, Quantised
from fastervit_trt.export.quantisation.assignment import Assignment, assign
from fastervit_trt.export.quantisation.cost import ROOFLINES, UnitCost, modelled_costs, read_costs
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.sensitivity import Evaluation, Evaluator, SensitivityCache
from tests.export.quantisation.conftest import HeldOut

NAME = "faster_vit_digits_s"
UNITS = tuple(f"stages.2.blocks.{i}.mlp" for i in range(6))


class Additive:
    """Units whose noise and lost points add up: what an evaluator measures where noise is small."""

    def __init__(self, seed: int, units: Sequence[str] = UNITS) -> None:
        rng = np.random.default_rng(seed)
        self.units = tuple(units)
        self.noise = dict(zip(self.units, rng.lognormal(-8, 1.0, len(self.units)), strict=True))
        self.costs = {
            unit: UnitCost(16.0 + saved, 16.0, "made up")
            for unit, saved in zip(self.units, rng.uniform(1, 10, len(self.units)), strict=True)
        }
        self.calls = 0
        self.known: dict[tuple[str, ...], Evaluation] = {}

    def precision_of(self, units: Iterable[str]) -> Quantised:
        return replace(Int8(), only=frozenset(f"{unit}.fc1" for unit in units))

    def drop(self, units: Iterable[str]) -> float:
        return 1000 * sum(self.noise[unit] for unit in units)

    def saved(self, units: Iterable[str]) -> float:
        return sum(self.costs[unit].saved_us for unit in units)

    def __call__(self, units: Sequence[str]) -> Evaluation:
        chosen = tuple(unit for unit in self.units if unit in units)
        if chosen not in self.known:
            self.calls += 1
            drop = self.drop(chosen)
            sqnr = -10 * math.log10(drop / 1000) if chosen else 200.0
            self.known[chosen] = Evaluation(chosen, 64, 0.9, drop, drop - 1, drop + 1, 0.95, sqnr)
        return self.known[chosen]

    def best(self, budget: float) -> float:
        """What the best of all subsets saves."""
        subsets = (s for n in range(len(self.units) + 1) for s in combinations(self.units, n))
        return max(self.saved(s) for s in subsets if self.drop(s) <= budget)


def search(evaluate: Additive, budget: float) -> Assignment:
    return assign(evaluate, evaluate.costs, budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_without_a_budget_nothing_and_with_a_large_one_everything(seed: int) -> None:
    evaluate = Additive(seed)
    nothing, everything = search(evaluate, 0.0), search(evaluate, 1e9)
    assert nothing.precision.only == frozenset()
    assert not any(row.quantised for row in nothing.rows)
    assert everything.evaluation.units == UNITS
    assert all(row.quantised for row in everything.rows)
    assert max(c.saved_share for c in everything.candidates) == pytest.approx(1)


def test_a_larger_budget_never_saves_less_and_no_budget_is_exceeded() -> None:
    for seed in range(20):
        evaluate = Additive(seed)
        total = evaluate.drop(UNITS)
        shares = (0.05, 0.2, 0.4, 0.6, 0.8, 0.99, 1 + 1e-9)
        found = [search(evaluate, share * total) for share in shares]
        for share, assignment in zip(shares, found, strict=True):
            assert assignment.evaluation.drop_points <= share * total
        saved = [evaluate.saved(a.evaluation.units) for a in found]
        assert saved == sorted(saved), seed
        assert saved[-1] == pytest.approx(evaluate.saved(UNITS))


def test_the_choice_saves_nearly_what_the_best_of_all_choices_saves() -> None:
    shares = []
    for seed in range(50):
        evaluate = Additive(seed)
        for part in (0.15, 0.3, 0.5, 0.7, 0.9):
            budget = part * evaluate.drop(UNITS)
            if best := evaluate.best(budget):
                shares.append(evaluate.saved(search(evaluate, budget).evaluation.units) / best)
    assert np.mean(shares) >= 0.95
    assert np.quantile(shares, 0.15) >= 0.9  # with six units, the one that does not fit can be a third of all
    assert max(shares) <= 1 + 1e-12


def test_few_evaluations_are_enough() -> None:
    """Each unit alone, a bisection, and a few units on top."""
    evaluate = Additive(0, [f"unit{i}" for i in range(64)])
    told: list[int] = []
    assign(evaluate, evaluate.costs, 0.5 * evaluate.drop(evaluate.units), lambda what, left: told.append(left))  # type: ignore[arg-type]
    assert evaluate.calls <= 64 + 2 + 6 + 6 + 1
    assert told == sorted(told, reverse=True)
    assert told[-1] >= 1


def test_what_is_slower_in_8_bits_is_left_alone() -> None:
    evaluate = Additive(0)
    evaluate.costs[UNITS[2]] = UnitCost(3.0, 4.0, "made up")
    found = search(evaluate, 1e9)
    assert found.evaluation.units == UNITS[:2] + UNITS[3:]
    (row,) = [row for row in found.rows if row.unit == UNITS[2]]
    assert (row.order, row.quantised) == (-1, False)


def test_rows_and_candidates_tell_what_was_seen() -> None:
    evaluate = Additive(1)
    found = search(evaluate, 0.5 * evaluate.drop(UNITS))
    assert [row.unit for row in found.rows] == list(UNITS)
    assert [row.drop_points for row in found.rows] == [evaluate.drop([unit]) for unit in UNITS]
    assert sorted(row.order for row in found.rows) == list(range(6))
    price = {row.unit: evaluate.noise[row.unit] / evaluate.costs[row.unit].saved_us for row in found.rows}
    assert sorted(found.rows, key=lambda row: row.order) == sorted(found.rows, key=lambda row: price[row.unit])
    assert [c.saved_us for c in found.candidates] == sorted(c.saved_us for c in found.candidates)
    (chosen,) = [c for c in found.candidates if c.chosen]
    assert chosen.drop_points == found.evaluation.drop_points
    assert chosen.units == sum(row.quantised for row in found.rows) == len(found.precision.only or ())


@pytest.fixture(scope="module")
def evaluate(digits_s: nn.Module, digits_ranges: Ranges, held_out: HeldOut) -> Evaluator:
    return Evaluator(digits_s, Int8(), digits_ranges, held_out.batches, held_out.meter, SensitivityCache(None, ""))


def test_a_real_model_is_assigned_within_its_budget(digits_s: nn.Module, evaluate: Evaluator) -> None:
    costs = modelled_costs(digits_s, torch.zeros(2, 3, 224, 224), ROOFLINES["8.9"])
    strict, loose = assign(evaluate, costs, 0.0), assign(evaluate, costs, 100.0)
    assert loose.precision.only == {operand.block for operand in operands(digits_s)}
    assert strict.evaluation.drop_points <= 0
    assert strict.evaluation == evaluate(strict.evaluation.units)
    assert [row.unit for row in strict.rows] == list(evaluate.units)
    assert sum(row.layers for row in strict.rows) == len(operands(digits_s))
    assert all(row.sqnr_db == evaluate([row.unit]).sqnr_db for row in strict.rows)
    # noise of units adds up at most, which the order relies on
    alone = sum(10 ** (-row.sqnr_db / 10) for row in strict.rows)
    assert 10 ** (-evaluate(evaluate.units).sqnr_db / 10) <= 1.5 * alone


def test_modelled_costs_are_positive_and_8_bits_cheaper(digits_s: nn.Module, evaluate: Evaluator) -> None:
    one, eight = (modelled_costs(digits_s, torch.zeros(n, 3, 224, 224), ROOFLINES["8.9"]) for n in (1, 8))
    for costs in (one, eight):
        assert tuple(costs) == evaluate.units
        assert all(0 < cost.us_8 < cost.us_16 <= 2 * cost.us_8 for cost in costs.values())
        assert {cost.source for cost in costs.values()} == {"modelled, L4"}
    # weights are read once for all images
    assert all(eight[unit].us_16 < one[unit].us_16 for unit in evaluate.units)


def test_a_modelled_cost_is_the_longer_of_arithmetic_and_memory(digits_s: nn.Module, evaluate: Evaluator) -> None:
    unit = "stages.0.downsample"
    (layer,) = [operand.module for operand in operands(digits_s) if operand.unit == unit]
    assert isinstance(layer, nn.Conv2d)
    side, images = 56, 4
    inputs, outputs = images * layer.in_channels * side**2, images * layer.out_channels * (side // 2) ** 2
    macs = outputs * layer.in_channels * 9
    for peak, width, part in ((121e12, 2, "us_16"), (242e12, 1, "us_8")):
        moved = inputs * width + outputs * 2 + layer.weight.numel() * width
        expected = 1e6 * max(2 * macs / peak, moved / 300e9) / images
        found = modelled_costs(digits_s, torch.zeros(images, 3, 224, 224), ROOFLINES["8.9"])[unit]
        assert getattr(found, part) == pytest.approx(expected)


def test_measured_times_are_read(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("unit,us_16,us_8,gpu\nb,4,3,L4\na,2.5,1.5,L4\nunused,1,1,L4\n")
    assert read_costs(path, ["a", "b"]) == {
        "a": UnitCost(2.5, 1.5, "times.csv"),
        "b": UnitCost(4.0, 3.0, "times.csv"),
    }
    assert read_costs(path, ["a"])["a"].saved_us == 1.0


BAD_TIMES = {
    "no such columns": ("layer,ms\na,1\n", r"is no table of block times \(KeyError: 'unit'\); it needs the columns"),
    "no numbers": ("unit,us_16,us_8\na,fast,1\n", r"is no table of block times \(ValueError: "),
    "a short line": ("unit,us_16,us_8\na,1\n", r"is no table of block times \(TypeError: "),
    "other units": ("unit,us_16,us_8\nc,1,1\n", r"has no time of a \(1 more missing\)"),
    "empty": ("", r"has no time of a \(1 more missing\)"),
    "binary": (b"\xff\xfe\x00", r"is no table of block times \(UnicodeDecodeError: "),
    "not finite": ("unit,us_16,us_8\na,nan,1\nb,2,1\n", "must be a number above 0"),
    "negative": ("unit,us_16,us_8\na,2,-1\nb,2,1\n", "must be a number above 0"),
}


@pytest.mark.parametrize("kind", BAD_TIMES)
def test_bad_times_are_refused(tmp_path: Path, kind: str) -> None:
    content, message = BAD_TIMES[kind]
    path = tmp_path / "times.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FasterViTError, match=message):
        read_costs(path, ["a", "b"])


def test_times_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match="do not exist; leave them out to use modelled ones"):
        read_costs(tmp_path / "times.csv", ["a"])
