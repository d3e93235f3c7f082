"""What a unit alone costs is measured on the real model, and kept in a file that an interruption cannot spoil."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Int8
from fastervit_trt.export.quantisation import sensitivity
from fastervit_trt.export.quantisation.operands import operands, unit_of
from fastervit_trt.export.quantisation.ranges import RangeRow, Ranges
from fastervit_trt.export.quantisation.sensitivity import Evaluation, Evaluator, SensitivityCache
from fastervit_trt.models.digits.data import load_digits_split
from tests.export.quantisation.conftest import HeldOut

NAME, KEY = "faster_vit_digits_s", "model, calibration and data"
ONE = Evaluation(("stages.0.blocks.0",), 64, 0.9, 1.5, 0.5, 2.5, 0.95, 31.0)
TWO = replace(ONE, units=("stages.0.blocks.0", "stages.2.blocks.0.mlp"), drop_points=3.0)


@pytest.fixture
def evaluator(digits_s: nn.Module, digits_ranges: Ranges, held_out: HeldOut) -> Evaluator:
    return Evaluator(digits_s, Int8(), digits_ranges, held_out.batches, held_out.meter, SensitivityCache(None, KEY))


def count_simulations(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str] | None]:
    """What is simulated from now on."""
    real, seen = sensitivity.simulated, []

    @contextmanager
    def counted(model: nn.Module, precision: Int8, ranges: Ranges) -> Iterator[None]:
        seen.append(precision.only)
        with real(model, precision, ranges):
            yield

    monkeypatch.setattr(sensitivity, "simulated", counted)
    return seen


def test_nothing_quantised_is_the_model_itself(evaluator: Evaluator) -> None:
    nothing = evaluator([])
    assert (nothing.units, nothing.images, nothing.drop_points, nothing.agreement) == ((), 64, 0.0, 1.0)
    assert nothing.sqnr_db == 200  # stands for no difference at all
    assert nothing.score > 0.9


def test_units_are_what_shares_data_and_each_makes_noise(evaluator: Evaluator, digits_s: nn.Module) -> None:
    assert evaluator.units == tuple(dict.fromkeys(o.unit for o in operands(digits_s)))
    assert {"stages.2.blocks.0.attn", "stages.2.blocks.0.mlp", "stages.0.downsample"} <= set(evaluator.units)
    alone = {unit: evaluator([unit]).sqnr_db for unit in evaluator.units}
    assert all(20 < noise < 200 for noise in alone.values()), alone
    assert 20 < evaluator(evaluator.units).sqnr_db < 60
    weights = [o.module.weight for o in operands(digits_s)]
    evaluator(evaluator.units)
    assert all(a is o.module.weight for a, o in zip(weights, operands(digits_s), strict=True))  # as before


def test_only_the_layers_of_the_units_are_quantised(evaluator: Evaluator) -> None:
    precision = evaluator.precision_of(["stages.2.blocks.0.attn", "stages.0.downsample"])
    assert precision.only == {
        "stages.2.blocks.0.attn.qkv",
        "stages.2.blocks.0.attn.proj",
        "stages.0.downsample.reduction.0",
    }
    assert {unit_of(block) for block in precision.only} == {"stages.2.blocks.0.attn", "stages.0.downsample"}


def test_a_choice_is_simulated_once_in_whatever_order_it_is_asked_for(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_simulations(monkeypatch)
    first, second = evaluator.units[:2]
    assert evaluator([first, second]) is evaluator([second, first])
    assert len(seen) == 1


def test_a_second_run_simulates_nothing_again(
    digits_s: nn.Module,
    digits_ranges: Ranges,
    held_out: HeldOut,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, seen = tmp_path / "search.jsonl", count_simulations(monkeypatch)
    found = []
    for _ in range(2):
        evaluator = Evaluator(
            digits_s, Int8(), digits_ranges, held_out.batches, held_out.meter, SensitivityCache(path, KEY)
        )
        found.append([evaluator([unit]) for unit in evaluator.units[:3]])
    assert len(seen) == 3
    assert found[0] == found[1]


def test_the_record_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    SensitivityCache(path, KEY).put(ONE)
    with pytest.raises(FasterViTError, match=r"search.jsonl' is of a search with another model, .*; delete it"):
        SensitivityCache(path, "another model")
    assert SensitivityCache(path, KEY).get(ONE.units) == ONE


def test_wherever_a_run_ended_the_next_one_goes_on(tmp_path: Path) -> None:
    """The last line cut at every place: what was whole is kept, and what comes after is written on lines of its own."""
    whole = tmp_path / "whole.jsonl"
    cache = SensitivityCache(whole, KEY)
    cache.put(ONE)
    first = whole.stat().st_size
    cache.put(TWO)
    content = whole.read_bytes()
    torn = tmp_path / "torn.jsonl"
    for end in range(first, len(content) + 1):
        torn.write_bytes(content[:end])
        resumed = SensitivityCache(torn, KEY)
        assert resumed.get(ONE.units) == ONE
        if resumed.get(TWO.units) is None:
            resumed.put(TWO)
        resumed.put(replace(ONE, units=()))
        again = SensitivityCache(torn, KEY)
        kept = [again.get(units) is not None for units in (ONE.units, TWO.units, ())]
        assert kept == [True] * 3, f"cut after {end - first} of {len(content) - first} bytes"


def test_a_run_that_ended_at_the_very_first_line_is_told_to_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    for content in ("", '{"ke', "[]\n", '{"key": "' + KEY + '"}\n{"units": 3}\n{"units": 4}\n'):
        path.write_text(content)
        with pytest.raises(FasterViTError, match=r"is no record of a search .*; delete it to start anew"):
            SensitivityCache(path, KEY)


def test_the_record_is_one_line_of_json_per_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    cache = SensitivityCache(path, KEY)
    cache.put(ONE)
    cache.put(TWO)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(row.get("units", [])) for row in rows] == [[], [*ONE.units], [*TWO.units]]


def test_drops_are_paired_with_the_model_in_fp32(digits_s: nn.Module, digits_ranges: Ranges, held_out: HeldOut) -> None:
    """With steps as wide as the range, nothing is left to classify by."""
    coarse = Ranges(
        digits_ranges.key, {name: RangeRow(*[300 * row.max] * 5) for name, row in digits_ranges.rows.items()}
    )
    evaluator = Evaluator(digits_s, Int8(), coarse, held_out.batches, held_out.meter, SensitivityCache(None, KEY))
    broken, labels = evaluator(evaluator.units), load_digits_split("held_out")[1][:64]
    assert broken.drop_points > 50
    assert broken.drop_low < broken.drop_points < broken.drop_high
    assert broken.drop_points == pytest.approx(100 * (evaluator([]).score - broken.score))
    assert broken.score <= np.bincount(labels).max() / len(labels) + 0.1
