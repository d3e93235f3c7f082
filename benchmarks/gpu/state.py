"""What nvidia-smi says of the GPU: which one, and its clocks, power and reasons to throttle at a moment."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass

from fastervit_trt.benchmarks.telemetry.throttle import throttle_reasons

__all__ = ["GpuIdentity", "GpuState", "StateProbe", "gpu_identity"]

_STATE = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"
_IDENTITY = "name,driver_version,compute_cap"
_SECONDS = 20


@dataclass(frozen=True)
class GpuIdentity:
    """The first GPU."""

    name: str
    driver: str
    compute_capability: str  # as in "9.0"


@dataclass(frozen=True)
class GpuState:
    """At one moment; None: not said."""

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""

    @classmethod
    def parse(cls, line: str) -> GpuState:
        """A line of ``--format=csv,noheader,nounits``; unknown columns read ``[N/A]``."""
        texts = [text.strip() for text in line.split(",")]
        if len(texts) != len(_STATE.split(",")):
            return cls()
        sm_clock, memory_clock, power, temperature = (_number(text) for text in texts[:-1])
        return cls(sm_clock, memory_clock, power, temperature, _throttle(texts[-1]))


class StateProbe:
    """A question to nvidia-smi that is answered beside other work."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        if shutil.which("nvidia-smi"):
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    _query(_STATE), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )

    def read(self) -> GpuState:
        if self._process is None:
            return GpuState()
        try:
            answer, _ = self._process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return GpuState()
        return GpuState.parse(answer.strip().splitlines()[0] if answer.strip() else "")


def gpu_identity() -> GpuIdentity | None:
    """The first GPU, or None where nvidia-smi knows none. Touches no CUDA context."""
    try:
        done = subprocess.run(_query(_IDENTITY), capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    texts = [text.strip() for text in lines[0].split(",")] if done.returncode == 0 and lines else []
    return GpuIdentity(*texts) if len(texts) == len(_IDENTITY.split(",")) else None


def _query(columns: str) -> list[str]:
    return ["nvidia-smi", "-i", "0", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _throttle(text: str) -> str:
    try:
        bits = int(text, 16)
    except ValueError:
        return ""
    return " + ".join(throttle_reasons(bits))
