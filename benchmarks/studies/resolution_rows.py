"""What was measured of networks at several sizes in, rows and exponents of growth out.

A ratio is taken within a round and then summarised: the machine drifts between rounds, not between neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
import torch

from fastervit_trt.benchmarks.studies.resolution_cost import MultiplyAdds
from fastervit_trt.errors import FasterViTError

__all__ = ["OWN", "Cell", "Conditions", "GrowthRow", "ResolutionRow", "exponent", "growth_rows", "resolution_rows"]

OWN = "fastervit"  # the network that others are compared with
_PERCENTILES = (50, 20, 80)
_MIB = 2**20


@dataclass(frozen=True)
class Conditions:
    """What all cells of a run share."""

    model: str
    batch: int
    precision: str
    device: str
    device_kind: str  # "cpu" or "cuda"
    threads: int


@dataclass
class Cell:
    """One network at one size, and what was measured of it."""

    network: str
    resolution: int  # side of the square images
    parameters: int  # of the deploy form
    products: MultiplyAdds
    note: str = ""  # why it was not timed; empty where it was
    memory_bytes: int | None = None  # of activations, of a whole batch
    rounds: list[list[float]] = field(default_factory=list)  # seconds of each call
    others: list[float] = field(default_factory=list)  # CPUs that other processes used, by round

    @property
    def medians(self) -> list[float]:
        """Seconds of a batch, by round."""
        return [float(np.median(samples)) for samples in self.rounds]


@dataclass(frozen=True)
class ResolutionRow:
    """One network at one size: a line of ``rows.csv``. None: not measured."""

    network: str
    model: str  # the FasterViT whose widths, depths and heads it has
    resolution: int
    batch: int
    precision: str
    device: str
    device_kind: str
    threads: int
    parameters: int
    gmacs: float  # multiply-adds of one image
    attention_gmacs: float  # q kᵀ and weights · v
    attention_share: float
    memory_mib: float | None  # peak of activations, of the batch
    memory_over_fastervit: float | None
    latency_ms: float | None  # of the batch: median of the rounds' medians
    latency_p20_ms: float | None
    latency_p80_ms: float | None
    fastest_ms: float | None  # of all calls
    time_over_fastervit: float | None
    time_over_fastervit_p20: float | None
    time_over_fastervit_p80: float | None
    rounds: int
    samples: int
    others_cpus: float | None  # that other processes used meanwhile, of those this one may use: median of the rounds
    note: str
    torch: str
    timestamp_utc: str


@dataclass(frozen=True)
class GrowthRow:
    """How one quantity of a network grows: proportional to pixels to the power ``exponent``.

    Multiply-adds and memory are exact, so they have no interval; that of time is over rounds.
    """

    network: str
    quantity: str  # "time", "memory" or "multiply-adds"
    from_resolution: int
    to_resolution: int
    sizes: int
    exponent: float
    exponent_p20: float
    exponent_p80: float


def resolution_rows(cells: Sequence[Cell], conditions: Conditions) -> list[ResolutionRow]:
    """A row per cell, compared with FasterViT's at the same size."""
    own = {cell.resolution: cell for cell in cells if cell.network == OWN}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [_row(cell, own.get(cell.resolution), conditions, now) for cell in cells]


def growth_rows(cells: Sequence[Cell]) -> list[GrowthRow]:
    """Exponents of every network and quantity, over all sizes and over those from half the largest side on.

    One power law does not fit what is linear at first and quadratic in the end: the second says where it is going.
    """
    rows: list[GrowthRow] = []
    for network in dict.fromkeys(cell.network for cell in cells):
        own = sorted((cell for cell in cells if cell.network == network), key=lambda cell: cell.resolution)
        largest = max(cell.resolution for cell in own)
        upper = [cell for cell in own if 2 * cell.resolution >= largest]
        for span in (own, upper) if len(upper) < len(own) else (own,):
            rows += _growth(span)
    return rows


def exponent(resolutions: Sequence[int], values: Sequence[float]) -> float:
    """a of ``value`` ~ pixels^a: the slope of the logarithms by least squares.

    Raises:
        FasterViTError: fewer than two sizes.
    """
    if len(set(resolutions)) < 2:
        raise FasterViTError("growth needs two sizes at least; name more, as 224,448")
    pixels = 2 * np.log(np.asarray(resolutions, float))
    return float(np.polyfit(pixels, np.log(np.asarray(values, float)), 1)[0])


def _growth(cells: Sequence[Cell]) -> list[GrowthRow]:
    found = [_growth_row(cells, "multiply-adds", [[float(cell.products.total) for cell in cells]])]
    measured = [cell for cell in cells if cell.memory_bytes]
    found.append(_growth_row(measured, "memory", [[float(cell.memory_bytes or 0) for cell in measured]]))
    timed = [cell for cell in cells if cell.rounds]
    rounds = zip(*(cell.medians for cell in timed), strict=True)
    found.append(_growth_row(timed, "time", [list(seconds) for seconds in rounds]))
    return [row for row in found if row is not None]


def _growth_row(cells: Sequence[Cell], quantity: str, rounds: Sequence[Sequence[float]]) -> GrowthRow | None:
    sizes = [cell.resolution for cell in cells]
    if len(sizes) < 2:
        return None
    exponents = [exponent(sizes, values) for values in rounds]
    spread = (round(float(value), 3) for value in np.percentile(exponents, _PERCENTILES))
    return GrowthRow(cells[0].network, quantity, min(sizes), max(sizes), len(sizes), *spread)


def _row(cell: Cell, own: Cell | None, conditions: Conditions, now: str) -> ResolutionRow:
    times = _spread([1e3 * seconds for seconds in cell.medians])
    ratios = _spread(_ratios(cell, own))
    compared = own is not None and own.memory_bytes and cell.memory_bytes
    return ResolutionRow(
        network=cell.network,
        model=conditions.model,
        resolution=cell.resolution,
        batch=conditions.batch,
        precision=conditions.precision,
        device=conditions.device,
        device_kind=conditions.device_kind,
        threads=conditions.threads,
        parameters=cell.parameters,
        gmacs=round(cell.products.total / 1e9, 4),
        attention_gmacs=round(cell.products.attention / 1e9, 4),
        attention_share=round(cell.products.attention_share, 4),
        memory_mib=None if cell.memory_bytes is None else round(cell.memory_bytes / _MIB, 2),
        memory_over_fastervit=round(cell.memory_bytes / own.memory_bytes, 3) if compared else None,  # type: ignore[operator, union-attr]
        latency_ms=times[0],
        latency_p20_ms=times[1],
        latency_p80_ms=times[2],
        fastest_ms=round(1e3 * min(map(min, cell.rounds)), 3) if cell.rounds else None,
        time_over_fastervit=ratios[0],
        time_over_fastervit_p20=ratios[1],
        time_over_fastervit_p80=ratios[2],
        rounds=len(cell.rounds),
        samples=sum(map(len, cell.rounds)),
        others_cpus=round(float(np.median(cell.others)), 2) if cell.others else None,
        note=cell.note,
        torch=torch.__version__,
        timestamp_utc=now,
    )


def _ratios(cell: Cell, own: Cell | None) -> list[float]:
    if own is None or not own.rounds or not cell.rounds:
        return []
    return [mine / base for mine, base in zip(cell.medians, own.medians, strict=True)]


def _spread(values: Sequence[float]) -> list[float | None]:
    """Median, 20th and 80th percentile."""
    if not values:
        return [None, None, None]
    return [round(float(value), 3) for value in np.percentile(values, _PERCENTILES)]
