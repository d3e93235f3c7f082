"""ONNX Runtime's IO bindings, driven on the CPU as they are on a GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fastervit_trt.engines.runtime.ort_timed import OrtTimed
from fastervit_trt.errors import FasterViTError


@pytest.fixture(scope="module")
def session(exports: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(exports / "fp32" / "model.onnx", options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)


class Emptied:
    """Stands for emptying a cache, which takes its time."""

    SECONDS = 0.2

    def __init__(self) -> None:
        self.times, self.freed = 0, False

    def __call__(self) -> None:
        self.times += 1
        time.sleep(self.SECONDS)

    def free(self) -> None:
        self.freed = True


@pytest.mark.parametrize(("streams", "transfers"), [(1, False), (2, True)])
def test_what_is_timed_is_what_the_session_computes(
    session: Any, images: np.ndarray, streams: int, transfers: bool
) -> None:
    (expected,) = session.run(None, {"images": images})
    mine = images.copy()
    timed = OrtTimed(session, ("cpu", 0), mine, streams=streams, transfers=transfers)
    if not transfers:
        mine[...] = np.nan  # the batch is the runtime's own by now
    start = time.perf_counter()
    latency = timed.latency(3)
    assert 0 < sum(latency) <= time.perf_counter() - start
    start = time.perf_counter()
    throughput = timed.throughput(3)
    assert len(latency) == len(throughput) == 3
    assert 0 < streams * sum(throughput) <= time.perf_counter() - start
    assert len(timed.results()) == streams
    for (logits,) in timed.results():
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert timed.clock == "host"
    assert "host's clock" in timed.note
    assert ("pageable" in timed.note) is transfers


def test_the_cache_is_emptied_before_each_batch_and_that_is_not_timed(session: Any, images: np.ndarray) -> None:
    emptied = Emptied()
    timed = OrtTimed(session, ("cpu", 0), images, streams=1, transfers=False, empty_cache=lambda: emptied)
    times = timed.latency(2) + timed.throughput(2)
    assert emptied.times == len(times) == 4
    assert min(times) < emptied.SECONDS
    timed.close()
    assert emptied.freed
    with pytest.raises(FasterViTError, match="with one stream only"):
        OrtTimed(session, ("cpu", 0), images, streams=2, transfers=False, empty_cache=Emptied)
