"""CUDA graphs on a simulated GPU that refuses stale ones: when they are captured, how many, and what if not."""

from __future__ import annotations

import pytest

from tests.engines.runtime.conftest import Simulate, images_of, same
from tests.engines.runtime.simulated_tensorrt import Shapes, compute

MANY = Shapes(profiles=((1, 8, 16),))


def test_what_comes_again_is_captured_and_then_only_launched(simulate: Simulate) -> None:
    simulated = simulate(0)
    graphs = simulated.device.graphs
    engine = simulated.engine
    for _ in range(2):  # both slots
        engine(images_of(4))
    assert graphs == []
    for i in range(2):
        assert same(engine(images_of(4, i)), compute(images_of(4, i)))
    assert [graph.launches for graph in graphs] == [0, 0]  # a capture executes nothing
    for i in range(6):
        assert same(engine(images_of(4, i)), compute(images_of(4, i)))
    assert [graph.launches for graph in graphs] == [3, 3]
    engine(images_of(3))
    assert len(graphs) == 2  # seen once


@pytest.mark.parametrize("seed", range(6))
def test_graphs_of_other_batch_sizes_stay_valid(simulate: Simulate, seed: int) -> None:
    simulated = simulate(seed, slots=2)
    for turn in range(5):
        for size in (4, 1, 2, 4, 3):
            assert same(simulated.engine(images_of(size, turn)), compute(images_of(size, turn)))
    assert len(simulated.device.graphs) == 2 * 4


def test_graphs_are_bounded_and_the_least_used_goes_first(simulate: Simulate) -> None:
    for seed in range(4):
        simulated = simulate(seed, shapes=MANY)
        graphs = simulated.device.graphs
        for turn in range(4):
            for size in range(1, 17):
                images = images_of(size, turn)
                for _ in range(2):
                    assert same(simulated.engine(images), compute(images))
        assert len(graphs) == 32 + 24  # all when they come again; those forgotten when they come twice more
        alive = [graph for graph in graphs if not graph.freed]
        assert 0 < len(alive) <= 8
        contexts = simulated.trt._engines[0]._contexts
        assert len(contexts) == 1 + len(alive)  # those of forgotten graphs are gone


def test_what_is_used_most_keeps_its_graph(simulate: Simulate) -> None:
    simulated = simulate(0, shapes=MANY)
    for turn in range(4):
        for size in range(1, 16):
            for _ in range(2):
                assert same(simulated.engine(images_of(16, turn)), compute(images_of(16, turn)))
            for _ in range(2):
                simulated.engine(images_of(size))
    assert [graph.freed for graph in simulated.device.graphs[:2]] == [False, False]
    assert any(graph.freed for graph in simulated.device.graphs)


def test_without_capture_all_goes_on_with_one_warning(simulate: Simulate, capfd: pytest.CaptureFixture[str]) -> None:
    simulated = simulate(2, refuses_capture="cudaErrorStreamCaptureUnsupported", streams=2)
    for i in range(12):
        assert same(simulated.engine(images_of(4, i)), compute(images_of(4, i)))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "no CUDA graphs (cudaErrorStreamCaptureUnsupported)" in warnings[0]
    assert not simulated.device.graphs


def test_an_engine_that_fails_while_captured_goes_on_without(
    simulate: Simulate, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(6):
        # Two plain executions, one that brings the third's context up to date, and the captured one.
        simulated = simulate(seed, fails_at=3)
        for i in range(8):
            assert same(simulated.engine(images_of(4, i)), compute(images_of(4, i)))
        assert not simulated.device.graphs
        assert capfd.readouterr().err.count("no CUDA graphs") == 1


def test_without_memory_for_one_more_context_all_goes_on(simulate: Simulate, capfd: pytest.CaptureFixture[str]) -> None:
    simulated = simulate(0, most_contexts=2)
    for i in range(8):
        assert same(simulated.engine(images_of(4, i)), compute(images_of(4, i)))
    assert len(simulated.device.graphs) == 1
    assert "cannot make an execution context of 'model.engine': out of memory" in capfd.readouterr().err


def test_graphs_can_be_declined(simulate: Simulate) -> None:
    simulated = simulate(0, cuda_graph=False)
    for i in range(8):
        simulated.engine(images_of(4, i))
    assert not simulated.device.graphs
    assert "graphs" not in simulated.engine.description
