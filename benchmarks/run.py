"""Export folders in, a report folder out: rows, Pareto picture, HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastervit_trt.artifacts import new_folder
from fastervit_trt.benchmarks.measure import measure, open_subject
from fastervit_trt.benchmarks.pareto import mark_front
from fastervit_trt.benchmarks.report import write_report
from fastervit_trt.benchmarks.rows import ROWS_NAME, BenchmarkRow, write_rows
from fastervit_trt.benchmarks.slower import explain_slow_rows
from fastervit_trt.console import step
from fastervit_trt.models.datasets import open_dataset

__all__ = ["bench_exports"]


def bench_exports(
    folders: Sequence[Path],
    data: str | None,
    output: Path,
    *,
    batch: int,
    seconds: float,
    threads: int,
    overwrite: bool = False,
) -> list[BenchmarkRow]:
    """Measure export folders and write rows.csv, rows.json, pareto.png and report.html into ``output``.

    Raises:
        FasterViTError: anything the user can act on; ``output`` is written whole or not at all.
    """
    dataset = open_dataset(data) if data else None
    with new_folder(output, overwrite=overwrite, marker=ROWS_NAME) as folder:
        with step(f"checking and loading {len(folders)} exports"):
            subjects = [open_subject(path, threads) for path in dict.fromkeys(folders)]
        rows = mark_front(measure(subjects, dataset, batch, seconds, threads))
        with step("looking for reasons where 8 bits are not faster"):
            rows = explain_slow_rows(rows, [subject.folder for subject in subjects])
        write_rows(rows, folder)
        with step("drawing the report"):
            write_report(rows, folder)
    return rows
