"""An installed export in, proof that it does here what it did where it was made out: outputs, precision, speed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.timing import calls_for, warm_up
from fastervit_trt.deploy.install.proof import PrecisionProof, prove
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.engines.runtime.session import Timed
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.golden import Golden, GoldenComparison

__all__ = ["Arrival", "Smoke", "verify_arrival"]

_LATENCY_SHARE = 0.5  # of the seconds; the rest is for throughput


@dataclass(frozen=True)
class Smoke:
    """A few seconds of work, to see that it runs and about how fast; ``fastervit-bench`` measures."""

    batch: int
    seconds: float
    latency_p50_ms: float
    throughput_img_per_s: float
    settled: bool  # whether the call time came to rest before it was taken
    note: str


@dataclass(frozen=True)
class Arrival:
    """What was found on arrival."""

    backend: str
    file: str  # of the export, that was run
    description: str
    golden: GoldenComparison
    precision: PrecisionProof
    smoke: Smoke

    def record(self) -> dict[str, Any]:
        """For the receipt."""
        return asdict(self)


def verify_arrival(
    folder: Path,
    manifest: Manifest,
    *,
    backend: str,
    file: str | None = None,
    seconds: float = 2.0,
    least_throughput: float | None = None,
    step: Callable[[str], Any],
) -> Arrival:
    """Run an export of this machine against its golden set, prove its precision, and time it for ``seconds``.

    Args:
        file: the engine; the one that ``backend`` finds by default.
        least_throughput: images per second below which it has not arrived.
        step: wraps each long step, for progress.

    Raises:
        FasterViTError: outputs beyond the budget (with the worst point), an engine that contradicts its precision, too
            slow, or nothing here runs it.
    """
    if manifest.golden is None:
        raise FasterViTError(f"'{folder}' has no golden set to be verified with; export the model again and pack it")
    golden = Golden.read(folder, manifest.golden)
    with Engine.load(folder if file is None else folder / file, backend=backend) as engine:
        with step("golden outputs"):
            comparison = golden.compare(engine.outputs, engine(golden.images))
        if not comparison.passed:
            raise FasterViTError(
                f"{engine.file} does not compute here what the model computes: {comparison}; a file is damaged in a "
                "way that its hash does not show, or the runtime is at fault: try another release of it"
            )
        with step("precision"):
            proof = prove(folder, manifest, engine.file)
        with step(f"throughput, {seconds:g} s"):
            smoke = _smoke(engine, golden.images, seconds)
        if least_throughput is not None and smoke.throughput_img_per_s < least_throughput:
            raise FasterViTError(
                f"{engine.file} runs {smoke.throughput_img_per_s:.1f} images/s here, {least_throughput:g} were asked "
                "for; fastervit-deploy doctor says what slows this machine"
            )
        return Arrival(engine.backend, engine.file, engine.description, comparison, proof, smoke)


def _smoke(engine: Engine, images: np.ndarray, seconds: float) -> Smoke:
    batch = engine.batch.optimum
    repeated = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])), dtype=np.float32)
    on_host = engine.backend == "ort-cpu"
    timed: _TimedCalls | Timed = _TimedCalls(engine, repeated) if on_host else engine.timed(repeated)
    try:
        warm = warm_up(timed.latency, most_seconds=max(1.0, seconds))
        latency = timed.latency(calls_for(seconds * _LATENCY_SHARE, warm.call_seconds))
        per_batch = timed.throughput(calls_for(seconds * (1 - _LATENCY_SHARE), warm.call_seconds))
        note = timed.note
    finally:
        timed.close()
    p50, rate = statistics.median(latency), batch / statistics.median(per_batch)
    if not (math.isfinite(p50) and math.isfinite(rate) and p50 > 0):
        raise FasterViTError(
            f"{engine.file} cannot be timed here: {p50} s a batch; fastervit-deploy doctor may say why"
        )
    return Smoke(batch, seconds, 1000 * p50, rate, warm.settled, note)


class _TimedCalls:
    """An engine without device memory, timed call by call."""

    note = "timed by the host's clock, calls one after the other"

    def __init__(self, engine: Engine, images: np.ndarray) -> None:
        self._engine, self._images = engine, images

    def latency(self, count: int) -> list[float]:
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            self._engine(self._images)
            samples.append(time.perf_counter() - start)
        return samples

    throughput = latency  # its threads are all at work on one batch

    def close(self) -> None:
        """Nothing is held."""
