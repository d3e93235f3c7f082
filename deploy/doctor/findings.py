"""What the doctor says: findings, each fine, worth knowing or a problem, and which problems a target minds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fastervit_trt.deploy.targets.target import Target

__all__ = ["Finding", "State", "ask", "for_target", "note", "ok", "problem", "problems_for"]

State = Literal["ok", "note", "problem"]
_SECONDS = 20


@dataclass(frozen=True)
class Finding:
    """One thing about this machine.

    Attributes:
        area: "driver", "TensorRT", "clocks".
        advice: what to do, to be typed where it can be; every problem has one.
        concerns: who minds a problem: tensorrt, tensorrt-rtx, onnxruntime, gpu, jetson, plugins; empty: everybody.
    """

    area: str
    state: State
    text: str
    advice: str = ""
    concerns: tuple[str, ...] = ()


def ok(area: str, text: str) -> Finding:
    """As it should be."""
    return Finding(area, "ok", text)


def note(area: str, text: str, advice: str = "") -> Finding:
    """Worth knowing."""
    return Finding(area, "note", text, advice)


def problem(area: str, text: str, advice: str, *concerns: str) -> Finding:
    """Has to be put right, for those whom it concerns."""
    return Finding(area, "problem", text, advice, concerns)


def for_target(target: Target | None, findings: Iterable[Finding]) -> list[Finding]:
    """The same, with problems that ``target`` does not mind as notes; without a target all stay as they are."""
    if target is None:
        return list(findings)
    return [
        replace(found, state="note")
        if found.state == "problem" and found.concerns and target.concerns.isdisjoint(found.concerns)
        else found
        for found in findings
    ]


def problems_for(target: Target | None, findings: Iterable[Finding]) -> list[Finding]:
    """What keeps ``target`` from running here, of findings that were made for it."""
    return [found for found in for_target(target, findings) if found.state == "problem"]


def ask(*command: str, seconds: float = _SECONDS) -> str | None:
    """What a tool prints; None where it is missing, fails or does not come to an end."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
