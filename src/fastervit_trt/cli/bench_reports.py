"""``fastervit-bench compare`` and ``check``: results in; what differs, or what fell behind a baseline, out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fastervit_trt.artifacts import new_file
from fastervit_trt.benchmarks.comparison.compare import Comparison, Difference, compare_records
from fastervit_trt.benchmarks.comparison.guard import Limits, check_records
from fastervit_trt.benchmarks.comparison.pairing import SPEEDS
from fastervit_trt.benchmarks.records import read_records
from fastervit_trt.benchmarks.rows import METRICS
from fastervit_trt.console import console, say, warn
from fastervit_trt.errors import FasterViTError

__all__ = ["check_command", "compare_command", "parse_points", "parse_share"]

_FELL = 1  # exit code; 2 is bad input
_SPOKEN: dict[str, Callable[[float], str]] = {
    **{speed.name: speed.spoken for speed in SPEEDS},
    **dict.fromkeys(METRICS.values(), "{:.2f} %".format),
}


def compare_command(
    first: Annotated[Path, typer.Argument(help="Result folder of fastervit-bench, or its rows.json or rows.csv.")],
    second: Annotated[Path, typer.Argument(help="The run to compare with it.")],
    least: Annotated[str, typer.Option(help="Times that differ by less are not reported (2% or 0.02).")] = "2%",
    across_devices: Annotated[
        bool, typer.Option("--across-devices", help="Compare times of different devices, too.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the comparison to this file, too.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Print what differs between two runs beyond chance, worst first; always exit code 0."""
    found = compare_records(
        read_records(first), read_records(second), least=parse_share(least, "--least"), across_devices=across_devices
    )
    if json_file is not None:
        with new_file(json_file, overwrite=overwrite) as file:
            file.write_text(json.dumps({**asdict(found), "not_different": found.not_different}, indent=1) + "\n")
    _print_comparison(found)


def check_command(
    results: Annotated[Path, typer.Argument(help="Result folder of fastervit-bench, or its rows.json or rows.csv.")],
    baseline: Annotated[Path, typer.Option(help="What it is judged by: as for the results.")],
    max_regression: Annotated[str, typer.Option(help="How much speed a row may lose (5% or 0.05).")] = "5%",
    max_accuracy_drop: Annotated[
        str | None, typer.Option(help="Points of accuracy a row may lose on the same images (0.5); not judged without.")
    ] = None,
    relative_to: Annotated[
        str | None,
        typer.Option(help="What speed is relative to: a backend, or median; torch by default, median without it."),
    ] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Compare speeds themselves: same device only, drift included.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Rows of the baseline may be missing or fail.")
    ] = False,
) -> None:
    """Exit with 1 and the rows that fell behind the baseline, or with 0; 2 if it cannot be judged."""
    if absolute and relative_to is not None:
        raise FasterViTError("--absolute and --relative-to exclude each other; give one of them")
    points = None if max_accuracy_drop is None else parse_points(max_accuracy_drop, "--max-accuracy-drop")
    verdict = check_records(
        read_records(results),
        read_records(baseline),
        Limits(parse_share(max_regression, "--max-regression"), points),
        relative_to=relative_to,
        absolute=absolute,
        allow_missing=allow_missing,
    )
    for line in (*verdict.cautions, *(f"{line}; not beyond noise" for line in verdict.doubtful)):
        warn(line)
    lines = (*verdict.falls, *verdict.missing)
    for line in lines:
        say(line)
    if lines:
        say(f"{len(lines)} failed; judged: {verdict.summary or 'nothing'}")
        raise typer.Exit(_FELL)
    say(f"passed: {verdict.summary}")


def parse_share(text: str, option: str) -> float:
    """``5%`` or ``0.05`` as 0.05.

    Raises:
        FasterViTError: no number, or none from 0 to below 1.
    """
    percent = text.strip().endswith("%")
    value = _number(text.strip().removesuffix("%")) / (100 if percent else 1)
    if not 0 <= value < 1:
        raise FasterViTError(f"{option} is '{text}'; write a share below all of it, as 5% or 0.05")
    return value


def parse_points(text: str, option: str) -> float:
    """``0.5`` as half a percentage point.

    Raises:
        FasterViTError: no number, or none from 0 to 100.
    """
    value = _number(text)
    if not 0 <= value <= 100:
        raise FasterViTError(f"{option} is '{text}'; write percentage points of accuracy, as 0.5")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # is in no range


def _print_comparison(found: Comparison) -> None:
    if found.differences:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("condition", "metric"):
            table.add_column(column, overflow="fold")
        for column in ("first", "second", "change", "95 % interval", "p"):
            table.add_column(column, justify="right")
        table.add_column("by", overflow="fold")
        for difference in found.differences:
            table.add_row(*_cells(difference), style="red" if difference.worse else "green")
        console.print(table)
    for line in found.context:
        say(f"changed: {line}")
    alone = f"{len(found.only_before)} in the first only, {len(found.only_after)} in the second only"
    say(
        f"{found.pairs} conditions in both, {alone}; {len(found.differences)} differences; "
        f"{found.compared} comparisons, {found.not_different} without a difference"
    )
    for reason, count in found.not_comparable.items():
        say(f"not compared: {count} × {reason}")


def _cells(found: Difference) -> tuple[str, ...]:
    change = interval = ""
    if found.change is not None:
        scale, digits, unit = (1, 2, " points") if found.metric in METRICS.values() else (100, 1, " %")
        change = f"{scale * found.change:+.{digits}f}{unit}"
        if found.low is not None and found.high is not None:
            interval = f"{scale * found.low:+.{digits}f} to {scale * found.high:+.{digits}f}"
    p = "" if found.p is None else "<0.0001" if found.p < 1e-4 else f"{found.p:.4f}"
    values = (_value(found, found.before), _value(found, found.after))
    basis = "; ".join(filter(None, (found.basis, found.note)))
    return (found.condition, found.metric, *values, change, interval, p, basis)


def _value(found: Difference, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return _SPOKEN[found.metric](value)
