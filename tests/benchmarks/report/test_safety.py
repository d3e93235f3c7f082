"""The page is whole in itself: nothing in rows runs, nothing leaves it, and it opens without scripts, too."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import BenchmarkRow
from tests.benchmarks.example_rows import record, row
from tests.benchmarks.report.browser import Browser
from tests.benchmarks.report.pages import choose, written

NASTY = "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>\"'&\u2028"


def test_markup_in_rows_is_inert(browser: Browser, tmp_path: Path) -> None:
    texts: dict[str, Any] = {f.name: NASTY for f in dataclasses.fields(BenchmarkRow) if f.type in ("str", "str | None")}
    texts |= {"device_kind": "gpu", "throttle": NASTY}
    texts |= {"figures": json.dumps({NASTY: 0.5}), "score": 0.9}
    rows = [dataclasses.replace(row("x", 0.9, 100 + i), **{**texts, "model": f"{i}{NASTY}"}) for i in range(2)]
    failed = dataclasses.replace(row("x", None, 1), **{**texts, "status": "failed", "dataset": None})
    hostile = written([*map(record, rows), Record(failed)], tmp_path, title=NASTY)
    browser.open(hostile)
    browser.click("#chart .point .hit")
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("window.ran ?? null") is None
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelectorAll('#chart .point').length") == 2
    assert browser.run("document.querySelector('h1').textContent") == NASTY
    assert browser.run("document.querySelector('#panel strong').textContent").endswith(NASTY[1:])
    assert browser.complaints() == []
    assert browser.requests() == [hostile.as_uri()]


class Outward(HTMLParser):
    """Attributes that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href") and value:
                self.found.append((name, value[:40]))


def test_the_page_refers_to_nothing_outside_itself(page: Path) -> None:
    text = page.read_text()
    parser = Outward()
    parser.feed(text)
    assert parser.found
    assert all(v.startswith("#") or v.startswith("data:image/png") for _, v in parser.found), parser.found
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", text)
    assert "default-src 'none'" in text


def test_without_scripts_there_are_the_table_and_a_picture(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        tree = browser.call("DOM.getDocument", depth=-1)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    names: list[str] = []

    def walk(node: dict[str, Any]) -> None:
        names.append(node["localName"])
        for child in node.get("children", []):
            walk(child)

    walk(tree["root"])
    assert names.count("img") == 1
    assert names.count("tr") > 33


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "nothing was measured"),
        ([Record(row("x", None, 1, status="skipped", reason="no driver"))], "No cell was measured"),
        ([Record(row("x", None, 50))], "no front to draw"),
        ([Record(row("x", 0.5, 50, latency_p50_ms=None))], "on the front"),
    ],
)
def test_little_to_show_is_shown(browser: Browser, tmp_path: Path, records: list[Record], said: str) -> None:
    browser.open(written(records, tmp_path))
    assert said in browser.run("document.body.innerText")
    assert browser.complaints() == []


def test_published_figures_are_drawn_beside_imagenet_only(browser: Browser, tmp_path: Path, page: Path) -> None:
    imagenet = [Record(row("faster_vit_0_224", 0.82, 5000, dataset="val", images=50_000, batch=128))]
    digits = [Record(row("faster_vit_0_224", 0.82, 5000))]
    browser.open(written([*imagenet, *digits], tmp_path, published=True))
    count = "document.querySelectorAll('#chart .published').length"
    choose(browser, "#group", "0")
    assert browser.run(count) > 7
    label = "[...document.querySelectorAll('#chart .published')].map(p => p.getAttribute('aria-label')).join()"
    assert "FasterViT-0: another machine's figures: NVIDIA A100, batch 128, PyTorch" in browser.run(label)
    browser.click("#published")
    assert browser.run(count) == 0
    browser.click("#published")
    choose(browser, "input[value=latency]")
    assert browser.run(count) == 0
    choose(browser, "input[value=throughput]")
    choose(browser, "#group", "1")
    assert browser.run(count) == 0
    browser.open(written(imagenet, tmp_path))
    assert browser.run(count) == 0
    browser.open(page)
    assert browser.run("document.querySelector('#published')") is None
