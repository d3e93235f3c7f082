"""Cells in, ``pareto.png`` out: accuracy against throughput, one panel per group, labels that do not overlap."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from fastervit_trt.benchmarks.pareto import Group, front_line, speed
from fastervit_trt.benchmarks.report.beside import Beside
from fastervit_trt.benchmarks.report.cells import Cell, State, charted_groups
from fastervit_trt.benchmarks.report.chart import common_benchmark
from fastervit_trt.benchmarks.report.labels import Label, place_labels
from fastervit_trt.benchmarks.report.look import LIGHT, Looks, short_name
from fastervit_trt.benchmarks.report.text import metric_title

__all__ = ["draw_picture"]

_INK, _SOFT, _FAINT = "#1c2430", "#5c6675", "#9aa5b4"
_TINT = 0.28  # how full a point is that is dominated, but within uncertainty
_DPI = 160
_COLOURS = 128  # of the PNG: enough that no edge looks rough
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "text.parse_math": False,  # names are no formulas
}
_ALONE, _PANEL = (8.0, 5.2), (6.2, 4.4)  # inches of a picture of one panel, and of a panel among others
_STEPS = ((1,), (2, 5), (3, 1.5, 7), (4, 6, 8, 1.2, 2.5))  # the roundest first
_ROOM = 0.09  # of the axis, between two numbers


def draw_picture(cells: Sequence[Cell], looks: Looks, published: Sequence[Beside]) -> bytes | None:
    """The PNG of every group with accuracy and throughput; None where no cell has both."""
    groups = charted_groups(cells, "throughput")
    if not groups:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(_STYLE):
        figure, panels = _panels(plt, len(groups))
        for axes, (group, members) in zip(panels, groups.items(), strict=True):
            _draw_panel(axes, group, members, looks, published)
        beside = any(_beside(members, published) for members in groups.values())
        shown = [cell for members in groups.values() for cell in members]
        _draw_legend(figure, shown, looks, columns=8 if len(groups) > 1 else 5, published=beside)
        figure.draw_without_rendering()  # fixes the layout, so that labels find their places
        figure.set_layout_engine("none")
        for axes, members in zip(panels, groups.values(), strict=True):
            place_labels(axes, _labels(members, looks, published))
        stream = io.BytesIO()
        figure.savefig(stream, dpi=_DPI)
        plt.close(figure)
    return _small(stream)


def _panels(plt: Any, count: int) -> tuple[Any, list[Any]]:
    """A figure of ``count`` axes in one column or two."""
    columns = min(2, count)
    lines = math.ceil(count / columns)
    size = _ALONE if count == 1 else (_PANEL[0] * columns, _PANEL[1] * lines + 0.6)
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, dpi=_DPI)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, list(grid.flat[:count])


def _small(png: io.BytesIO) -> bytes:
    """The same picture with a palette: few colours are in it, and it is kept in repositories and within the page."""
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(png) as picture:
        picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _draw_panel(axes: Any, group: Group, members: Sequence[Cell], looks: Looks, published: Sequence[Beside]) -> None:
    corners = front_line([cell.standing["throughput"] for cell in members])
    if len(corners) > 1:
        x, y = zip(*corners, strict=True)
        axes.plot(x, [100 * v for v in y], drawstyle="steps-pre", color=_FAINT, linewidth=1.3, zorder=1)
    for point in _beside(members, published):
        axes.plot(*_published_spot(point), marker="D", markersize=4, color=_FAINT, markerfacecolor="none", zorder=1)
    for cell in members:
        _draw_point(axes, cell, looks)
    axes.set_xscale("log")
    axes.set_title(group.title, fontsize=9, loc="left", color=_SOFT)
    axes.set_xlabel("throughput, images/s (log)")
    axes.set_ylabel(metric_title(group.metric))
    axes.grid(alpha=0.25)
    axes.tick_params(colors=_SOFT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.16, y=0.16)
    _name_speeds(axes)
    limits = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 100])  # intervals end there
    axes.set_ylim(limits)


def _draw_point(axes: Any, cell: Cell, looks: Looks) -> None:
    row, colour = cell.row, LIGHT[looks.colour(cell.row.model)]
    span = speed(row, "throughput")
    assert span is not None and row.score is not None
    x, y = span[1], 100 * row.score
    low, high = (y if end is None else 100 * end for end in (row.score_low, row.score_high))
    state = cell.state("throughput")
    alpha = 1.0 if state == "front" else 0.75
    axes.errorbar(
        x, y, yerr=[[max(0.0, y - low)], [max(0.0, high - y)]], xerr=[[x - span[0]], [span[2] - x]],
        fmt="none", ecolor=colour, elinewidth=0.9, alpha=alpha * 0.8, zorder=2,
    )  # fmt: skip
    # Intervals by bootstrap need not hold the value.
    face = _face(colour, state, bool(cell.doubt))
    marker = looks.shape(row.precision).marker
    edge = {"markeredgecolor": colour, "markeredgewidth": 1.3, "alpha": alpha, "zorder": 3}
    axes.plot(x, y, marker=marker, markersize=8.5, markerfacecolor="white", **edge)
    axes.plot(x, y, marker=marker, markersize=8.5, markerfacecolor=face, **edge)
    if sign := looks.sign_marker(row.backend):
        inside = "white" if face == colour else colour
        axes.plot(x, y, marker=sign, markersize=4, color=inside, markeredgewidth=1.1, zorder=4)


def _face(colour: str, state: State, doubtful: bool) -> Any:
    """Full on the front, tinted within uncertainty of it, hollow where dominated or in doubt."""
    if doubtful or state == "off":
        return "none"
    return colour if state == "front" else (colour, _TINT)


def _draw_legend(figure: Any, cells: Sequence[Cell], looks: Looks, *, columns: int, published: bool) -> None:
    from matplotlib.legend_handler import HandlerTuple

    entries = {**_names(cells, looks), **_states(cells)}
    if published:
        entries["published, another machine"] = (_sample("D", "none", _FAINT),)
    figure.legend(
        list(entries.values()),
        list(entries),
        handler_map={tuple: HandlerTuple(ndivide=1)},
        loc="outside lower center",
        ncols=min(len(entries), columns),
        fontsize=7.5,
        frameon=False,
    )


def _names(cells: Sequence[Cell], looks: Looks) -> dict[str, tuple[Any, ...]]:
    """Colours of models, shapes of precisions and, where there are several, signs of backends."""
    rows = [cell.row for cell in cells]
    found: dict[str, tuple[Any, ...]] = {}
    for model in looks.models:
        if any(row.model == model for row in rows):
            colour = LIGHT[looks.colour(model)]
            found[short_name(model)] = (_sample("o", colour, colour),)
    for precision in looks.precisions:
        if any(row.precision == precision for row in rows):
            found[precision] = (_sample(looks.shape(precision).marker, "none"),)
    for backend in looks.backends if len(looks.backends) > 1 else ():
        if any(row.backend == backend for row in rows):
            sign = _sample(looks.sign_marker(backend) or "none", _INK)
            found[backend] = (_sample("o", "none", _FAINT), sign)
    return found


def _states(cells: Sequence[Cell]) -> dict[str, tuple[Any, ...]]:
    found = {
        "on the front": (_sample("o", _INK),),
        "dominated within uncertainty": (_sample("o", (_INK, _TINT)),),
        "clearly dominated": (_sample("o", "none"),),
    }
    if any(cell.doubt for cell in cells):
        found["! time in doubt"] = (_sample("none", "none"),)
    return found


def _sample(marker: str, face: Any, edge: str = _INK) -> Any:
    from matplotlib.lines import Line2D

    size = 4.5 if marker in ("_", "|", "+", "x", ".", "$/$") else 7
    return Line2D([], [], linestyle="none", marker=marker, markersize=size, markerfacecolor=face, markeredgecolor=edge)


def _labels(members: Sequence[Cell], looks: Looks, published: Sequence[Beside]) -> list[Label]:
    """Those of the front first: they get the best places."""
    ordered = sorted(members, key=lambda c: (c.state("throughput") != "front", -(c.row.throughput_img_per_s or 0)))
    own = [
        Label(looks.label(cell.row) + (" !" if cell.doubt else ""), *_spot(cell), size=7.5, colour=_INK)
        for cell in ordered
    ]
    return own + [
        Label(point.label, *_published_spot(point), size=6.0, colour=_FAINT, must_be_near=True)
        for point in _beside(members, published)
    ]


def _beside(members: Sequence[Cell], published: Sequence[Beside]) -> Sequence[Beside]:
    return [point for point in published if point.benchmark == common_benchmark(members)]


def _spot(cell: Cell) -> tuple[float, float]:
    return (cell.row.throughput_img_per_s or 0.0, 100 * (cell.row.score or 0.0))


def _published_spot(point: Beside) -> tuple[float, float]:
    return (point.throughput_img_per_s, 100 * point.score)


def _name_speeds(axes: Any) -> None:
    """Round numbers on the logarithmic axis, as many as can stand side by side."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    named: list[float] = []
    for steps in _STEPS:
        for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high))):
            for value in (step * 10.0**decade for step in steps):
                room = all(abs(math.log(value / other)) / math.log(high / low) >= _ROOM for other in named)
                if low <= value <= high and room:
                    named.append(value)
    axes.xaxis.set_major_locator(FixedLocator(sorted(named)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0f}"))
    axes.set_xlim(low, high)
