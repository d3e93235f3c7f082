"""Rows of a GPU run in, what a person reads out: ``python -m fastervit_trt.benchmarks.gpu.report FOLDER``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from fastervit_trt.benchmarks.gpu.cases import Ceilings
from fastervit_trt.benchmarks.gpu.compare import BASELINE
from fastervit_trt.benchmarks.gpu.goals import outcomes
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED, STOPPED, WRONG, GpuRow, Result, read_rows
from fastervit_trt.benchmarks.gpu.worklist import CASES, cases_of
from fastervit_trt.benchmarks.rows import ROWS_NAME
from fastervit_trt.console import command_app, console, run_command, say

__all__ = ["line_of", "main", "print_plan", "print_report"]

app = command_app()

_MOST_PROBLEMS = 20
_MOST_CASES = 12  # of a stage, in the table at the end
_NOTE = 110  # characters
_PEERS = 4  # named in a line


def line_of(row: Result) -> str:
    """A row in one line, as progress."""
    where = " ".join(
        text for text in (row.stage, row.case, f"batch {row.batch}" if row.batch else "", row.peer) if text
    )
    if row.status != OK:
        return f"{where}: {row.status}, {row.note}"
    if row.time_us is None:
        value = "" if row.value is None else f"{row.value:.4g} {row.unit}".rstrip()
        return f"{where}: {'; '.join(text for text in (value, row.note) if text) or OK}"
    parts = [
        f"{row.time_us:.2f} us ({row.time_p20_us:.2f}..{row.time_p80_us:.2f})"
        if row.time_p20_us
        else f"{row.time_us:.2f} us"
    ]
    parts += [f"x{row.time_over_ours:.2f} of ours"] if row.time_over_ours else []
    parts += [f"{100 * row.share_of_floor:.0f} % of floor"] if row.share_of_floor else []
    parts += [f"{row.throughput_img_per_s:.0f} img/s"] if row.throughput_img_per_s else []
    parts += [f"{row.value:.4g} {row.unit}"] if row.value is not None else []
    return f"{where}: {', '.join(parts)}"


def print_report(rows: Sequence[GpuRow]) -> None:
    """What was measured, stage by stage, then goals; short, as it is the last that a log keeps."""
    if not rows:
        say("no rows")
        return
    _print_problems(rows)
    _print_stages(rows)
    for stage in CASES:
        _print_comparison(stage, [row for row in rows if row.stage == stage and row.case])
    _print_goals(rows)
    first = rows[0]
    say(
        f"{first.gpu or 'no GPU'}, driver {first.driver}, CUDA {first.cuda}, torch {first.torch}, triton {first.triton}"
    )


def print_plan(stages: Iterable[str], models: Sequence[str], batches: Sequence[int], ceilings: Ceilings) -> None:
    """What would be measured, and its floors on such a GPU."""
    table = _table("stage", "case", "batch", "shape", "MB", "GFLOP", "floor us", "bound")
    for stage in stages:
        for case in cases_of(stage, models, batches) if stage in CASES else []:
            if reason := case.why_not:
                table.add_row(stage, case.name, str(case.batch), case.shape, "", "", "", escape(reason))
                continue
            floor = ceilings.floor_us(case.bytes, case.flop)
            bound = "memory" if ceilings.floor_us(case.bytes, 0) == floor else "arithmetic"
            sizes = (f"{case.bytes / 1e6:.1f}", f"{case.flop / 1e9:.2f}", f"{floor:.1f}", bound)
            table.add_row(stage, case.name, str(case.batch), case.shape, *sizes)
    console.print(table)
    say(f"floors at {ceilings.copy_gb_per_s:.0f} GB/s copied and {ceilings.matmul_tflop_per_s:.0f} TFLOP/s in fp16")


def _print_stages(rows: Sequence[GpuRow]) -> None:
    table = _table("stage", OK, SKIPPED, WRONG, FAILED, STOPPED)
    for stage in dict.fromkeys(row.stage for row in rows):
        statuses = [row.status for row in rows if row.stage == stage]
        table.add_row(stage, *(str(statuses.count(status)) for status in (OK, SKIPPED, WRONG, FAILED, STOPPED)))
    console.print(table)
    for row in rows:
        if row.unit in ("GB/s", "TFLOP/s") or (row.stage == "build" and row.case == "library"):
            say(line_of(row))


def _print_problems(rows: Sequence[GpuRow]) -> None:
    of_stages = [row for row in rows if not row.case]
    others = [row for row in rows if row.case and row.status in (WRONG, FAILED, STOPPED)]
    for row in [*of_stages, *others][:_MOST_PROBLEMS]:
        say(line_of(row)[: 2 * _NOTE])
    if len(of_stages) + len(others) > _MOST_PROBLEMS:
        say(f"and {len(of_stages) + len(others) - _MOST_PROBLEMS} more in {ROWS_NAME}")


def _print_comparison(stage: str, rows: Sequence[GpuRow]) -> None:
    """A line per case: our time, and how many times longer each peer takes."""
    timed = [row for row in rows if row.status == OK and row.time_us]
    cases = list(dict.fromkeys((row.case, row.batch) for row in timed))
    if not cases:
        return
    table = _table(stage, "batch", "ours us", "of floor", "of copy", "img/s", "others, over ours")
    for case, batch in cases[:_MOST_CASES]:
        of_case = [row for row in timed if (row.case, row.batch) == (case, batch)]
        ours = next((row for row in of_case if row.peer == BASELINE), None)
        others = sorted((row for row in of_case if row is not ours), key=lambda row: row.time_us or 0)
        ratios = [f"{row.peer} {_ratio(row)}" for row in others]
        more = f", {len(ratios) - _PEERS} more" if len(ratios) > _PEERS else ""
        table.add_row(case, str(batch), *_cells(ours), ", ".join(ratios[:_PEERS]) + more)
    console.print(table)
    if len(cases) > _MOST_CASES:
        say(f"and {len(cases) - _MOST_CASES} more cases in {ROWS_NAME}")


def _cells(ours: GpuRow | None) -> tuple[str, str, str, str]:
    if ours is None:
        return "", "", "", ""
    images = "" if ours.throughput_img_per_s is None else f"{ours.throughput_img_per_s:.0f}"
    return f"{ours.time_us:.1f}", _percent(ours.share_of_floor), _percent(ours.share_of_copy), images


def _ratio(row: GpuRow) -> str:
    return f"{row.time_us:.1f} us" if row.time_over_ours is None else f"{row.time_over_ours:.2f}"


def _print_goals(rows: Sequence[GpuRow]) -> None:
    table = _table("goal", "at least", "measured", "", "by")
    for outcome in outcomes(rows):
        measured = "" if outcome.measured is None else f"{outcome.measured:.2f}"
        verdict = "" if outcome.measured is None else "met" if outcome.met else "missed"
        table.add_row(outcome.goal, f"{outcome.at_least:g}", measured, verdict, outcome.where)
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i < len(columns) - 1)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


@app.command()
def report_command(folder: Annotated[Path, typer.Argument(help="Of a GPU run.")]) -> None:
    """Print the tables of a folder of rows."""
    print_report(read_rows(folder / ROWS_NAME))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.gpu.report``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
