"""A plan in, a result folder out: measured, explained, reported; or several result folders in, one report out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastervit_trt.artifacts import new_folder
from fastervit_trt.benchmarks.examples import EXAMPLES, copy_examples
from fastervit_trt.benchmarks.records import Record, read_records
from fastervit_trt.benchmarks.report import DEFAULT_TITLE, write_report
from fastervit_trt.benchmarks.rows import ROWS_NAME, Condition, several_exports, write_rows
from fastervit_trt.benchmarks.sweep.plan import Plan
from fastervit_trt.benchmarks.sweep.run import run_sweep
from fastervit_trt.console import say, step
from fastervit_trt.errors import FasterViTError

__all__ = ["DEFAULT_OUTPUT", "measure_and_report", "merge_reports"]

DEFAULT_OUTPUT = Path("fastervit-report")


def measure_and_report(
    plan: Plan, output: Path, *, resume: bool = False, retry: bool = False, overwrite: bool = False
) -> list[Record]:
    """Carry out ``plan`` into ``output``: cells, rows, ``pareto.png``, ``report.html`` and ``summary.md``.

    Raises:
        FasterViTError: the plan is impossible, ``output`` is not free, or not one cell could be measured.
    """
    records = run_sweep(plan, output, resume=resume, retry=retry, overwrite=overwrite)
    with step("drawing the report"):
        write_report(records, output)
    if not any(record.row.measured for record in records):
        first = records[0].row
        raise FasterViTError(
            f"none of {len(records)} cells could be measured; {first.label} on {first.backend}: {first.reason} "
            f"(all reasons are in '{output / ROWS_NAME}')"
        )
    return records


def merge_reports(
    results: Sequence[Path],
    output: Path,
    *,
    title: str = DEFAULT_TITLE,
    published: bool = True,
    overwrite: bool = False,
) -> list[Record]:
    """One report of ``results``, folders or rows files of any machines; of a cell on a device the newest.

    Raises:
        FasterViTError: nothing there, damaged, of a newer schema, or ``output`` is not free.
    """
    runs = [read_records(path) for path in results]
    found = [record for run in runs for record in run]
    twins = {variant for run in runs for variant in several_exports(record.row for record in run)}
    newest: dict[tuple[Condition, str, str, str | None, str], Record] = {}
    for record in sorted(found, key=lambda record: record.row.timestamp_utc):
        row = record.row
        export = row.export if row.variant in twins else ""
        key = (row.condition, row.machine, row.device or row.cpu, row.dataset, export)
        newest.pop(key, None)
        newest[key] = record
    records = list(newest.values())
    if len(records) < len(found):
        say(f"{len(found) - len(records)} of {len(found)} rows were measured again later and are left out")
    with new_folder(output, overwrite=overwrite, marker=ROWS_NAME) as folder:
        write_rows([record.row for record in records], folder)
        copy_examples(results, folder / EXAMPLES)
        write_report(records, folder, title=title, published=published)
    return records
