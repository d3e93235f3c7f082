"""Rows and exponents in, what a person reads out: a table, a figure, and a page in Markdown of what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from fastervit_trt.benchmarks.studies.resolution_rows import OWN, GrowthRow, ResolutionRow
from fastervit_trt.console import console

__all__ = ["FIGURE_NAME", "PAGE_NAME", "draw_figure", "findings", "print_growth", "render_page"]

FIGURE_NAME, PAGE_NAME = "resolution-cost.png", "README.md"
_SAME = 0.05  # times that differ by less are called alike; drift within a round is of that size
_QUIET = 0.2  # CPUs that others may use: with more, threads wait for each other and times are of that
_PAPER = "https://arxiv.org/abs/2306.06189"


@dataclass(frozen=True)
class _Look:
    label: str
    colour: str  # of the report's palette, which colour-blind readers can tell apart
    marker: str
    what: str


_LOOKS = {
    OWN: _Look("{model}", "#1b54d9", "o", "the deploy form: carriers and windows in stage 2, windows alone in stage 3"),
    "windows": _Look("windows alone", "#063340", "s", "the same without carriers: nothing crosses a window's border"),
    "shifted": _Look(
        "shifted windows", "#c48800", "^", "windows that move in every other block, as Swin's, no carriers"
    ),
    "global": _Look("global attention", "#00a863", "D", "every token of stages 2 and 3 sees every other; fused kernel"),
    "global-explicit": _Look("global, scores in memory", "#e2009a", "v", "the same with all scores written out"),
    "vit": _Look("isotropic ViT/16", "#581a00", "X", "no stages: 16x16 patches, global attention, fused kernel"),
}
_QUANTITIES = ("multiply-adds", "memory", "time")


def print_growth(rows: Sequence[GrowthRow]) -> None:
    """Exponents of pixels, a line per network and span of sizes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("network", "sizes", *(f"{name} ~ pixels^" for name in _QUANTITIES)):
        table.add_column(column, justify="left" if column in ("network", "sizes") else "right")
    for line in _growth_lines(rows):
        table.add_row(*line)
    console.print(table)


def draw_figure(rows: Sequence[ResolutionRow], path: Path) -> None:
    """Five panels over the side of the image: time, time over FasterViT's, memory, multiply-adds, attention's share."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(14.5, 7.6), layout="constrained")
    first = rows[0]
    _draw(panels[0][0], rows, "time of a batch, ms", lambda r: (r.latency_ms, r.latency_p20_ms, r.latency_p80_ms))
    _draw(
        panels[0][1],
        rows,
        f"time, {first.model} = 1",
        lambda r: (r.time_over_fastervit, r.time_over_fastervit_p20, r.time_over_fastervit_p80),
    )
    _draw(panels[1][0], rows, "peak of activations, MiB", lambda r: (r.memory_mib,) * 3)
    _draw(panels[0][2], rows, "multiply-adds of an image, 10⁹", lambda r: (r.gmacs,) * 3)
    _draw(panels[1][1], rows, "attention in multiply-adds, %", lambda r: (100 * r.attention_share,) * 3)
    for axes in (panels[0][1], panels[1][1]):
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)
    panels[1][2].set_axis_off()
    panels[1][2].legend(*panels[0][0].get_legend_handles_labels(), loc="center left", fontsize=10, frameon=False)
    figure.suptitle(_conditions(first), fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def render_page(rows: Sequence[ResolutionRow], growth: Sequence[GrowthRow], command: str) -> str:
    """The page beside the figure, in Markdown."""
    networks = [f"| {_label(name, rows)} | {_LOOKS[name].what} |" for name in _networks(rows)]
    parts = [
        "# What resolution costs",
        f"![Time, memory and multiply-adds over the side of the image]({FIGURE_NAME})",
        f"{_conditions(rows[0])}. All in their deploy form in PyTorch, in turns; points are medians of the rounds' "
        "medians, bars their 20th and 80th percentile; ratios are taken within a round. Memory is the most bytes of "
        f"tensors alive at once, parameters apart.{_others(rows)} [Rows](rows.csv), [exponents](growth.csv); made by",
        f"```bash\n{command}\n```",
        "\n".join(["| network | attention |", "|---|---|", *networks]),
        "Stem, convolution stages, downsamplers, widths, depths, heads and windows are the same in all but the last, "
        f"which has as many parameters as {rows[0].model}.",
        "\n".join(["## What the curves say", "", *(f"- {line}" for line in findings(rows, growth))]),
        "\n".join(["## At every size", "", *_size_table(rows)]),
        "\n".join(["## How fast it grows", "", *_growth_table(growth)]),
        "An exponent of 1 is linear in the pixels, 2 their square. Sizes whose map does not fill whole windows are "
        "padded, which shows as steps.",
    ]
    if notes := [f"- {_label(row.network, rows)} at {row.resolution}: {row.note}" for row in rows if row.note]:
        parts.append("\n".join(["## Not measured", "", *notes]))
    return "\n\n".join(parts) + "\n"


def findings(rows: Sequence[ResolutionRow], growth: Sequence[GrowthRow]) -> list[str]:
    """What the numbers say of the paper's claim that HAT pays at high resolution, for and against."""
    timed = [row for row in rows if row.time_over_fastervit is not None and row.network != OWN]
    lines = [
        f"The paper ([arXiv 2306.06189]({_PAPER})) claims that carriers give attention across windows at less than the "
        "quadratic cost of global attention, and speed at high resolution."
    ]
    for name in dict.fromkeys(row.network for row in timed):
        lines.append(_against([row for row in timed if row.network == name], rows))
    return [*lines, *_growth_finding(growth, rows), *_memory_finding(rows), *_arithmetic_finding(rows)]


def _against(own: Sequence[ResolutionRow], rows: Sequence[ResolutionRow]) -> str:
    """One network's time beside FasterViT's, at the ends and where it changes sides."""
    own = sorted(own, key=lambda row: row.resolution)
    ends = ", ".join(f"{_times(row)} at {row.resolution}" for row in dict.fromkeys((own[0], own[-1])))
    slower = [row.resolution for row in own if (row.time_over_fastervit_p20 or 0) > 1 + _SAME]
    faster = [row.resolution for row in own if (row.time_over_fastervit_p80 or 2) < 1 - _SAME]
    verdicts = []
    if slower:
        verdicts.append(f"slower beyond {_SAME:.0%} {_sizes(slower, own)}")
    if faster:
        verdicts.append(f"faster beyond {_SAME:.0%} {_sizes(faster, own)}")
    said = "; ".join(verdicts) or f"within {_SAME:.0%} or uncertainty everywhere"
    label = _label(own[0].network, rows)
    return f"**{label[0].upper()}{label[1:]}** takes {ends} of {own[0].model}'s time: {said}."


def _growth_finding(growth: Sequence[GrowthRow], rows: Sequence[ResolutionRow]) -> list[str]:
    """Where every curve is going: the exponents of time over the largest sizes."""
    times = [row for row in growth if row.quantity == "time"]
    if not times:
        return []
    start = max(row.from_resolution for row in times)
    last = [row for row in times if row.from_resolution == start]
    powers = ", ".join(f"{_label(row.network, rows)} {_power(row)}" for row in last)
    return [f"From {start} to {last[0].to_resolution} time grows as pixels to the power: {powers}."]


def _memory_finding(rows: Sequence[ResolutionRow]) -> list[str]:
    measured = [row for row in rows if row.memory_over_fastervit is not None]
    if not measured:
        return []
    largest = max(row.resolution for row in measured)
    last = [row for row in measured if row.resolution == largest and row.network != OWN]
    own = next((row for row in measured if row.resolution == largest and row.network == OWN), None)
    others = ", ".join(f"{_label(row.network, rows)} {row.memory_over_fastervit:.2f} ×" for row in last)
    return [f"Memory at {largest}: {own.memory_mib:.0f} MiB of activations; {others}."] if own and last else []


def _arithmetic_finding(rows: Sequence[ResolutionRow]) -> list[str]:
    largest = max(row.resolution for row in rows)
    last = [row for row in rows if row.resolution == largest]
    shares = ", ".join(
        f"{_label(row.network, rows)} {row.gmacs:.3g} ({row.attention_share:.0%} of them in scores and their sums)"
        for row in last
    )
    return [f"Multiply-adds at {largest}, 10⁹: {shares}."]


def _draw(
    axes: Any,
    rows: Sequence[ResolutionRow],
    title: str,
    value: Callable[[ResolutionRow], tuple[float | None, float | None, float | None]],
) -> None:
    for name in _networks(rows):
        points = [(row.resolution, *value(row)) for row in rows if row.network == name and value(row)[0] is not None]
        if not points:
            continue
        sides, middles, lows, highs = zip(*points, strict=True)
        reach = (
            [m - low for m, low in zip(middles, lows, strict=True)],
            [h - m for m, h in zip(middles, highs, strict=True)],
        )
        look = _LOOKS[name]
        own = {"linewidth": 2.2, "zorder": 3} if name == OWN else {"linewidth": 1.2}
        axes.errorbar(
            sides,
            middles,
            reach,
            color=look.colour,
            marker=look.marker,
            markersize=4.5,
            label=_label(name, rows),
            elinewidth=0.8,
            capsize=2,
            **own,
        )
    sizes = sorted({row.resolution for row in rows})
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_xlabel("side of the image, pixels", fontsize=8)


def _size_table(rows: Sequence[ResolutionRow]) -> list[str]:
    """A line per size, a column per network: ms, and how many times FasterViT's."""
    names = _networks(rows)
    lines = [
        "| side | " + " | ".join(f"{_label(name, rows)} ms" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    by_place = {(row.resolution, row.network): row for row in rows}
    for size in sorted({row.resolution for row in rows}):
        cells = [by_place.get((size, name)) for name in names]
        lines.append(f"| {size} | " + " | ".join(_cell(row) for row in cells) + " |")
    return lines


def _cell(row: ResolutionRow | None) -> str:
    if row is None or row.latency_ms is None:
        return "–"
    ratio = "" if row.network == OWN or row.time_over_fastervit is None else f" ({row.time_over_fastervit:.2f} ×)"
    return f"{row.latency_ms:.4g}{ratio}"


def _growth_table(rows: Sequence[GrowthRow]) -> list[str]:
    head = ("network", "sizes", *(f"{name} ~ pixels^" for name in _QUANTITIES))
    lines = [head, ("---",) * len(head), *_growth_lines(rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _growth_lines(rows: Sequence[GrowthRow]) -> list[tuple[str, ...]]:
    spans = dict.fromkeys((row.network, row.from_resolution, row.to_resolution) for row in rows)
    found = {(row.network, row.from_resolution, row.to_resolution, row.quantity): row for row in rows}
    return [
        (span[0], f"{span[1]}–{span[2]}", *(_power(found.get((*span, quantity))) for quantity in _QUANTITIES))
        for span in spans
    ]


def _power(row: GrowthRow | None) -> str:
    if row is None:
        return "–"
    spread = "" if row.exponent_p20 == row.exponent_p80 else f" ({row.exponent_p20:.2f}–{row.exponent_p80:.2f})"
    return f"{row.exponent:.2f}{spread}"


def _times(row: ResolutionRow) -> str:
    low, high = row.time_over_fastervit_p20, row.time_over_fastervit_p80
    return f"{row.time_over_fastervit:.2f} × ({low:.2f}–{high:.2f})"


def _sizes(sizes: Sequence[int], measured: Sequence[ResolutionRow]) -> str:
    """``sizes`` among those ``measured``, in ascending order."""
    known = [row.resolution for row in measured]
    if list(sizes) == known:
        return "at every size"
    if len(sizes) > 1 and list(sizes) == known[-len(sizes) :]:
        return f"from {sizes[0]} on"
    if len(sizes) > 1 and list(sizes) == known[: len(sizes)]:
        return f"up to {sizes[-1]}"
    return "at " + ", ".join(str(size) for size in sizes)


def _networks(rows: Sequence[ResolutionRow]) -> list[str]:
    return list(dict.fromkeys(row.network for row in rows))


def _label(network: str, rows: Sequence[ResolutionRow]) -> str:
    return _LOOKS[network].label.format(model=rows[0].model)


def _others(rows: Sequence[ResolutionRow]) -> str:
    """A caution where the machine had other work."""
    used = [row.others_cpus for row in rows if row.others_cpus is not None]
    if not used or max(used) < _QUIET:
        return ""
    return (
        f" Other processes used {median(used):.1f} CPUs meanwhile (up to {max(used):.1f}): times are not to be trusted."
    )


def _conditions(row: ResolutionRow) -> str:
    threads = "" if row.device_kind == "cuda" else f", {row.threads} threads"
    return f"{row.model} and networks of its widths, {row.precision}, batch {row.batch}, {row.device}{threads}"
