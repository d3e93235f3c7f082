"""Mixed precision: the cheapest choice of quantised units whose accuracy stays within a budget.

Units are taken in the order of noise per time saved (noise powers of units add up as long as they are small, and a time
saved is a time saved), so that every prefix of the order is the best buy of its size. The longest prefix within the
budget is found by bisection with measured accuracy; then every unit left out is tried on top of it, the most saving
first, because accuracy does not fall as evenly as noise grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastervit_trt.export.precision import Quantised
from fastervit_trt.export.quantisation.cost import UnitCost
from fastervit_trt.export.quantisation.sensitivity import Evaluation, Evaluator

__all__ = ["Assignment", "Candidate", "UnitRow", "assign"]

_EXTRA_TRIALS = 6  # units that are tried one by one after the bisection


@dataclass(frozen=True)
class UnitRow:
    """One unit quantised alone."""

    unit: str
    layers: int
    sqnr_db: float
    drop_points: float
    agreement: float
    us_16: float
    us_8: float
    cost_source: str
    order: int  # in which units are quantised; 0 first
    quantised: bool  # in the end


@dataclass(frozen=True)
class Candidate:
    """One choice that was measured."""

    units: int
    saved_us: float  # per image, of the cost model
    saved_share: float  # of the time that quantising everything would save
    drop_points: float
    drop_low: float
    drop_high: float
    agreement: float
    sqnr_db: float
    chosen: bool


@dataclass(frozen=True)
class Assignment:
    """The choice, what each unit does alone, and every choice that was measured, by time saved."""

    precision: Quantised
    evaluation: Evaluation
    rows: tuple[UnitRow, ...]
    candidates: tuple[Candidate, ...]


def assign(
    evaluate: Evaluator,
    costs: Mapping[str, UnitCost],
    budget_points: float,
    advance: Callable[[str, int], None] = lambda what, left: None,
) -> Assignment:
    """The units to quantise so that accuracy drops by at most ``budget_points``.

    Args:
        advance: told before each evaluation what it is and how many are left, at most.
    """
    alone: dict[str, Evaluation] = {}
    for i, unit in enumerate(evaluate.units):
        advance(unit, len(evaluate.units) - i + _EXTRA_TRIALS + len(evaluate.units).bit_length())
        alone[unit] = evaluate([unit])
    order = sorted((u for u in evaluate.units if costs[u].saved_us > 0), key=lambda u: _price(alone[u], costs[u]))
    chosen, measured = _search(evaluate, order, costs, budget_points, advance)
    everything = sum(costs[unit].saved_us for unit in order)
    rows = tuple(
        UnitRow(
            unit=unit,
            layers=len(evaluate.precision_of([unit]).only or ()),
            sqnr_db=alone[unit].sqnr_db,
            drop_points=alone[unit].drop_points,
            agreement=alone[unit].agreement,
            us_16=costs[unit].us_16,
            us_8=costs[unit].us_8,
            cost_source=costs[unit].source,
            order=order.index(unit) if unit in order else -1,
            quantised=unit in chosen.units,
        )
        for unit in evaluate.units
    )
    candidates = [_candidate(e, costs, everything, e is chosen) for e in measured]
    return Assignment(
        precision=evaluate.precision_of(chosen.units),
        evaluation=chosen,
        rows=rows,
        candidates=tuple(sorted(candidates, key=lambda c: c.saved_us)),
    )


def _search(
    evaluate: Evaluator,
    order: list[str],
    costs: Mapping[str, UnitCost],
    budget_points: float,
    advance: Callable[[str, int], None],
) -> tuple[Evaluation, list[Evaluation]]:
    """The best choice found, and all that were measured on the way."""
    measured: dict[tuple[str, ...], Evaluation] = {}

    def within(units: list[str], left: int) -> bool:
        advance(f"{len(units)} of {len(order)} units", left)
        evaluation = evaluate(units)
        measured[evaluation.units] = evaluation
        return evaluation.drop_points <= budget_points

    low, high = 0, len(order)  # a prefix of low units fits, none of more than high was seen to
    if within(order, high.bit_length() + _EXTRA_TRIALS):
        low = high
    else:
        within([], high.bit_length() + _EXTRA_TRIALS)
    while high - low > 1:
        middle = (low + high) // 2
        if within(order[:middle], (high - low).bit_length() + _EXTRA_TRIALS):
            low = middle
        else:
            high = middle
    chosen = order[:low]
    left_out = sorted(order[low:], key=lambda unit: -costs[unit].saved_us)[:_EXTRA_TRIALS]
    for i, unit in enumerate(left_out):
        if within([*chosen, unit], len(left_out) - i):
            chosen.append(unit)
    return evaluate(chosen), list(measured.values())


def _price(alone: Evaluation, cost: UnitCost) -> float:
    """Noise power relative to the signal, per microsecond saved."""
    return float(10 ** (-alone.sqnr_db / 10) / cost.saved_us)


def _candidate(evaluation: Evaluation, costs: Mapping[str, UnitCost], everything: float, chosen: bool) -> Candidate:
    saved = sum(costs[unit].saved_us for unit in evaluation.units)
    return Candidate(
        units=len(evaluation.units),
        saved_us=saved,
        saved_share=saved / everything if everything else 0.0,
        drop_points=evaluation.drop_points,
        drop_low=evaluation.drop_low,
        drop_high=evaluation.drop_high,
        agreement=evaluation.agreement,
        sqnr_db=evaluation.sqnr_db,
        chosen=chosen,
    )
