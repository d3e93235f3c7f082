"""The report a person reads: one HTML page with the Pareto picture and the table, self-contained, opened from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from fastervit_trt.benchmarks.pareto import draw_pareto
from fastervit_trt.benchmarks.rows import BenchmarkRow

__all__ = ["write_report"]

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(rows: Sequence[BenchmarkRow], folder: Path) -> Path:
    """Write ``report.html`` (and ``pareto.png`` where accuracies exist) for ``rows``, front already marked."""
    chart = draw_pareto(rows, folder) if any(row.on_front is not None for row in rows) else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["significant"] = _significant
    ordered = sorted(rows, key=lambda r: (-(r.top1 or 0), -r.throughput_img_per_s))
    page = environment.get_template("report.html.j2").render(
        rows=ordered, context=rows[0], chart=Markup(chart) if chart else None
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def _percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _significant(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 1.20, 12.3, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
