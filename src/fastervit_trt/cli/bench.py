"""``fastervit-bench``: export folders → accuracy and speed of each file → rows, Pareto front, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.run import bench_exports
from fastervit_trt.console import command_app, console, run_command, say
from fastervit_trt.host import usable_cpus

__all__ = ["main", "print_rows"]

app = command_app()


def print_rows(rows: Sequence[BenchmarkRow]) -> None:
    """The result table, most accurate first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "precision"):
        table.add_column(column)
    for column in ("top-1 %", "95 % interval", "= fp32 %", "img/s", "p50 ms", "p90", "p99", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("front")
    for row in sorted(rows, key=lambda r: (-(r.top1 or 0), -r.throughput_img_per_s)):
        interval = "" if row.top1_low is None else f"{100 * row.top1_low:.1f}-{100 * (row.top1_high or 0):.1f}"
        table.add_row(
            row.model,
            row.precision,
            "" if row.top1 is None else f"{100 * row.top1:.2f}",
            interval,
            "" if row.agreement_fp32 is None else f"{100 * row.agreement_fp32:.2f}",
            f"{row.throughput_img_per_s:.0f}" if row.speed_is_meaningful else "(emulated)",
            f"{row.latency_p50_ms:.2f}",
            f"{row.latency_p90_ms:.2f}",
            f"{row.latency_p99_ms:.2f}",
            f"{row.file_bytes / 1e6:.1f}",
            "yes" if row.on_front else "not compared" if row.on_front is None else "dominated",
        )
    console.print(table)
    for row in rows:
        if row.slower_because:
            say(f"{row.label}: {row.slower_because}")


@app.command()
def bench_command(
    exports: Annotated[list[Path], typer.Argument(help="Folders written by fastervit-export.")],
    data: Annotated[
        str | None,
        typer.Option(help="digits, or a folder with one sub-folder of images per class; speed only without."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch for throughput.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, help="Timed per export, for latency and throughput each.")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable ones by default.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows.csv, rows.json, pareto.png, report.html.")] = Path(
        "fastervit-report"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Measure exports on this CPU with ONNX Runtime: accuracy, agreement with PyTorch, latency, throughput."""
    rows = bench_exports(
        exports, data, output, batch=batch, seconds=seconds, threads=threads or usable_cpus(), overwrite=overwrite
    )
    print_rows(rows)
    say(f"report: {output / 'report.html'}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fastervit-bench``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
