"""Cells in, the Markdown for a README out: picture, table, conditions in a line, caveats as footnotes."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from fastervit_trt.benchmarks.pareto import Group
from fastervit_trt.benchmarks.report.cells import Cell
from fastervit_trt.benchmarks.report.look import Looks
from fastervit_trt.benchmarks.report.text import caveats, interval, percent, significant, sqnr
from fastervit_trt.benchmarks.rows import BenchmarkRow

__all__ = ["render_summary"]

_SAME = {"top-1": "same top-1 as fp32 PyTorch %", "mIoU": "same pixels as fp32 PyTorch %"}
_STATES = {"front": "yes", "near": "no, within uncertainty", "off": "no", "none": "–"}
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render_summary(cells: Sequence[Cell], looks: Looks, *, title: str, picture: str | None) -> str:
    """``picture`` is the file's name beside the summary; None: there is none."""
    notes: dict[str, int] = {}
    parts = [f"## {_plain(title)}"]
    if picture:
        parts.append(f"![Accuracy against throughput]({picture})")
    groups: dict[Group, list[Cell]] = {}
    for cell in cells:
        if cell.row.measured:
            groups.setdefault(cell.group, []).append(cell)
    for group, members in groups.items():
        if len(groups) > 1:
            parts.append(f"### {_plain(group.title)}")
        head = _head(group.metric, looks)
        lines = [head, ("---",) * len(head), *(_line(cell, notes, looks) for cell in members)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append(_conditions([cell.row for cell in members]))
    if not groups:
        parts.append("No cell was measured.")
    if notes:
        parts.append("\n".join(f"{number}. {_plain(note)}" for note, number in notes.items()))
    if missing := [cell.row for cell in cells if not cell.row.measured]:
        parts.append("\n".join(["Not measured:", "", *(_missing(row, looks) for row in missing)]))
    return "\n\n".join(parts) + "\n"


def _head(metric: str, looks: Looks) -> tuple[str, ...]:
    """Columns of a table, with resolution and export where a model is there in several."""
    size, export = ("resolution",) if looks.sizes else (), ("export",) if looks.exports else ()
    names = ("model", *size, "precision", *export, "backend", "batch", f"{metric} %")
    same = _SAME.get(metric, "same as fp32 PyTorch %")
    noise = ("SQNR dB",) if metric == "top-1" else ()
    return (*names, "95 % interval", same, *noise, "images/s", "p50 / p90 / p99 ms", "on the front")


def _line(cell: Cell, notes: dict[str, int], looks: Looks) -> tuple[str, ...]:
    row = cell.row
    said = [f"{fact.term}: {fact.text}" for fact in caveats(row)]
    marks = ", ".join(str(notes.setdefault(text, len(notes) + 1)) for text in said)
    tails = " / ".join(significant(ms) for ms in (row.latency_p50_ms, row.latency_p90_ms, row.latency_p99_ms))
    return (
        _plain(row.model) + (f" <sup>{marks}</sup>" if marks else ""),
        *([_plain(row.resolution)] if looks.sizes else []),
        _plain(row.precision),
        *([_plain(row.export)] if looks.exports else []),
        _plain(row.backend),
        str(row.batch) + (f" × {row.streams} streams" if row.streams > 1 else ""),
        percent(row.score),
        interval(row.score_low, row.score_high),
        percent(row.agreement_fp32),
        *([sqnr(row)] if row.metric == "top-1" else []),
        significant(row.throughput_img_per_s),
        tails if row.latency_p50_ms is not None else "–",
        _STATES[cell.state("throughput")]
        + (", if its time holds" if cell.doubt and cell.state("throughput") == "front" else ""),
    )


def _conditions(rows: Sequence[BenchmarkRow]) -> str:
    """One line that a figure may be quoted with."""
    row = rows[0]
    metric = "Top-1" if row.metric == "top-1" else row.metric
    way = "95 % Wilson interval" if row.metric == "top-1" else "95 % interval by bootstrap over images"
    images = f"{metric} on {row.images} images of {row.dataset}, {way}; " if row.score is not None else ""
    device = row.device or row.cpu or "unknown device"
    if row.device_kind == "cpu" and row.threads:
        device += f" on {row.threads} threads"
    copies = ", with transfers" if row.transfers else ""
    cold = ", cold L2 cache" if row.cold_cache else ""
    clock = f", clock: {row.clock}" if row.clock else ""
    days = sorted({one.timestamp_utc[:10] for one in rows if one.timestamp_utc})
    when = f", {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    return _plain(f"{images}{device}, batch {row.batch}{copies}{cold}{clock}{when}.")


def _missing(row: BenchmarkRow, looks: Looks) -> str:
    export = f" ({row.export})" if row.variant in looks.exports else ""
    return f"- {_plain(f'{row.label}{export} on {row.backend}, batch {row.batch}: {row.status}: {row.reason}')}"


def _plain(text: str) -> str:
    """``text`` on one line, with nothing that Markdown or HTML would take for markup."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
