"""The Pareto front of accuracy against throughput, and its picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastervit_trt.benchmarks.rows import BenchmarkRow

__all__ = ["draw_pareto", "mark_front"]

_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "D", "int8": "^", "int8-cpu": "P", "fp8": "v", "mixed": "X"}
_COLOURS = ("#3b7dd8", "#d9703a", "#2f9e6e", "#a65fc4", "#c9a227", "#c4485f", "#5f8b95")


def mark_front(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """``rows`` with ``on_front`` and ``dominated_by`` filled in.

    A row is dominated by another that is at least as accurate and as fast, and better in one of the two; of several,
    the fastest is named. Rows without accuracy, or whose speed means nothing, take no part.
    """
    candidates = [row for row in rows if _comparable(row)]
    marked = []
    for row in rows:
        if not _comparable(row):
            marked.append(replace(row, on_front=None, dominated_by=None))
            continue
        better = [other for other in candidates if _dominates(other, row)]
        best = max(better, key=lambda r: r.throughput_img_per_s, default=None)
        marked.append(replace(row, on_front=best is None, dominated_by=best.label if best else None))
    return marked


def draw_pareto(rows: Sequence[BenchmarkRow], folder: Path) -> str:
    """Write ``pareto.png`` and return the same figure as SVG text for embedding; rows must have accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.on_front is not None]
    colours = {model: _COLOURS[i % len(_COLOURS)] for i, model in enumerate(dict.fromkeys(r.model for r in shown))}
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastervit-trt", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        _draw_front(axes, shown)
        for row in shown:
            _draw_point(axes, row, colours[row.model])
        axes.set_xscale("log")
        axes.set_xlabel(f"throughput, images/s at batch {_batches(shown)} (log)")
        axes.set_ylabel("top-1 accuracy, %")
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.margins(x=0.14, y=0.12)
        _readable_ticks(axes)
        figure.savefig(folder / "pareto.png", dpi=160)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    text = svg.getvalue()
    return text[text.index("<svg") :]


def _comparable(row: BenchmarkRow) -> bool:
    return row.top1 is not None and row.speed_is_meaningful


def _dominates(a: BenchmarkRow, b: BenchmarkRow) -> bool:
    assert a.top1 is not None and b.top1 is not None
    no_worse = a.top1 >= b.top1 and a.throughput_img_per_s >= b.throughput_img_per_s
    return no_worse and (a.top1 > b.top1 or a.throughput_img_per_s > b.throughput_img_per_s)


def _draw_front(axes: Any, rows: Sequence[BenchmarkRow]) -> None:
    """A staircase: up to each front point's speed, its accuracy is to be had."""
    front = sorted((r for r in rows if r.on_front), key=lambda r: r.throughput_img_per_s)
    if len(front) > 1:
        x, y = [r.throughput_img_per_s for r in front], [100 * (r.top1 or 0) for r in front]
        axes.plot(x, y, drawstyle="steps-pre", color="#888888", linewidth=1.2, alpha=0.8, zorder=1)


def _draw_point(axes: Any, row: BenchmarkRow, colour: str) -> None:
    assert row.top1 is not None and row.top1_low is not None and row.top1_high is not None
    x, y = row.throughput_img_per_s, 100 * row.top1
    axes.errorbar(
        x,
        y,
        yerr=[[y - 100 * row.top1_low], [100 * row.top1_high - y]],
        xerr=[[x - row.throughput_p20_img_per_s], [row.throughput_p80_img_per_s - x]],
        fmt=_MARKERS.get(row.precision, "o"),
        color=colour,
        markerfacecolor=colour if row.on_front else "none",
        markersize=8,
        elinewidth=0.9,
        alpha=1.0 if row.on_front else 0.65,
        zorder=3,
    )
    above = row.precision == "fp32"
    axes.annotate(
        row.label,
        (x, y),
        xytext=(0, 11 if above else -11),
        textcoords="offset points",
        fontsize=8,
        ha="center",
        va="bottom" if above else "top",
    )


def _batches(rows: Sequence[BenchmarkRow]) -> str:
    return ", ".join(str(b) for b in sorted({row.throughput_batch for row in rows}))


def _readable_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
