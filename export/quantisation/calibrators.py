"""What was seen of a tensor in, the range to quantise it with out.

A histogram of |x| is filled batch by batch and never holds the data. Its end doubles when a larger value comes: pairs
of bins then become one, so that no batch has to be seen twice.

Calibrators (the range is [-a, a]):

* ``max``         the largest |x| seen.
* ``percentile``  the smallest a that 99.999 % of the values lie within.
* ``entropy``     the a whose clipped distribution loses least when it is told in 128 levels, by Kullback-Leibler
                  divergence (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
* ``mse``         the a with the least mean squared error of rounding and clipping, on the grid of the type.
"""

from __future__ import annotations

import math

import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Calibrator, Int8, Quantised

__all__ = ["Histogram", "choose_range", "on_grid"]

_LEVELS = 128  # of |x| in int8
_BINS = 64 * _LEVELS
_SMALLEST_END = 2.0**-120  # 1 over it is a float32
_PERCENTILE = 99.999
_MSE_CANDIDATES = 128


class Histogram:
    """Counts of |x| in even bins from 0 to a power of two that covers all that was seen."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.end = 0.0  # of the last bin; 0: nothing but zeros so far
        self.largest = 0.0
        self.values = 0
        self.non_finite = 0

    def add(self, x: torch.Tensor) -> None:
        """Count the values of ``x``, of any shape; NaN and infinity are counted apart."""
        magnitudes = x.detach().float().abs().flatten()
        largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
        if not math.isfinite(largest):
            finite = magnitudes[magnitudes.isfinite()]
            self.non_finite += magnitudes.numel() - finite.numel()
            magnitudes, largest = finite, float(finite.max()) if finite.numel() else 0.0
        self._cover(largest)
        if self.end:
            self.counts += torch.histc(magnitudes * (1 / self.end), _BINS, 0, 1).double()
        self.largest = max(self.largest, largest)
        self.values += magnitudes.numel()

    @property
    def centres(self) -> torch.Tensor:
        """The middle of every bin as a share of the end: (bins,)."""
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS

    def _cover(self, largest: float) -> None:
        if self.end == 0.0 and largest > 0.0:
            self.end = max(2.0 ** math.ceil(math.log2(largest)), _SMALLEST_END)
            self.counts[0] = self.values  # zeros, all of them
        while self.end < largest:
            self.counts = torch.cat([self.counts.reshape(-1, 2).sum(1), torch.zeros(_BINS // 2, dtype=torch.float64)])
            self.end *= 2


def choose_range(seen: Histogram, calibrator: Calibrator, precision: type[Quantised]) -> float:
    """The a of [-a, a]; 0 for a tensor that was always 0.

    Raises:
        FasterViTError: entropy for a type whose steps are not even.
    """
    if calibrator == "entropy" and not issubclass(precision, Int8):
        raise FasterViTError(f"the entropy calibrator is for int8's even steps; use max or mse for {precision.name}")
    if seen.largest == 0.0:
        return 0.0
    if calibrator == "max":
        return seen.largest
    chosen = {"percentile": _percentile, "entropy": _entropy}[calibrator](seen) if calibrator != "mse" else None
    return min(seen.largest, _least_squares(seen, precision) if chosen is None else chosen)


def on_grid(x: torch.Tensor, scale: torch.Tensor | float, precision: type[Quantised]) -> torch.Tensor:
    """``x`` (any shape, float32 or float64) as QuantizeLinear and DequantizeLinear leave it; ``scale`` broadcasts."""
    steps = x / scale
    if issubclass(precision, Int8):
        return steps.round().clamp(-precision.largest - 1, precision.largest) * scale
    steps = steps.clamp(-precision.largest, precision.largest)
    return steps.to(precision.dtype).to(x.dtype) * scale


def _percentile(seen: Histogram) -> float:
    within = seen.counts.cumsum(0) / seen.counts.sum()
    index = int(torch.searchsorted(within, torch.tensor(_PERCENTILE / 100, dtype=torch.float64)))
    return (min(index, _BINS - 1) + 1) * seen.end / _BINS


def _least_squares(seen: Histogram, precision: type[Quantised]) -> float:
    largest, centres = seen.largest / seen.end, seen.centres
    candidates = torch.linspace(1 / _MSE_CANDIDATES, 1, _MSE_CANDIDATES, dtype=torch.float64) * largest
    errors = [
        float((seen.counts * (centres - on_grid(centres, a / precision.largest, precision)).square()).sum())
        for a in candidates.tolist()
    ]
    return float(candidates[int(torch.tensor(errors, dtype=torch.float64).argmin())]) * seen.end


def _entropy(seen: Histogram) -> float:
    divergences = [_divergence(seen.counts, _LEVELS * k) for k in range(1, _BINS // _LEVELS + 1)]
    best = int(torch.tensor(divergences).argmin()) + 1
    return best * _LEVELS * seen.end / _BINS


def _divergence(counts: torch.Tensor, bins: int) -> float:
    """Of the distribution clipped to its first ``bins`` from the same distribution told in 128 levels."""
    clipped = counts[:bins].clone()
    groups, kept = clipped.reshape(_LEVELS, -1), (clipped > 0).reshape(_LEVELS, -1)
    # A level spreads what it holds evenly over those of its bins that are not empty.
    told = (groups.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1) * kept).flatten()
    clipped[-1] += counts[bins:].sum()
    if float(told.sum()) == 0.0:
        return math.inf
    p, q = clipped / clipped.sum(), told / told.sum()
    present = p > 0
    if bool((q[present] == 0).any()):  # the last bin, empty but for what was clipped into it
        q = q + 1e-12
    return float((p[present] * (p[present] / q[present]).log()).sum())
