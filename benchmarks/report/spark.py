"""Samples of a cell in, a small drawing of them in the order they were taken out: drift and outliers are seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from fastervit_trt.benchmarks.report.text import significant

__all__ = ["sparkline"]

_WIDTH, _HEIGHT, _EDGE = 132, 30, 2
_BINS = 44  # three pixels each
_CALM = 0.10  # the drawing spans at least this share of the median to either side, so that calm looks calm
_WILD = 1.0  # and at most this; a tenth of the bins may go beyond what is drawn, or one outlier pressed the rest flat


def sparkline(rounds: Sequence[Sequence[float]]) -> Markup:
    """SVG of ``rounds`` of seconds: median and p10–p90 by time, a dashed line at p50, ticks between rounds."""
    samples = np.concatenate([np.asarray(r, float) for r in rounds]) if rounds else np.empty(0)
    samples = samples[np.isfinite(samples)]
    if len(samples) < 2:
        return Markup("")
    middle = float(np.median(samples))
    bins = np.array_split(samples, min(_BINS, len(samples)))
    low, centre, high = np.array([np.percentile(part, (10, 50, 90)) for part in bins]).T
    reach = float(np.clip(np.percentile(np.maximum(high / middle - 1, 1 - low / middle), 90), _CALM, _WILD))
    x = np.linspace(_EDGE, _WIDTH - _EDGE, len(bins))

    def y(values: np.ndarray) -> np.ndarray:
        share = np.clip((values / middle - 1) / reach, -1, 1)
        return _HEIGHT / 2 - share * (_HEIGHT / 2 - _EDGE)

    band = _points(np.concatenate([x, x[::-1]]), np.concatenate([y(high), y(low)[::-1]]))
    ends = np.cumsum([len(r) for r in rounds])[:-1] / len(samples) * (_WIDTH - 2 * _EDGE) + _EDGE
    ticks = "".join(f"M{end:.1f} {_HEIGHT}v-4" for end in ends)
    text = (
        f"{len(samples)} latencies in {len(rounds)} rounds: p50 {significant(middle * 1e3)} ms, "
        f"from {significant(samples.min() * 1e3)} to {significant(samples.max() * 1e3)} ms; height ±{reach:.0%} of p50"
    )
    return Markup(
        '<svg class="spark" role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}"><title>{text}</title>'
        '<polygon points="{band}"/><path class="p50" d="M0 {half}H{w}"/><path class="tick" d="{ticks}"/>'
        '<polyline points="{line}"/></svg>'
    ).format(w=_WIDTH, h=_HEIGHT, half=_HEIGHT / 2, text=text, band=band, ticks=ticks, line=_points(x, y(centre)))


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
