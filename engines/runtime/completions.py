"""When overlapping batches were done in, seconds per batch out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

__all__ = ["completions_for", "seconds_between"]


def completions_for(count: int, streams: int) -> int:
    """How many batches to run with ``streams`` under way for ``count`` samples of :func:`seconds_between`.

    ``streams - 1`` more at each end: while the first are begun and the last are finished, fewer are under way.
    """
    return (count + 2) * streams - 1


def seconds_between(completions: Iterable[float], streams: int) -> list[float]:
    """Seconds per batch: the time from a completion to the ``streams``-th after it, divided by ``streams``.

    So long at least ``streams`` batches have been under way all the time; samples do not overlap, and none waits for
    a slow neighbour as laps with a barrier would.

    Args:
        completions: when each of :func:`completions_for` batches was done, in any order, in seconds.
    """
    ordered = sorted(completions)
    steady = ordered[streams - 1 : len(ordered) - streams + 1]
    marks = steady[::streams]
    return [(later - earlier) / streams for earlier, later in pairwise(marks)]
