"""Bits of a GPU's driver in, why its clocks are what they are in words out; and which of that casts doubt on a time."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["DOUBTFUL", "IDLE", "JETSON_EVENTS", "doubtful", "throttle_reasons"]

IDLE = "idle"
# nvml.h, nvmlClocksEventReason… (before: nvmlClocksThrottleReason…), as in nvidia-ml-py 13.
_REASONS = {
    0x1: IDLE,
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
# Events that a Jetson counts in soctherm_oc: oc1, oc2 and oc3 (Jetson Linux Developer Guide, over-current throttling).
JETSON_EVENTS = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}

# Something outside of the measurement slowed it: heat, the power supply, another GPU. Not among them: clocks that
# somebody has set, which is good practice, and the limits of power, voltage and board at which any GPU works that is
# fully loaded; a reader who compares two GPUs is told of these without a flag.
DOUBTFUL = frozenset(
    {"hardware slowdown", "sync boost", "software thermal", "hardware thermal", "power brake", *JETSON_EVENTS.values()}
)


def throttle_reasons(bits: int) -> list[str]:
    """In words, in the order of the bits; unknown bits are left out."""
    return [reason for bit, reason in _REASONS.items() if bits & bit]


def doubtful(reasons: Iterable[str]) -> list[str]:
    """Those that cast doubt on a time taken meanwhile."""
    return [reason for reason in reasons if reason in DOUBTFUL]
