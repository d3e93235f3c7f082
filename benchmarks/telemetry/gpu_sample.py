"""What a GPU said of itself at a moment, whoever asked it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

__all__ = ["GpuSample", "GpuSource", "merged"]


@dataclass(frozen=True)
class GpuSample:
    """None: not said."""

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()


class GpuSource(Protocol):
    """Somebody who can be asked some ten times a second."""

    def sample(self) -> GpuSample: ...


def merged(samples: Sequence[GpuSample]) -> GpuSample:
    """Of one moment: each value from the first that has it, the reasons of all."""
    values: dict[str, float | None] = {}
    for name in (field.name for field in fields(GpuSample) if field.name != "throttle"):
        values[name] = next((value for one in samples if (value := getattr(one, name)) is not None), None)
    return GpuSample(**values, throttle=tuple(reason for one in samples for reason in one.throttle))
