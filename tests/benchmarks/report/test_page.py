"""The page in a browser: what it shows, and what a reader can do with it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.report.cells import AXES, cells_of, charted_groups
from tests.benchmarks.example_rows import GPU, sweep
from tests.benchmarks.report.browser import Browser
from tests.benchmarks.report.pages import choose, column, header, points

LABELS = "[...document.querySelectorAll('#chart .point')].map(p => p.getAttribute('aria-label'))"
BELOW = (("#chart", "bottom"), ("#panel", "top"))
PHONE = {"width": 360, "height": 800, "touch": True}


def test_every_compared_cell_is_a_point_on_its_chart(browser: Browser, page: Path) -> None:
    browser.open(page)
    groups = charted_groups(cells_of(sweep()))
    assert len(groups) == 3
    for number, (group, members) in enumerate(groups.items()):
        choose(browser, "#group", str(number))
        assert browser.run("document.querySelector('#group').selectedOptions[0].textContent") == group.title
        for axis in AXES:
            choose(browser, f"input[value={axis}]")
            assert points(browser) == sorted(cell.key for cell in members)
            states = "[...document.querySelectorAll('#chart .point')].map(p => [p.dataset.item, p.classList[2]])"
            assert dict(browser.run(states)) == {cell.key: cell.state(axis) for cell in members}
        choose(browser, "input[value=throughput]")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_positions_are_the_figures(browser: Browser, page: Path) -> None:
    """On the logarithmic axis equal ratios are equal distances, and the front's line ends in its corners."""
    browser.open(page)
    spots = {
        key: tuple(map(float, re.findall(r"[-\d.]+", where)))
        for key, where in browser.run(
            "[...document.querySelectorAll('#chart .point')].map(p => [p.dataset.item, "
            "p.querySelector('g').getAttribute('transform')])"
        )
    }
    members = {cell.key: cell for cell in next(iter(charted_groups(cells_of(sweep())).values()))}
    figures = {k: (math.log(c.row.throughput_img_per_s or 1), 100 * (c.row.top1 or 0)) for k, c in members.items()}
    (a, b), worst = sorted(figures, key=lambda k: figures[k])[:: len(figures) - 1], 0.0
    for axis in (0, 1):
        slope = (spots[b][axis] - spots[a][axis]) / (figures[b][axis] - figures[a][axis])
        assert (slope > 0) == (axis == 0)
        for key, figure in figures.items():
            worst = max(worst, abs(spots[a][axis] + slope * (figure[axis] - figures[a][axis]) - spots[key][axis]))
    assert worst < 0.01
    line = list(
        map(float, re.findall(r"[\d.]+", browser.run("document.querySelector('.front-line').getAttribute('d')")))
    )
    front = sorted(spots[k] for k, c in members.items() if c.state("throughput") == "front" and not c.doubt)
    assert line[:2] == pytest.approx(front[0])
    assert line[-1] == pytest.approx(front[-1][0])


def test_a_point_explains_itself_when_pointed_at_and_stays_when_clicked(browser: Browser, page: Path) -> None:
    browser.open(page)
    choose(browser, "#group", "2")
    cells = {cell.key: cell for cell in cells_of(sweep())}
    cell = next(c for c in cells.values() if c.row.flags)
    panel = "document.querySelector('#panel').innerText"
    assert "Point at a mark" in browser.run(panel)
    mark = f"[data-item={cell.key}] .hit"
    browser.hover(mark)
    said = browser.run(panel)
    for text in (
        "fp8 on tensorrt",
        "batch 8",
        "p99",
        cell.row.audit,
        cell.row.flags,
        "SQNR",
        "99.80 %" * 0,
        "97.8–99.5",
    ):
        assert text in said, text
    assert "top-1 99.00 %" in browser.run("document.querySelector('#tip').innerText")
    browser.hover("h1")
    assert "Point at a mark" in browser.run(panel)
    assert not browser.run("document.querySelector('#tip').checkVisibility()")
    browser.click(mark)
    browser.hover("h1")
    assert cell.row.audit in browser.run(panel)
    assert browser.run("document.querySelectorAll('tr.chosen').length") == 2  # in both tables
    browser.press("Escape")
    assert "Point at a mark" in browser.run(panel)
    dominated = next(
        c for c in cells.values() if c.row.device == GPU and c.state("throughput") == "off" and c.row.batch == 8
    )
    browser.hover(f"[data-item={dominated.key}] .hit")
    by = dominated.standing["throughput"].dominated_by
    assert by is not None
    assert f"by throughput by {by.model.removeprefix('faster_vit_')} {by.precision} on {by.backend}" in browser.run(
        panel
    )
    assert "by latency" not in browser.run(panel)


def test_the_keyboard_alone_reaches_every_point(browser: Browser, page: Path) -> None:
    browser.open(page)
    focus = "document.activeElement.dataset.item ?? null"
    browser.run("document.querySelector('input[name=axis]').focus()")
    browser.press("Tab")
    seen = [browser.run(focus)]
    for _ in points(browser)[1:]:
        browser.press("ArrowRight")
        seen.append(browser.run(focus))
    assert sorted(seen) == points(browser)
    browser.press("Enter")
    assert browser.run(focus) == seen[-1]
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert browser.run("document.querySelector('#panel strong').textContent") == "faster_vit_digits_s"
    browser.press("Escape")
    assert browser.run("document.querySelectorAll('[aria-pressed=true]').length") == 0


def test_headers_sort_and_unknown_values_stay_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    number = header(browser, "images/s")
    before = column(browser, number)
    head = f"#cells thead th:nth-child({number + 1})"
    for order in ("descending", "ascending"):
        browser.click(f"{head} button")
        assert browser.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == order
        values = [float(value) for value in column(browser, number) if value]
        assert values == sorted(values, reverse=order == "descending")
        assert len(values) == len(before)
    browser.run("document.querySelector('#cells thead th button').focus()")
    browser.press("Enter")
    assert [str(v) for v in column(browser, 0)] == sorted(str(v) for v in column(browser, 0))
    assert (
        browser.run("document.querySelectorAll('#cells [aria-sort=ascending], #cells [aria-sort=descending]').length")
        == 1
    )
    energy = "#stability thead th:nth-child({})"
    heads = browser.run("[...document.querySelectorAll('#stability thead th')].map(h => h.textContent.trim())")
    for _ in range(2):
        browser.click(energy.format(heads.index("W") + 1) + " button")
        rows = "[...document.querySelectorAll('#stability tbody tr')]"
        watts = browser.run(f"{rows}.map(r => r.children[{heads.index('W')}].dataset.value ?? null)")
        assert watts == ["214.0"] * 19 + [None] * 14


def test_filters_narrow_tables_and_chart(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("#filters summary")
    browser.click("#filters [data-filter=precision] input[value=fp32] + span")
    rows = [cell.row for cell in cells_of(sweep()) if cell.row.measured]
    left = [r for r in rows if r.precision != "fp32"]
    assert len(column(browser, 0)) == len(left)
    assert f"{len(left)} of {len(rows)} cells" in browser.run("document.querySelector('#count').textContent")
    assert not [label for label in browser.run(LABELS) if " fp32" in label]
    browser.click("#filters [data-filter=device] input[value='AMD EPYC'] + span")
    assert "Example GPU" in browser.run("document.querySelector('#group').selectedOptions[0].textContent")
    assert points(browser)
    browser.click("#filters [data-filter=batch] input[value='8'] + span")
    browser.click("#filters [data-filter=batch] input[value='1'] + span")
    assert column(browser, 0) == points(browser) == []
    browser.click("#all")
    assert len(column(browser, 0)) == len(rows)
    assert browser.complaints() == []


def test_a_name_in_the_table_shows_its_point_and_where_it_has_none_its_entry(browser: Browser, page: Path) -> None:
    browser.open(page)
    cells = cells_of(sweep())
    gpu = next(cell for cell in cells if cell.row.device == GPU and cell.row.batch == 8)
    browser.click(f"#cells tr[data-cell={gpu.key}] a")
    assert browser.run("document.activeElement.dataset.item") == gpu.key
    assert browser.run("document.querySelector('#panel strong').textContent") == gpu.row.model
    emulated = next(cell for cell in cells if not cell.row.speed_is_meaningful)
    browser.click(f"#cells tr[data-cell={emulated.key}] a")
    assert browser.run(f"document.querySelector('#{emulated.key}').open")


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_sticks_out(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark, **PHONE)  # type: ignore[arg-type]
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.click("#chart .point .hit")
    assert browser.run("document.querySelectorAll('#chart .chosen').length") == 1
    assert browser.run("document.documentElement.scrollWidth") <= 360
    wide = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, #tip') && "
        "getComputedStyle(e).position !== 'absolute' && e.getBoundingClientRect().right > 360.5)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.run(wide) == []
    chart, panel = (browser.run(f"document.querySelector('{s}').getBoundingClientRect().{e}") for s, e in BELOW)
    assert panel >= chart
    assert browser.complaints() == []


def test_the_theme_is_the_systems_until_it_is_chosen(browser: Browser, page: Path) -> None:
    def shades() -> tuple[float, float]:
        """Of the page and of its text, 0 to 255."""
        style = "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
        page_colour, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in browser.run(style))
        return page_colour, ink

    def is_dark() -> bool:
        page_colour, ink = shades()
        assert abs(page_colour - ink) > 190
        return page_colour < ink

    browser.open(page, dark=True)
    assert is_dark()
    browser.click("#theme")
    assert not is_dark()
    assert browser.run("document.querySelector('#theme').textContent") == "theme: light"
    browser.open(page)
    assert not is_dark()
    browser.click("#theme")
    assert is_dark()
    browser.click("#theme")
    assert not is_dark()
