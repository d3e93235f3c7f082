"""Rows of paths in, what a person reads out: a table, a list of the largest shares, and a bar chart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from fastervit_trt.benchmarks.studies.cpu_profile import ProfileRow
from fastervit_trt.benchmarks.studies.cpu_rows import CpuPathRow, TimedRow
from fastervit_trt.console import console, say

__all__ = [
    "CHART_NAME",
    "draw_bars",
    "draw_panels",
    "draw_paths",
    "number",
    "print_notes",
    "print_paths",
    "print_profile",
]

CHART_NAME = "cpu-paths.png"
_OWN, _OTHER, _FLOOR = "#3b7dd8", "#a9b7c6", "#d9703a"
_PROFILE_LINES = 8
_QUIET_LOAD = 0.5


Row = TypeVar("Row", bound=TimedRow)


def print_paths(rows: Sequence[CpuPathRow]) -> None:
    """One line per path; what was not timed says why below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "path", "ms", "img/s", "time / export", "p20..p80", "share of floor", "GFLOP/s", "of peak"):
        table.add_column(column, justify="left" if column in ("model", "path") else "right", no_wrap=True)
    for row in rows:
        spread = f"{number(row.time_over_export_p20)}..{number(row.time_over_export_p80)}" if row.timed else ""
        cells = (number(row.latency_ms, 1), number(row.throughput_img_per_s, 1), number(row.time_over_export))
        shares = (_percent(row.share_of_floor), number(row.gflops, 0), _percent(row.share_of_peak))
        table.add_row(row.model, row.path, *(cells if row.timed else (row.status, "", "")), spread, *shares)
    console.print(table)
    for model in dict.fromkeys(row.model for row in rows):
        first = next(row for row in rows if row.model == model)
        say(f"{model}: floor {first.floor_ms:.1f} ms for {first.gflop:.3g} GFLOP, peak {first.peak_gflops:.0f} GFLOP/s")
    print_notes(rows, rows[0].load_before)


def print_notes(rows: Sequence[TimedRow], load_before: float | None) -> None:
    """A warning where the machine was busy, and why some paths were not timed."""
    if (load_before or 0) > _QUIET_LOAD:
        say(f"load average {load_before} at the start: other processes slow paths unequally, OpenMP's most")
    for row in rows:
        if row.note:
            say(f"{row.model} {row.path}: {row.status}, {row.note}")


def print_profile(rows: Sequence[ProfileRow]) -> None:
    """The largest shares of each model, by operator and by kind of block."""
    for model, grouping in dict.fromkeys((row.model, row.grouping) for row in rows):
        chosen = [row for row in rows if (row.model, row.grouping) == (model, grouping)][:_PROFILE_LINES]
        shares = ", ".join(f"{row.name} {row.share_percent:.1f} %" for row in chosen)
        say(f"{model} by {grouping}: {shares}")


def draw_paths(rows: Sequence[CpuPathRow], folder: Path) -> Path:
    """Write ``cpu-paths.png``: a panel per model, images per second of each path, the floor as a line."""
    return draw_panels(rows, folder / CHART_NAME, _draw_panel)


def draw_panels(rows: Sequence[Row], path: Path, draw: Callable[[Any, Sequence[Row]], None]) -> Path:
    """Write a picture with a panel per model, each drawn by ``draw`` on axes from the model's rows that were timed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(row.model for row in rows))
    figure, panels = plt.subplots(1, len(models), figsize=(5.8 * len(models), 3.6), layout="constrained", squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        draw(axes, [row for row in rows if row.model == model and row.timed])
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def draw_bars(axes: Any, rows: Sequence[TimedRow], own: Collection[str], title: str) -> None:
    """Images per second by path, the fastest first, with the span of the calls; ``own`` in blue."""
    rows = sorted(rows, key=lambda row: -(row.throughput_img_per_s or 0))
    speeds = [row.throughput_img_per_s or 0.0 for row in rows]
    low = [s - row.batch / (row.latency_p80_ms or 1) * 1e3 for s, row in zip(speeds, rows, strict=True)]
    high = [row.batch / (row.latency_p20_ms or 1) * 1e3 - s for s, row in zip(speeds, rows, strict=True)]
    colours = [_OWN if row.path in own else _OTHER for row in rows]
    bars = axes.bar([row.path for row in rows], speeds, yerr=[low, high], color=colours, error_kw={"elinewidth": 0.8})
    axes.bar_label(bars, labels=[f"{s:.0f}" for s in speeds], label_type="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel("images/s")
    axes.margins(y=0.14)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_panel(axes: Any, rows: Sequence[CpuPathRow]) -> None:
    draw_bars(axes, rows, {"export"}, f"{rows[0].model}, batch {rows[0].batch}, {rows[0].threads} threads, fp32")
    floor = rows[0].batch / rows[0].floor_ms * 1e3
    axes.axhline(floor, color=_FLOOR, linewidth=1.2)
    axes.annotate(
        f"matrix products alone: {floor:.0f}",
        (0.99, floor),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=_FLOOR,
    )


def number(value: float | None, digits: int = 2) -> str:
    """For a cell; empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
