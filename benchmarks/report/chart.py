"""Cells in, the numbers that the page's chart is drawn from out: plain JSON, safe inside a script element."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fastervit_trt.benchmarks.pareto import front_line, speed
from fastervit_trt.benchmarks.report.cells import AXES, Cell, charted_groups, looks_like_imagenet
from fastervit_trt.benchmarks.report.look import SHAPES, SIGNS, Looks
from fastervit_trt.benchmarks.report.text import percent, significant

if TYPE_CHECKING:
    from fastervit_trt.benchmarks.published.points import PublishedPoint

__all__ = ["chart_data", "json_for_script"]

# What would end the script element or open another, and what ends a line in JavaScript but not in JSON.
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def chart_data(cells: Sequence[Cell], looks: Looks, published: Sequence[PublishedPoint]) -> dict[str, Any]:
    """Points, fronts and signs; accuracy in percent, speed in images/s and ms, each as low, middle and high."""
    groups = charted_groups(cells)
    numbers = {group: number for number, group in enumerate(groups)}
    imagenet = any(looks_like_imagenet(cell.row) for members in groups.values() for cell in members)
    return {
        "groups": [
            {
                "title": group.title,
                "device": group.device,
                "imagenet": all(looks_like_imagenet(cell.row) for cell in members),
                "line": {
                    axis: [(x, 100 * y) for x, y in front_line([cell.standing[axis] for cell in members], axis)]
                    for axis in AXES
                },
            }
            for group, members in groups.items()
        ],
        "points": [_point(cell, looks, numbers[cell.group]) for members in groups.values() for cell in members],
        "published": [_published(point) for point in published] if imagenet else [],
        "shapes": {name: shape.path for name, shape in SHAPES.items()} | {"": looks.shape("").path},
        "signs": SIGNS,
    }


def json_for_script(data: Any) -> Markup:
    """``data`` as JSON that no HTML parser takes for anything else."""
    return Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_UNSAFE))


def _point(cell: Cell, looks: Looks, group: int) -> dict[str, Any]:
    row = cell.row
    assert row.top1 is not None  # or it were no point
    low, high = (row.top1 if end is None else end for end in (row.top1_low, row.top1_high))
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
        "y": (100 * low, 100 * row.top1, 100 * high),
        "brief": _brief(cell),
    }


def _brief(cell: Cell) -> list[str]:
    row = cell.row
    lines = [f"top-1 {percent(row.top1)} %"]
    lines += [f"{significant(row.throughput_img_per_s)} images/s"] if row.throughput_img_per_s else []
    lines += [f"p50 {significant(row.latency_p50_ms)} ms"] if row.latency_p50_ms else []
    return lines


def _published(point: PublishedPoint) -> dict[str, Any]:
    assert point.top1 is not None  # or it were no point
    batch = "" if point.batch is None else f", batch {point.batch}"
    lines = [
        f"another machine's figures: {point.device}{batch}, {point.framework}, precision {point.precision}",
        f"top-1 {percent(point.top1, 1)} %, {significant(point.throughput_img_per_s)} images/s",
        f"published in {point.source}",
        point.remark,
    ]
    return {
        "label": point.model,
        "x": point.throughput_img_per_s,
        "y": 100 * point.top1,
        "brief": [line for line in lines if line],
    }
