"""Batches that stay on a simulated GPU: what lies between the events, what is under way meanwhile, what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.engines.runtime.completions import seconds_between
from fastervit_trt.engines.runtime.resident import EXTRA
from fastervit_trt.errors import FasterViTError
from tests.engines.runtime.conftest import Simulate, images_of, same
from tests.engines.runtime.simulated_tensorrt import Shapes, compute
from tests.engines.runtime.simulator import COPY, SimDevice

BATCH = images_of(4)
EXECUTION = 4 * 2.0**-4
OUTPUTS = 2


def test_samples_are_the_time_in_which_every_stream_does_a_batch_on_average() -> None:
    assert seconds_between([1.0, 2.0, 3.5, 6.0, 99.0], 1)[:3] == [1.0, 1.5, 2.5]
    staggered = [2.0, 4.0, 6.0, 8.0] * 2  # both at once: single intervals would be 0 and 2
    assert seconds_between(staggered, 2)[:2] == [1.0, 1.0]
    uneven = [1.0, 2.0, 3.0, 4.0, 5.0, 2.0, 4.0, 6.0, 50.0, 90.0]  # the first is done long before the second
    assert seconds_between(uneven, 2)[:3] == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_latency_is_execution_alone(simulate: Simulate, seed: int, cuda_graph: bool) -> None:
    simulated = simulate(seed, cuda_graph=cuda_graph)
    timed = simulated.engine.timed(BATCH)
    graphs = simulated.device.graphs
    assert (len(graphs), [graph.launches for graph in graphs]) == ((1, [1]) if cuda_graph else (0, []))
    assert timed.latency(5) == [EXECUTION] * 5
    assert [graph.launches for graph in graphs] == ([6] if cuda_graph else [])
    assert timed.clock == "CUDA events"
    assert [same(outputs, compute(BATCH)) for outputs in timed.results()] == [True]


def test_a_batch_is_done_before_the_next_is_handed_in_but_for_throughput_two_are_under_way(simulate: Simulate) -> None:
    simulated = simulate(0, cuda_graph=False)
    timed, device = simulated.engine.timed(BATCH), simulated.device
    device._eagerness = 0.0  # nothing executes before it is waited for

    def backlog(samples: list[float]) -> int:
        largest, device.largest_backlog = device.largest_backlog, 0
        return largest

    backlog(timed.latency(1))
    alone = backlog(timed.latency(1))
    assert backlog(timed.latency(6)) == alone
    execution_and_event = 3  # in the simulator an execution is two steps
    assert backlog(timed.throughput(6)) == alone + execution_and_event


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_throughput_of_a_full_gpu_is_that_of_its_executions(simulate: Simulate, seed: int, streams: int) -> None:
    simulated = simulate(seed, streams=streams)
    timed = simulated.engine.timed(BATCH)
    before = simulated.device.clock
    samples = timed.throughput(8)
    assert len(samples) == 8
    assert simulated.device.clock - before == (8 + EXTRA) * streams * EXECUTION
    if streams == 1:
        assert samples == [EXECUTION] * 8
    assert np.mean(samples) == pytest.approx(EXECUTION, rel=0.15)  # others are half done at the first and last mark
    assert all(same(outputs, compute(BATCH)) for outputs in timed.results())
    assert len(timed.results()) == streams


def test_copies_are_timed_where_asked_for(simulate: Simulate) -> None:
    timed = simulate(2).engine.timed(BATCH, transfers=True)
    assert timed.latency(3) == [EXECUTION + (1 + OUTPUTS) * COPY] * 3
    assert timed.throughput(3) == [EXECUTION + (1 + OUTPUTS) * COPY] * 3


@pytest.mark.parametrize("seed", range(4))
def test_the_cache_is_emptied_before_each_batch_and_that_is_not_timed(simulate: Simulate, seed: int) -> None:
    simulated = simulate(seed)
    timed, device = simulated.engine.timed(BATCH, cold_cache=True), simulated.device
    assert timed.latency(3) == [2 * EXECUTION] * 3
    assert timed.throughput(4) == [2 * EXECUTION] * 4
    assert [size for _, size in device.fills] == [2 * device.l2_bytes] * 7
    assert same(timed.results()[0], compute(BATCH))
    device._eagerness, device.largest_backlog = 0.0, 0
    timed.latency(3)
    event_and_graph = 1 + 2 + 1
    assert device.largest_backlog == event_and_graph  # the launch does not hide behind the emptying
    with pytest.raises(FasterViTError, match="with one stream only"):
        simulate(seed, streams=2).engine.timed(BATCH, cold_cache=True)


def test_the_engine_runs_as_before_between_and_after(simulate: Simulate) -> None:
    for seed in range(4):
        engine = simulate(seed, streams=2).engine
        timed = engine.timed(BATCH)
        for i in range(4):
            timed.throughput(2)
            assert same(engine(images_of(3, i)), compute(images_of(3, i)))
            assert timed.latency(1) == [EXECUTION]
        assert same(timed.results()[1], compute(BATCH))
        timed.close()
        timed.close()
        assert same(engine(images_of(4, 9)), compute(images_of(4, 9)))


@pytest.mark.parametrize("seed", range(8))
def test_batches_under_way_when_timing_begins_come_first(simulate: Simulate, seed: int) -> None:
    simulated = simulate(seed, cuda_graph=False)
    for method in ("latency", "throughput"):
        under_way = [simulated.session.submit(images_of(2, i)) for i in range(2)]
        timed = simulated.engine.timed(BATCH)
        assert same(timed.results()[0], compute(BATCH))
        under_way += [simulated.session.submit(images_of(2, i)) for i in range(2)]
        getattr(timed, method)(2)
        for i, ticket in enumerate(under_way):
            assert same(ticket.result(), compute(images_of(2, i % 2)))
        assert same(timed.results()[0], compute(BATCH))


def test_everything_is_given_back(simulate: Simulate) -> None:
    simulated = simulate(0, streams=2)
    alive = simulated.device.alive
    timed = simulated.engine.timed(images_of(2))
    timed.throughput(3)
    timed.close()
    graphs = 2  # which the lanes keep
    assert simulated.device.alive == alive + graphs
    simulated.engine.timed(BATCH).throughput(2)  # closing the engine closes it: the fixture looks


def test_what_fails_halfway_leaves_nothing_behind(simulate: Simulate) -> None:
    simulated = simulate(1, cuda_graph=False, fails_at=7)
    timed = simulated.engine.timed(BATCH)
    with pytest.raises(FasterViTError, match="execution failed as the test wishes"):
        timed.throughput(9)
    assert timed.latency(1) == [EXECUTION]
    for allocations in range(5, 7):
        device = SimDevice(0, allocations=allocations)
        engine = simulate(device=device, slots=2, cuda_graph=False, shapes=Shapes(outputs={"logits": (5,)})).engine
        alive = device.alive
        with pytest.raises(FasterViTError, match="not enough memory"):
            engine.timed(BATCH)
        assert device.alive == alive


def test_notes_say_what_to_know(simulate: Simulate, tmp_path: Path) -> None:
    timed = simulate(0).engine.timed(BATCH)
    timed.throughput(3)
    assert timed.note == ""
    timed = simulate(0, refuses_capture="unsupported").engine.timed(BATCH)
    assert timed.note == "without CUDA graphs: unsupported"
    fast = SimDevice(0, seconds_per_image=2.0**-40)
    timed = simulate(device=fast).engine.timed(BATCH)
    timed.throughput(3)
    assert timed.note == "the host spent 100% of the time on launches and may be the limit"
    timed.latency(2)
    assert "100%" in timed.note


def test_other_batches_are_refused(simulate: Simulate) -> None:
    engine = simulate(0).engine
    with pytest.raises(FasterViTError, match=r"model\.engine serves batch 1:2:4, not 5; time another batch"):
        engine.timed(images_of(5))
    with pytest.raises(FasterViTError, match=r"images must be float32"):
        engine.timed(BATCH.astype(np.float64))
    engine.close()
    with pytest.raises(FasterViTError, match="the engine is closed"):
        engine.timed(BATCH)
