"""Who is executed with whom, in which order, and who is not executed any more."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from fastervit_trt.deploy.serving.batching import Batcher
from fastervit_trt.deploy.serving.refusal import RefusedError

FOREVER_S = 30.0


class Recorder:
    """A model whose output is its input; it starts when it is let, and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.started, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        self.calls.append(images.ravel().tolist())
        self.started.release()
        assert self.let.acquire(timeout=20)
        if (images < 0).any():
            raise ValueError("negative")
        return (images.copy(),)


def images(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def busy(largest: int, delay_s: float = 0.0) -> tuple[Recorder, Batcher]:
    """A batcher whose model is executing a first request, 0."""
    model = Recorder()
    batcher = Batcher(model, largest=largest, delay_s=delay_s, executed=lambda count, seconds: None)
    batcher.submit(images(*[0] * largest))
    assert model.started.acquire(timeout=20)
    return model, batcher


def test_first_come_first_served_up_to_the_batch() -> None:
    model, batcher = busy(4)
    futures = [batcher.submit(images(*values)) for values in ((1,), (2, 2), (3, 3), (4,) * 6, (5,), (6,))]
    for _ in range(9):
        model.let.release()
    answers = [future.result(20).outputs[0].ravel().tolist() for future in futures]
    batcher.close()
    assert model.calls[1:] == [[1, 2, 2], [3, 3], [4] * 6, [5, 6]]
    assert answers == [[1], [2, 2], [3, 3], [4] * 6, [5], [6]]


def test_who_has_gone_away_costs_nothing() -> None:
    model, batcher = busy(2)
    first, second, third = (batcher.submit(images(n)) for n in (1, 2, 3))
    assert second.cancel()
    for _ in range(3):
        model.let.release()
    assert first.result(20).outputs[0] == 1 and third.result(20).outputs[0] == 3
    batcher.close()
    assert model.calls[1:] == [[1, 3]]
    with pytest.raises(CancelledError):
        second.result(0)


def test_a_failure_is_its_own() -> None:
    model, batcher = busy(4)
    good, bad, other = batcher.submit(images(1)), batcher.submit(images(-1)), batcher.submit(images(2))
    for _ in range(9):
        model.let.release()
    assert good.result(20).outputs[0] == 1 and other.result(20).outputs[0] == 2
    with pytest.raises(ValueError, match="negative"):
        bad.result(20)
    batcher.close()


def test_a_full_batch_does_not_wait_for_company_and_a_hurried_one_neither() -> None:
    model, batcher = busy(2, FOREVER_S)
    model.let.release()
    pair = [batcher.submit(images(n)) for n in (1, 2)]
    model.let.release()
    assert [future.result(20).outputs[0].item() for future in pair] == [1, 2]
    alone = batcher.submit(images(3))
    assert not model.started.acquire(timeout=0.2) or model.calls[-1] == [1, 2]
    batcher.hurry()
    model.let.release()
    assert alone.result(20).outputs[0] == 3
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    model, batcher = busy(1, FOREVER_S)
    waiting = [batcher.submit(images(n)) for n in (1, 2, 3)]
    for _ in range(4):
        model.let.release()
    batcher.close()
    assert [future.result(0).outputs[0].item() for future in waiting] == [1, 2, 3]
    with pytest.raises(RefusedError, match="stopping") as refusal:
        batcher.submit(images(4))
    assert refusal.value.status == 503
