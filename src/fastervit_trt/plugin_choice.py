"""The same engine with and without plugins in, the faster one out, with the times of both: per profile, on this GPU.

Compilers fuse FasterViT's attention by themselves, so that a plugin has to earn its place on the very shapes and device
(in NVIDIA/TensorRT, plugins slower than what they replace are a recurring complaint).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_trt.benchmarks.timing import Timer, interleaved
from fastervit_trt.console import step
from fastervit_trt.engines.api import NAMES
from fastervit_trt.engines.build import BuiltEngine
from fastervit_trt.engines.runtime.pycuda_device import open_device
from fastervit_trt.engines.runtime.session import Session
from fastervit_trt.engines.runtime.tensorrt_api import Source, import_runtime
from fastervit_trt.engines.runtime.tensorrt_session import TensorRtSession
from fastervit_trt.export.batch import BatchRange

__all__ = ["PluginTiming", "PluginVerdict", "judge_plugins", "open_session"]

_SECONDS = 1.0  # per engine and profile, in turns


@dataclass(frozen=True)
class PluginTiming:
    """Milliseconds per call at the batch one profile was optimised for, copies of images and results included."""

    batch: int
    without_ms: float
    without_p20_ms: float
    without_p80_ms: float
    with_ms: float
    with_p20_ms: float
    with_p80_ms: float

    @property
    def gain(self) -> float:
        """How many times as fast with plugins."""
        return self.without_ms / self.with_ms

    @property
    def sure_gain(self) -> float:
        """The same where fast calls without plugins are compared with slow ones with them."""
        return self.without_p20_ms / self.with_p80_ms


@dataclass(frozen=True)
class PluginVerdict:
    """Which of two engines is kept, and why."""

    timings: tuple[PluginTiming, ...]

    @property
    def gain(self) -> float:
        """Geometric mean over the profiles."""
        return _geometric_mean([timing.gain for timing in self.timings])

    @property
    def plugins_win(self) -> bool:
        """Whether the gain is beyond the spread of the measured times: a library to carry along has to earn it."""
        return _geometric_mean([timing.sure_gain for timing in self.timings]) > 1

    def record(self) -> dict[str, Any]:
        """For the manifest: the times of both."""
        kept = "with plugins" if self.plugins_win else "without plugins"
        return {"kept": kept, "gain": round(self.gain, 4), "timings": [asdict(timing) for timing in self.timings]}


def judge_plugins(
    without: BuiltEngine,
    with_plugins: BuiltEngine,
    image_shape: tuple[int, int, int],
    open_profile: Callable[[BuiltEngine, int], Session],
    seconds: float = _SECONDS,
) -> PluginVerdict:
    """Time two engines of the same graph in turns, profile by profile.

    Args:
        open_profile: opens an engine for running with one of its profiles.
        seconds: timed per engine and profile.
    """
    timings = []
    for index, profile in enumerate(without.profiles):
        with step(f"plugins or not, at batch {profile.optimum}"), ExitStack() as stack:
            sessions = [stack.enter_context(closing(open_profile(engine, index))) for engine in (without, with_plugins)]
            timers = _timers(sessions, profile, image_shape)
            interleaved(timers, seconds)
        timings.append(_timing(profile.optimum, *timers))
    return PluginVerdict(tuple(timings))


def open_session(outputs: Sequence[str], onnx: Path) -> Callable[[BuiltEngine, int], Session]:
    """Opens engines that this process has just built on this machine's GPU: there is nothing to admit."""

    def open_profile(engine: BuiltEngine, profile: int) -> Session:
        source = Source(
            engine.runtime,
            engine.path.read_bytes(),
            str(engine.path),
            plugins=None if engine.plugins is None else engine.plugins.path,
            weights=onnx if engine.options.strip_weights else None,
            host_code=engine.options.version_compatible,
        )
        device, trt = open_device(0), import_runtime(engine.runtime)
        spoken = f"{NAMES[engine.runtime]} {engine.version}, {engine.path.name}"
        return TensorRtSession(
            device, trt, source, outputs, profile=profile, streams=1, slots=2, cuda_graph=True, spoken=spoken
        )

    return open_profile


def _timers(sessions: Sequence[Session], profile: BatchRange, image_shape: tuple[int, int, int]) -> list[Timer]:
    images = np.random.default_rng(0).standard_normal((profile.optimum, *image_shape)).astype(np.float32)
    return [Timer(partial(_run, session, images), profile.optimum) for session in sessions]


def _run(session: Session, images: np.ndarray) -> None:
    session.submit(images).result()


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _timing(batch: int, without: Timer, with_plugins: Timer) -> PluginTiming:
    both = [timer.latency_ms(percentile) for timer in (without, with_plugins) for percentile in (50, 20, 80)]
    return PluginTiming(batch, *both)
