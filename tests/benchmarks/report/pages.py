"""Pages to look at, and what tests do on them as readers would."""

from __future__ import annotations

from pathlib import Path

from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.report.beside import besides
from fastervit_trt.benchmarks.report.cells import benchmark_of, cells_of
from fastervit_trt.benchmarks.report.look import Looks
from fastervit_trt.benchmarks.report.page import render_page
from tests.benchmarks.report.browser import Browser


def written(records: list[Record], folder: Path, *, title: str = "title", published: bool = False) -> Path:
    """The page alone: pictures take their time."""
    cells, looks = cells_of(records), Looks.of(one.row for one in records)
    others = besides(benchmark_of(cell.row) for cell in cells) if published else []
    path = folder / "report.html"
    path.write_text(render_page(cells, looks, others, title=title, picture=None))
    return path


def points(browser: Browser) -> list[str]:
    return sorted(browser.run("[...document.querySelectorAll('#chart .point')].map(p => p.dataset.item)"))


def choose(browser: Browser, selector: str, value: str | None = None) -> None:
    """Set a select, or check a radio, as a reader would."""
    change = "e.dispatchEvent(new Event('change', {bubbles: true}))"
    what = "e.checked = true" if value is None else f"e.value = '{value}'"
    browser.run(f"(e => {{ {what}; {change} }})(document.querySelector('{selector}'))")


def column(browser: Browser, number: int) -> list[str | None]:
    """``data-value`` of the visible cells of a column of the table, from top to bottom."""
    rows = "[...document.querySelectorAll('#cells tbody tr')].filter(r => r.checkVisibility())"
    return list(browser.run(f"{rows}.map(r => r.children[{number}].dataset.value ?? null)"))


def header(browser: Browser, text: str) -> int:
    heads = "[...document.querySelectorAll('#cells thead th')].map(h => h.textContent.trim())"
    return int(browser.run(f"{heads}.indexOf('{text}')"))
