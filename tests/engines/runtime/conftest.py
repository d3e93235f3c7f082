"""Engines on a simulated GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fastervit_trt.engines.runtime.backends import Opened
from fastervit_trt.engines.runtime.engine import Engine
from fastervit_trt.engines.runtime.tensorrt_api import RuntimeName, Source
from fastervit_trt.engines.runtime.tensorrt_session import TensorRtSession
from tests.engines.runtime.simulated_tensorrt import PLAN, SimTensorRt
from tests.engines.runtime.simulator import SimDevice


@dataclass(frozen=True)
class Simulated:
    """An engine and what it runs on."""

    engine: Engine
    session: TensorRtSession
    device: SimDevice
    trt: SimTensorRt


Simulate = Callable[..., Simulated]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Open an engine on a simulated GPU; whatever it holds must be given back when it is closed."""
    opened: list[Simulated] = []

    def build(
        seed: int = 0,
        *,
        streams: int = 1,
        slots: int = 2,
        cuda_graph: bool = True,
        profile: int = 0,
        runtime: RuntimeName = "tensorrt",
        refuses_capture: str | None = None,
        device: SimDevice | None = None,
        source: dict[str, Any] | None = None,
        **how: Any,
    ) -> Simulated:
        device = device or SimDevice(seed, refuses_capture)
        trt = SimTensorRt(device, **how)
        session = TensorRtSession(
            device,
            trt,
            Source(runtime, **{"content": PLAN, "label": "model.engine", **(source or {})}),
            list(trt._shapes.outputs),
            profile=profile,
            streams=streams,
            slots=slots,
            cuda_graph=cuda_graph,
            spoken="Simulated",
        )
        engine = Engine(Opened("tensorrt", session, (), "model.engine"), trt._shapes.image)
        opened.append(Simulated(engine, session, device, trt))
        return opened[-1]

    yield build
    for each in opened:
        each.engine.close()
        assert each.device.alive == 0, "not everything was given back"
        assert not each.device.memory


def images_of(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 4, 6)) -> np.ndarray:
    """Small whole numbers, so that sums are exact in any order."""
    return np.random.default_rng(seed).integers(-9, 10, (count, *shape)).astype(np.float32)


def same(outputs: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(outputs, expected, strict=True))
