"""Records in, ``pareto.png``, ``report.html`` and ``summary.md`` in a folder out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt.artifacts import new_file
from fastervit_trt.benchmarks.examples import EXAMPLES, read_examples
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.report.beside import besides
from fastervit_trt.benchmarks.report.cells import benchmark_of, cells_of
from fastervit_trt.benchmarks.report.look import Looks
from fastervit_trt.benchmarks.report.page import render_page
from fastervit_trt.benchmarks.report.picture import draw_picture
from fastervit_trt.benchmarks.report.summary import render_summary
from fastervit_trt.errors import FasterViTError

__all__ = ["DEFAULT_TITLE", "PAGE_NAME", "PICTURE_NAME", "SUMMARY_NAME", "ReportFiles", "write_report"]

PICTURE_NAME, PAGE_NAME, SUMMARY_NAME = "pareto.png", "report.html", "summary.md"
DEFAULT_TITLE = "FasterViT: accuracy against throughput"


@dataclass(frozen=True)
class ReportFiles:
    """What was written; no picture where no cell has both accuracy and throughput."""

    page: Path
    summary: Path
    picture: Path | None


def write_report(
    records: Sequence[Record], folder: Path, *, title: str = DEFAULT_TITLE, published: bool = True
) -> ReportFiles:
    """Write the report of ``records`` into ``folder``, over an earlier one; each file appears whole.

    Args:
        records: cells of one run or of several, also those that failed; none at all gives a page that says so.
        folder: is made if need be; nothing else in it is touched. Examples that were drawn into it become part of the
            page.
        title: heading of page and summary.
        published: draw published figures of other machines beside cells that were judged on the same public data.

    Raises:
        FasterViTError: the folder cannot be written.
    """
    cells = cells_of(records)
    looks = Looks.of(record.row for record in records)
    others = besides(benchmark_of(cell.row) for cell in cells) if published else []
    picture = draw_picture(cells, looks, others)
    examples = [(one, (folder / EXAMPLES / one.file).read_bytes()) for one in read_examples(folder / EXAMPLES)]
    page = render_page(cells, looks, others, title=title, picture=picture, examples=examples)
    summary = render_summary(cells, looks, title=title, picture=PICTURE_NAME if picture else None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if picture is None:
            (folder / PICTURE_NAME).unlink(missing_ok=True)  # of an earlier report; it would contradict the page
        else:
            _replace(folder / PICTURE_NAME, picture)
        _replace(folder / SUMMARY_NAME, summary.encode())
        _replace(folder / PAGE_NAME, page.encode())
    except OSError as error:
        raise FasterViTError(f"cannot write the report into '{folder}' ({error.strerror or error})") from error
    return ReportFiles(folder / PAGE_NAME, folder / SUMMARY_NAME, folder / PICTURE_NAME if picture else None)


def _replace(path: Path, content: bytes) -> None:
    with new_file(path, overwrite=True) as temporary:
        temporary.write_bytes(content)
