"""The front of accuracy against speed: who stands on it, what dominates the rest, and how surely."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastervit_trt.benchmarks.pareto import Axis, Standing, front_line, speed, standings
from fastervit_trt.benchmarks.report.text import verdict
from fastervit_trt.benchmarks.rows import BenchmarkRow
from tests.benchmarks.example_rows import row


def by_model(rows: list[BenchmarkRow], axis: Axis = "throughput") -> dict[str, Standing]:
    return {standing.row.model: standing for standing in standings(rows, axis)}


def exact(model: str, top1: float, images_per_s: float, **changes: Any) -> BenchmarkRow:
    """A row whose intervals are points."""
    milliseconds = 8e3 / images_per_s
    points = {"top1_low": top1, "top1_high": top1}
    points |= {f"throughput_{p}_img_per_s": images_per_s for p in ("p20", "p80")}
    points |= {f"latency_{p}_ms": milliseconds for p in ("p20", "p80")}
    return row(model, top1, images_per_s, **{**points, **changes})


def test_front_and_what_dominates_the_rest() -> None:
    found = by_model(
        [
            row("best", 0.95, 10),
            row("fast", 0.80, 100),
            row("worse", 0.79, 90),  # slower and less accurate than fast
            row("same", 0.80, 100),  # a tie dominates nobody
            row("slow", 0.95, 5),  # as accurate as best, slower
        ]
    )
    assert {model: s.on_front for model, s in found.items()} == {
        "best": True,
        "fast": True,
        "worse": False,
        "same": True,
        "slow": False,
    }
    dominators = {model: s.dominated_by.model for model, s in found.items() if s.dominated_by}
    assert dominators == {"worse": "fast", "slow": "best"}
    assert all(s.clearly is None for s in found.values() if s.on_front)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (row("other", None, 500), "no accuracy was measured"),
        (row("other", 0.99, 500, speed_is_meaningful=False), "its speed means nothing"),
        (row("other", 0.99, 500, throughput_img_per_s=None), "no throughput was measured"),
        (row("other", 0.99, 500, throughput_img_per_s=0.0), "no throughput was measured"),
        (row("other", 0.99, 500, status="failed", reason="out of memory"), "failed: out of memory"),
        (row("other", 0.99, 500, status="skipped"), "skipped: no reason was recorded"),
    ],
)
def test_what_takes_no_part_dominates_nothing_and_says_why(other: BenchmarkRow, reason: str) -> None:
    found = by_model([row("here", 0.9, 100), other])
    assert (found["other"].on_front, found["other"].dominated_by) == (None, None)
    assert found["other"].why_not.startswith(reason)
    assert found["here"].on_front
    assert found["here"].why_not == ""


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"device": "another"},
        {"machine": "another"},
        {"batch": 1},
        {"dataset": "another"},
        {"dataset_sha256": "another"},
        {"transfers": True},
        {"cold_cache": True},
        {"device_kind": "gpu"},
    ],
)
def test_only_what_was_measured_alike_is_compared(elsewhere: dict[str, Any]) -> None:
    better = row("better", 0.95, 200)
    assert not by_model([row("here", 0.9, 100), better])["here"].on_front
    assert by_model([row("here", 0.9, 100), row("better", 0.95, 200, **elsewhere)])["here"].on_front


def test_backends_precisions_and_streams_compete() -> None:
    rows = [row("a", 0.9, 100), row("b", 0.95, 200, backend="tensorrt", precision="int8", streams=4, resolution="1x1")]
    assert by_model(rows)["a"].dominated_by == rows[1]


@pytest.mark.parametrize(
    ("better", "clearly"),
    [
        (exact("better", 0.90, 100.1), True),  # faster beyond its spread, as accurate
        (exact("better", 0.901, 100), True),  # more accurate beyond its interval, as fast
        (exact("better", 0.90, 110, throughput_p20_img_per_s=100.0), False),  # spreads touch
        (exact("better", 0.95, 100, top1_low=0.90), False),  # intervals touch
        (exact("better", 0.95, 110, top1_low=0.89, throughput_p20_img_per_s=99.0), False),
        (exact("better", 0.95, 110, top1_low=0.89), True),  # one of the two is enough
        (exact("better", 0.95, 110, top1_low=None, throughput_p20_img_per_s=None), False),  # without interval nothing
    ],
)
def test_clear_is_what_does_not_even_touch(better: BenchmarkRow, clearly: bool) -> None:
    found = by_model([exact("here", 0.90, 100), better])["here"]
    assert (found.on_front, found.dominated_by, found.clearly) == (False, better, clearly)


def test_a_clear_dominator_is_named_before_a_faster_one_that_may_be_chance() -> None:
    wide = exact("wide", 0.90, 130, throughput_p20_img_per_s=90.0)
    sure = exact("sure", 0.90, 120)
    found = by_model([exact("here", 0.90, 100), wide, sure])
    assert (found["here"].dominated_by, found["here"].clearly) == (sure, True)
    assert (found["sure"].dominated_by, found["sure"].clearly) == (wide, False)


@pytest.mark.parametrize("doubtful", [{"status": "unstable"}, {"flags": "throttled: power cap"}])
def test_a_doubtful_point_pushes_no_sound_one_off_the_front(doubtful: dict[str, Any]) -> None:
    found = by_model([row("sound", 0.9, 100), row("doubtful", 0.95, 200, **doubtful)])
    assert found["sound"].on_front
    assert found["doubtful"].on_front  # drawn with its mark
    found = by_model([row("sound", 0.95, 200), row("doubtful", 0.9, 100, **doubtful)])
    assert found["doubtful"].dominated_by == found["sound"].row
    found = by_model([row("worse", 0.9, 100, **doubtful), row("doubtful", 0.95, 200, **doubtful)])
    assert found["worse"].dominated_by == found["doubtful"].row


def test_the_line_goes_through_sound_points_unless_there_are_none() -> None:
    rows = [row("slow", 0.9, 100), row("fast", 0.8, 300), row("doubtful", 0.95, 200, flags="hot")]
    assert front_line(standings(rows)) == [(100, 0.9), (300, 0.8)]
    assert front_line(standings(rows[2:])) == [(200, 0.95)]
    assert front_line(standings([])) == []


def test_on_latency_less_is_better() -> None:
    rows = [
        row("slow", 0.95, 50),
        row("fast", 0.80, 100),
        row("worse", 0.80, 60),
        row("none", 0.99, 500, latency_p50_ms=None),
    ]
    found = by_model(rows, "latency")
    assert {model: s.on_front for model, s in found.items()} == {
        "slow": True,
        "fast": True,
        "worse": False,
        "none": None,
    }
    assert found["worse"].dominated_by == rows[1]
    assert found["worse"].clearly
    assert found["none"].why_not == "no latency was measured"
    assert front_line(standings(rows, "latency"), "latency") == [(160, 0.95), (80, 0.80)]
    close = row("close", 0.80, 98)
    assert by_model([*rows, close], "latency")["close"].clearly is False
    assert speed(rows[1], "latency") == pytest.approx((76, 80, 84))


@pytest.mark.parametrize("axis", ["throughput", "latency"])
def test_every_point_off_the_front_is_dominated_by_a_point_on_it(axis: Axis) -> None:
    rng = random.Random(0)
    rows = [
        row(str(i), rng.randint(1, 20) / 20, rng.randint(1, 20), flags=rng.choice(["", "", "hot"])) for i in range(150)
    ]
    found = standings(rows, axis)
    on_front = {id(s.row) for s in found if s.on_front}
    assert 1 <= len(on_front) < 60
    for one in found:
        beaten_by = [
            other
            for other in rows
            if (one.row.flags or not other.flags)
            and (other.top1 or 0) >= (one.row.top1 or 0)
            and (other.throughput_img_per_s or 0) >= (one.row.throughput_img_per_s or 0)
            and (other.top1, other.throughput_img_per_s) != (one.row.top1, one.row.throughput_img_per_s)
        ]
        assert bool(beaten_by) != bool(one.on_front)
        assert one.dominated_by is None or one.dominated_by in beaten_by
        assert not beaten_by or any(id(other) in on_front for other in beaten_by)


def test_other_metrics_are_other_fronts_and_other_resolutions_are_not() -> None:
    """A mask is not right as often as a box: neither says anything of the other, on whatever data."""
    ends = {"score_low": 0.6, "score_high": 0.7, "dataset": "scenes", "dataset_sha256": "5c", "images": 300}
    found = by_model(
        [
            row("painter", None, 100, task="segmentation", score=0.9, **ends),
            row("finder", None, 50, task="detection", score=0.65, **ends),
            row("small", None, 40, task="detection", score=0.60, resolution="128x128", **ends),
            row("large", None, 30, task="detection", score=0.70, resolution="256x256", **ends),
        ]
    )
    assert {model: s.on_front for model, s in found.items()} == {
        "painter": True,
        "finder": True,
        "small": False,
        "large": True,
    }
    assert found["painter"].group.title.endswith("scenes · mIoU")
    assert front_line([s for model, s in found.items() if model != "painter"]) == [(30, 0.70), (50, 0.65)]
    assert verdict(found["small"], "throughput") == (
        "Clearly dominated by throughput by finder fp16 at 224x224 on ort-cpu: 5.00 points more mAP, 1.25 times as "
        "fast."
    )
