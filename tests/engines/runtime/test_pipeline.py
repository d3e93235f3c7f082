"""Many batches at once on a simulated GPU: whatever the order of execution, results are those of running each alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from fastervit_trt.engines.runtime.images import parts_of
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from tests.engines.runtime.conftest import Simulate, images_of, same
from tests.engines.runtime.simulated_tensorrt import Shapes, compute

SIZES = [4, 1, 3, 9, 2, 4, 4, 0, 1, 4, 5, 4, 2, 13, 4, 3, 3, 3]


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["no graphs", "graphs"])
@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_any_mixture_of_batches_comes_out_in_order(
    simulate: Simulate, streams: int, slots: int, cuda_graph: bool
) -> None:
    batches = [images_of(size, seed) for seed, size in enumerate(SIZES)]
    expected = [compute(batch) if len(batch) else None for batch in batches]
    for seed in range(12):
        simulated = simulate(seed, streams=streams, slots=slots, cuda_graph=cuda_graph)
        results = list(simulated.engine.run_many(iter(batches)))
        assert len(results) == len(batches)
        for batch, outputs, right in zip(batches, results, expected, strict=True):  # after all of them: none changed
            assert [len(output) for output in outputs] == [len(batch)] * 2
            assert right is None or same(outputs, right)
        assert bool(sum(graph.launches for graph in simulated.device.graphs)) == cuda_graph


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shapes", [Shapes(static=3), Shapes(profiles=((1, 1, 1), (3, 4, 6)))], ids=["static", "range"])
def test_batches_are_cut_and_padded_to_what_the_profile_serves(simulate: Simulate, shapes: Shapes, seed: int) -> None:
    profile = len(shapes.profiles) - 1
    engine = simulate(seed, shapes=shapes, profile=profile, streams=2).engine
    assert engine.batch == (BatchRange(3, 3, 3) if shapes.static else BatchRange(3, 4, 6))
    for size in range(1, 15):
        images = images_of(size, size)
        assert same(engine(images), compute(images)), size
    assert [len(output) for output in engine(images_of(0))] == [0, 0]


def test_parts_cover_all_images_once() -> None:
    for batch in (BatchRange(1, 4, 8), BatchRange(5, 5, 5), BatchRange(3, 4, 6)):
        for count in range(20):
            parts = list(parts_of(count, batch))
            assert [i for where, _ in parts for i in range(count)[where]] == list(range(count))
            assert all(len(range(count)[where]) + missing in batch for where, missing in parts)


def test_the_next_batch_is_copied_in_while_one_executes(simulate: Simulate) -> None:
    simulated = simulate(0, slots=2)
    device, (first, second) = simulated.device, simulated.session._slots
    device._eagerness = 0.0
    simulated.session.submit(images_of(4, 1))
    simulated.session.submit(images_of(4, 2))
    with device.active():
        left = device.run_only(second._stream)
        assert np.array_equal(device.read(second._memory[0].address, (4, 3, 4, 6)), images_of(4, 2))
        assert left > 0, "one context executed two batches at once"
        assert device.run_only(first._stream) == 0
        assert device.run_only(second._stream) == 0


def test_several_streams_execute_at_the_same_time(simulate: Simulate) -> None:
    simulated = simulate(0, streams=2)
    device, slots = simulated.device, simulated.session._slots
    device._eagerness = 0.0
    tickets = [simulated.session.submit(images_of(2, seed)) for seed in range(2)]
    with device.active():
        assert device.run_only(slots[1]._stream) == 0  # to its end, though the first has not begun
    assert same(tickets[1].result(), compute(images_of(2, 1)))
    assert same(tickets[0].result(), compute(images_of(2, 0)))


def test_batches_are_read_ahead_by_as_many_as_are_under_way_and_no_more(simulate: Simulate) -> None:
    read: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for i in range(6):
            read.append(i)
            yield images_of(2, i)

    results = simulate(0, streams=2, slots=2).engine.run_many(batches())
    assert same(next(results), compute(images_of(2, 0)))
    assert len(read) == 4
    assert [same(outputs, compute(images_of(2, i + 1))) for i, outputs in enumerate(results)] == [True] * 5


def test_a_producer_may_fill_one_array_again_and_again(simulate: Simulate) -> None:
    buffer = np.empty((3, 3, 4, 6), np.float32)

    def batches() -> Iterator[np.ndarray]:
        for i in range(9):
            buffer[:] = images_of(3, i)
            yield buffer

    for seed in range(6):
        for i, outputs in enumerate(simulate(seed, slots=3).engine.run_many(batches())):
            assert same(outputs, compute(images_of(3, i)))


@pytest.mark.parametrize("seed", range(8))
def test_calls_and_several_runs_may_be_mixed_and_left_unfinished(simulate: Simulate, seed: int) -> None:
    engine = simulate(seed, streams=1 + seed % 2).engine
    one = engine.run_many(images_of(1 + i % 4, i) for i in range(12))
    other = engine.run_many(images_of(9, 100 + i) for i in range(4))
    for i in range(4):
        assert same(next(one), compute(images_of(1 + i % 4, i)))
        assert same(engine(images_of(5, 50 + i)), compute(images_of(5, 50 + i)))
        assert same(next(other), compute(images_of(9, 100 + i)))
    del one
    assert same(engine(images_of(6, 7)), compute(images_of(6, 7)))


def test_results_under_way_survive_closing(simulate: Simulate) -> None:
    for seed in range(6):
        engine = simulate(seed, slots=3).engine
        results = engine.run_many(images_of(4, i) for i in range(2))
        first = engine.run_many(images_of(2, 9 + i) for i in range(3))
        early = next(first)
        engine.close()
        engine.close()
        assert same(early, compute(images_of(2, 9)))
        assert same(next(first), compute(images_of(2, 10)))
        with pytest.raises(FasterViTError, match="closed"):
            next(results)


def test_threads_may_share_an_engine(simulate: Simulate) -> None:
    engine = simulate(3, streams=2).engine
    wrong: list[int] = []

    def work(thread: int) -> None:
        for i in range(15):
            images = images_of(1 + (thread + i) % 6, 1000 * thread + i)
            if not same(engine(images), compute(images)):
                wrong.append(thread)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("fails_at", [0, 3, 5])
def test_a_failed_execution_is_one_line_and_spoils_nothing_after_it(simulate: Simulate, fails_at: int) -> None:
    for seed in range(6):
        engine = simulate(seed, fails_at=fails_at, cuda_graph=False).engine
        for i in range(fails_at):
            assert same(engine(images_of(3, i)), compute(images_of(3, i)))
        with pytest.raises(FasterViTError, match=r"cannot execute 'model\.engine': execution failed as the test wish"):
            engine(images_of(4))
        for i in range(6):
            assert same(engine(images_of(3, i)), compute(images_of(3, i)))


def test_batches_that_cannot_be_read_on_leave_the_engine_usable(simulate: Simulate) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield images_of(2, 1)
        raise OSError("the disk is gone")

    engine = simulate(1).engine
    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.run_many(batches()))
    assert same(engine(images_of(4, 4)), compute(images_of(4, 4)))
