"""A browser, and the page of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.report import write_report
from tests.benchmarks.example_rows import sweep
from tests.benchmarks.report.browser import CHROMIUM, Browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One per file of tests; they are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is here")
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sweep(), tmp_path_factory.mktemp("report")).page
