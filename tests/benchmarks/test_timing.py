from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.timing import (
    Rounds,
    Timer,
    WarmUp,
    calls_for,
    drift,
    interleaved,
    is_stable,
    warm_up,
)
from fastervit_trt.engines.runtime.completions import completions_for, seconds_between


class Script:
    """A runner whose n-th call takes ``seconds_of(n)``, and the clock that goes with it."""

    def __init__(self, seconds_of: Callable[[int], float], untimed: float = 0.0) -> None:
        self.seconds_of, self.untimed, self.now, self.asked = seconds_of, untimed, 100.0, list[int]()

    def __call__(self, count: int) -> list[float]:
        done = sum(self.asked)
        taken = [self.seconds_of(done + i) for i in range(count)]
        self.asked.append(count)
        self.now += sum(taken) + self.untimed * count
        return taken

    def warm_up(self, **options: float) -> WarmUp:
        return warm_up(self, clock=lambda: self.now, **options)


def test_a_steady_runner_is_warm_after_the_least_time() -> None:
    script = Script(lambda _: 0.001)
    found = script.warm_up(least_seconds=0.3)
    assert found.settled
    assert found.calls == sum(script.asked)
    assert found.seconds == pytest.approx(script.now - 100)
    assert 0.3 <= found.seconds < 0.3 + 2 * 0.1  # it stops within a window
    assert found.call_seconds == pytest.approx(0.001)


def test_the_least_time_counts_from_the_first_call_on() -> None:
    found = Script(lambda n: 5.0 if n == 0 else 0.001).warm_up(least_seconds=1.0)
    assert 6.0 <= found.seconds < 6.2


def test_only_windows_that_have_grown_are_compared() -> None:
    found = Script(lambda _: 0.001).warm_up(least_seconds=0.0)
    assert found.settled
    assert 0.3 <= found.seconds < 0.5  # three of 0.1 s after those of 1, 2, 4 … calls


def test_warm_up_lasts_as_long_as_calls_become_faster() -> None:
    """A compiler that takes a second, then clocks that rise over 120 calls."""
    script = Script(lambda n: 1.0 if n == 0 else max(0.010 - 5e-5 * n, 0.004))
    found = script.warm_up()
    assert found.settled
    assert found.calls > 100
    assert found.call_seconds == pytest.approx(0.004, rel=0.05)


def test_warm_up_gives_up_on_a_runner_that_never_settles() -> None:
    script = Script(lambda n: 0.01 * (1.2 if script_window(script) % 2 else 1.0))
    found = script.warm_up(most_seconds=3)
    assert not found.settled
    assert 3 <= found.seconds < 3.2


def script_window(script: Script) -> int:
    return len(script.asked)


def test_calls_longer_than_a_window_settle_one_by_one() -> None:
    found = Script(lambda n: 40.0 if n == 0 else 2.0).warm_up(most_seconds=10)
    assert found == WarmUp(pytest.approx(46), 4, True, 2.0)


def test_time_outside_the_samples_ends_a_warm_up_too() -> None:
    """Between two batches the cache is emptied: samples sum to a tenth of what passes."""
    script = Script(lambda n: 0.01 * (1.2 if script_window(script) % 2 else 1.0), untimed=0.1)
    assert script.warm_up(most_seconds=3).seconds < 3 + 0.3


def test_windows_grow_no_faster_than_they_are_known() -> None:
    """The first calls say a microsecond; a hundred thousand of what comes then would take minutes."""
    script = Script(lambda n: 1e-6 if n < 3 else 0.01)
    script.warm_up()
    assert max(script.asked) < 20  # ten fill a window


def test_slices_are_paced_by_the_call_time() -> None:
    assert calls_for(1.0, 0.01) == 100
    assert calls_for(1.0, 0.03) == 34
    assert calls_for(1.0, 0.01, streams=4) == 25  # a sample takes four batches
    assert calls_for(0.1, 2.0) == 3
    assert calls_for(1.0, 0.0) > 0


def test_drift_compares_the_halves_of_the_time() -> None:
    assert drift([[1.0] * 10, [1.0] * 10, [1.1] * 10, [1.1] * 10]) == pytest.approx(0.1)
    assert drift([[2.0, 2.0, 1.0, 1.0]]) == pytest.approx(-0.5)  # a single round
    assert drift([[1.0] * 4, [1.0] * 4 + [2.0] * 4, [2.0] * 4]) == pytest.approx(1.0)  # an odd number is cut in two
    assert drift([[1.0], [3.0]]) == pytest.approx(2.0)
    assert drift([[], [1.0, 1.0], []]) == pytest.approx(0.0)


def test_drift_of_equal_rounds_is_that_of_usual_medians() -> None:
    rng = np.random.default_rng(0)
    for length in (3, 4, 7):
        rounds = rng.lognormal(size=(4, length))
        expected = np.median(rounds[2:]) / np.median(rounds[:2]) - 1
        assert drift(rounds.tolist()) == pytest.approx(expected)


def test_a_slow_round_has_fewer_calls_and_weighs_the_same() -> None:
    """Slices of equal time: at a tenth of the speed there are a tenth of the calls."""
    fast, slow = [1.0] * 100, [10.0] * 10
    assert drift([fast, fast, fast, slow, slow, slow]) == pytest.approx(9.0)
    assert drift([fast, fast, fast, slow, slow, fast]) == pytest.approx(9.0)  # by calls alone it would be 0
    assert drift([fast, slow, fast, fast, slow, fast]) == pytest.approx(0.0)


def test_drift_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="two samples"):
        drift([[1.0], []])


def test_five_per_cent_either_way_is_stable() -> None:
    assert [is_stable(d) for d in (0.049, -0.049, 0.051, -0.051, float("nan"))] == [True, True, False, False, False]


def test_percentiles_have_the_names_of_the_columns() -> None:
    rounds = Rounds(tuple(tuple(0.001 * ms for ms in range(first, 102, 2)) for first in (1, 2)))
    latency, throughput = rounds.latency_columns(), rounds.throughput_columns(8)
    assert {*latency, *throughput} <= {column.name for column in fields(BenchmarkRow)}
    assert latency["latency_samples"] == throughput["throughput_samples"] == 101
    for percentile, expected in {20: 21, 50: 51, 80: 81, 90: 91, 95: 96, 99: 100}.items():
        assert latency[f"latency_p{percentile}_ms"] == pytest.approx(expected)
    assert throughput["throughput_img_per_s"] == pytest.approx(8 / 0.051)
    assert throughput["throughput_p20_img_per_s"] == pytest.approx(8 / 0.081)
    assert throughput["throughput_p80_img_per_s"] == pytest.approx(8 / 0.021)
    assert latency["latency_drift"] == throughput["throughput_drift"] == drift(rounds.rounds)
    assert rounds.stable == is_stable(rounds.drift)


@pytest.mark.parametrize("streams", [1, 2, 3, 5])
def test_batches_that_overlap_are_counted_while_all_streams_are_busy(streams: int) -> None:
    """Every stream takes 1 s per batch, started 1/n s apart: a batch is done every 1/n s, except at both ends."""
    count = 6
    total = completions_for(count, streams)
    done = [1 + i / streams for i in range(total)]
    done[: streams - 1] = [0.1] * (streams - 1)  # begun alone
    for i in range(streams - 1):
        done[-1 - i] += 7  # finished alone
    samples = seconds_between(np.random.default_rng(0).permutation(done).tolist(), streams)
    assert samples == pytest.approx([1 / streams] * count)


def test_percentiles_and_throughput_come_from_the_samples() -> None:
    timer = Timer(lambda: None, images=8, samples=[0.001 * ms for ms in range(1, 102)])
    assert timer.latency_ms(50) == pytest.approx(51)
    assert timer.latency_ms(99) == pytest.approx(100)
    assert timer.images_per_second() == pytest.approx(8 / 0.051)
    assert timer.images_per_second(20) > timer.images_per_second() > timer.images_per_second(80)


def test_calls_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    timers = [Timer(lambda n=name: order.append(n), 1) for name in "ab"]  # type: ignore[misc]
    interleaved(timers, seconds=0.05, rounds=5)
    turns = [n for i, n in enumerate(order) if i == 0 or order[i - 1] != n]
    assert turns == list("ab") * 6  # one warm-up and five rounds each
    assert sum(len(t.samples) for t in timers) < len(order)  # warm-up calls are not samples


def test_a_slow_call_is_still_sampled_in_every_round() -> None:
    timer = Timer(lambda: time.sleep(0.02), 1)
    interleaved([timer], seconds=0.01, rounds=2)
    assert len(timer.samples) == 6
    assert timer.latency_ms(50) >= 20
