"""Cells in, the text of ``report.html`` out: one page that needs nothing else, opened from disk or sent by mail."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fastervit_trt.benchmarks.examples import Example
from fastervit_trt.benchmarks.report import text
from fastervit_trt.benchmarks.report.beside import Beside
from fastervit_trt.benchmarks.report.cells import AXES, Cell, charted_groups
from fastervit_trt.benchmarks.report.chart import chart_data, json_for_script
from fastervit_trt.benchmarks.report.look import DARK, DARK_PAGE, LIGHT, LIGHT_PAGE, SIGNS, Looks, short_name
from fastervit_trt.benchmarks.report.protocol import machines, protocol
from fastervit_trt.benchmarks.report.spark import sparkline
from fastervit_trt.benchmarks.timing import is_stable

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_STATES = {"front": "front", "near": "within uncertainty", "off": "dominated", "none": "not compared"}


@dataclass(frozen=True)
class _Filter:
    """A way to narrow the page down: the column's name and the values there are."""

    name: str
    values: tuple[str, ...]


def render_page(
    cells: Sequence[Cell],
    looks: Looks,
    published: Sequence[Beside],
    *,
    title: str,
    picture: bytes | None,
    examples: Sequence[tuple[Example, bytes]] = (),
) -> str:
    """The page.

    Args:
        picture: what readers without JavaScript see in place of the chart.
        examples: pictures of the data with what was found in them, and their PNGs.
    """
    measured = [cell for cell in cells if cell.row.measured]
    environment = _environment()
    data = chart_data(cells, looks, published)
    return environment.get_template("page.html.j2").render(
        title=title,
        cells=cells,
        measured=measured,
        unmeasured=[cell for cell in cells if not cell.row.measured],
        tallies=_tallies(cells),
        where=_where(measured),
        groups=list(charted_groups(cells)),
        filters=_filters(measured),
        looks=looks,
        shapes={name: looks.shape(name).path for name in looks.precisions},
        axes=AXES,
        data=json_for_script(data),
        has_published=bool(data["published"]),
        picture=Markup(base64.b64encode(picture).decode()) if picture else None,
        protocol=protocol([cell.row for cell in measured]),
        machines=machines([cell.row for cell in measured]),
        several=len({cell.group for cell in measured}) > 1,
        metrics=list(dict.fromkeys(cell.row.metric for cell in measured if cell.row.score is not None)) or ["top-1"],
        examples=_examples(examples, looks),
        eight_bits=[cell for cell in measured if cell.row.slower_because or cell.row.engines_against_8_bits],
        palette=_palette(),
        style=_inline("page.css"),
        scripts=[_inline(name) for name in ("chart.js", "page.js")],
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "percent": text.percent,
        "significant": text.significant,
        "signed": text.signed,
        "interval": text.interval,
        "sqnr": text.sqnr,
        "facts": text.facts,
        "caveats": text.caveats,
        "verdict": text.verdict,
        "label": text.full_label,
        "short": short_name,
        "spark": sparkline,
        "state": _STATES.__getitem__,
        "wild": _wild,
    }
    environment.filters.update(filters)
    environment.globals["signs"] = SIGNS
    return environment


def _examples(
    examples: Sequence[tuple[Example, bytes]], looks: Looks
) -> list[tuple[str, list[tuple[Example, Markup]]]]:
    """By export and backend, with a title; each picture as it stands in the page."""
    found: dict[str, list[tuple[Example, Markup]]] = {}
    for one, png in examples:
        export = f" ({one.export})" if (one.model, one.precision, one.resolution) in looks.exports else ""
        title = f"{short_name(one.model)} {one.precision}{export}, {one.resolution}, on {one.backend}"
        found.setdefault(title, []).append((one, Markup(base64.b64encode(png).decode())))
    return list(found.items())


def _tallies(cells: Sequence[Cell]) -> list[tuple[int, str]]:
    status = Counter(cell.row.status for cell in cells)
    front = sum(cell.state("throughput") == "front" for cell in cells)
    doubtful = sum(bool(cell.doubt) for cell in cells)
    counts = [
        (status["ok"] + status["unstable"], "measured"),
        (front, "on the front"),
        (doubtful, "with their time in doubt"),
        (status["failed"], "failed"),
        (status["skipped"], "skipped"),
    ]
    return [(count, what) for count, what in counts if count or what == "measured"]


def _where(measured: Sequence[Cell]) -> str:
    """Devices, images and days of the whole report."""
    devices = dict.fromkeys(cell.row.device for cell in measured if cell.row.device)
    images = dict.fromkeys(f"{cell.row.dataset} ({cell.row.images} images)" for cell in measured if cell.row.dataset)
    days = sorted(cell.row.timestamp_utc[:10] for cell in measured if cell.row.timestamp_utc)
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
    return " · ".join(part for part in (", ".join(devices), ", ".join(images), when) if part)


def _filters(measured: Sequence[Cell]) -> list[_Filter]:
    """Only what has a choice."""
    ways: dict[str, Callable[[Cell], str]] = {
        "model": lambda cell: cell.row.model,
        "precision": lambda cell: cell.row.precision,
        "backend": lambda cell: cell.row.backend,
        "task": lambda cell: cell.row.task,
        "resolution": lambda cell: cell.row.resolution,
        "device": lambda cell: cell.row.device,
        "batch": lambda cell: str(cell.row.batch),
    }
    found = [_Filter(name, _distinct(map(value, measured), numeric=name == "batch")) for name, value in ways.items()]
    return [one for one in found if len(one.values) > 1]


def _distinct(values: Iterable[str], *, numeric: bool) -> tuple[str, ...]:
    return tuple(sorted(set(values), key=partial(int) if numeric else None))


def _wild(drift: float | None) -> bool:
    return drift is not None and not is_stable(drift)


def _palette() -> Markup:
    def colours(page: str, models: Sequence[str]) -> str:
        return "".join([f"--page:{page};", *(f"--model-{i}:{colour};" for i, colour in enumerate(models))])

    light, dark = colours(LIGHT_PAGE, LIGHT), colours(DARK_PAGE, DARK)
    return Markup(
        f":root{{{light}}}@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}"
    )


def _inline(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text())
