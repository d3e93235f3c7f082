"""Cells in, the numbers that the page's chart is drawn from out: plain JSON, safe inside a script element."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from fastervit_trt.benchmarks.pareto import front_line, speed
from fastervit_trt.benchmarks.report.beside import Beside
from fastervit_trt.benchmarks.report.cells import AXES, Cell, benchmark_of, charted_groups
from fastervit_trt.benchmarks.report.look import SHAPES, SIGNS, Looks
from fastervit_trt.benchmarks.report.text import metric_title, percent, significant

__all__ = ["chart_data", "common_benchmark", "json_for_script"]

# What would end the script element or open another, and what ends a line in JavaScript but not in JSON.
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def chart_data(cells: Sequence[Cell], looks: Looks, published: Sequence[Beside]) -> dict[str, Any]:
    """Points, fronts and signs; accuracy in percent, speed in images/s and ms, each as low, middle and high."""
    groups = charted_groups(cells)
    numbers = {group: number for number, group in enumerate(groups)}
    benchmarks = {group: common_benchmark(members) for group, members in groups.items()}
    return {
        "groups": [
            {
                "title": group.title,
                "device": group.device,
                "metric": metric_title(group.metric),
                "benchmark": benchmarks[group],
                "line": {
                    axis: [(x, 100 * y) for x, y in front_line([cell.standing[axis] for cell in members], axis)]
                    for axis in AXES
                },
            }
            for group, members in groups.items()
        ],
        "points": [_point(cell, looks, numbers[cell.group]) for members in groups.values() for cell in members],
        "published": [_published(point) for point in published if point.benchmark in benchmarks.values()],
        "shapes": {name: shape.path for name, shape in SHAPES.items()} | {"": looks.shape("").path},
        "signs": SIGNS,
    }


def common_benchmark(members: Sequence[Cell]) -> str:
    """The public validation set that all of a group were judged on; "" if it is none."""
    (first, *others) = {benchmark_of(cell.row) for cell in members}
    return "" if others else first


def json_for_script(data: Any) -> Markup:
    """``data`` as JSON that no HTML parser takes for anything else."""
    return Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_UNSAFE))


def _point(cell: Cell, looks: Looks, group: int) -> dict[str, Any]:
    row = cell.row
    assert row.score is not None  # or it were no point
    low, high = (row.score if end is None else end for end in (row.score_low, row.score_high))
    return {
        "cell": cell.key,
        "group": group,
        "label": looks.label(row),
        "model": row.model,
        "precision": row.precision,
        "backend": row.backend,
        "device": row.device,
        "colour": looks.colour(row.model),
        "shape": row.precision if row.precision in SHAPES else "",
        "sign": looks.sign(row.backend),
        "state": {axis: cell.state(axis) for axis in AXES},
        "doubt": bool(cell.doubt),
        "x": {axis: speed(row, axis) for axis in AXES},
        "y": (100 * low, 100 * row.score, 100 * high),
        "brief": _brief(cell),
    }


def _brief(cell: Cell) -> list[str]:
    row = cell.row
    lines = [f"{row.metric} {percent(row.score)} %"]
    lines += [f"{significant(row.throughput_img_per_s)} images/s"] if row.throughput_img_per_s else []
    lines += [f"p50 {significant(row.latency_p50_ms)} ms"] if row.latency_p50_ms else []
    return lines


def _published(point: Beside) -> dict[str, Any]:
    return {
        "label": point.label,
        "benchmark": point.benchmark,
        "x": point.throughput_img_per_s,
        "y": 100 * point.score,
        "brief": list(point.brief),
    }
