from __future__ import annotations

import time

import pytest

from fastervit_trt.benchmarks.timing import Timer, interleaved


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
