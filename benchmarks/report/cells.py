"""Records in, the cells of a report out: each with its standing on both axes, in the order they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastervit_trt.benchmarks.pareto import Axis, Group, Standing, doubt, standings
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.report.beside import BENCHMARKS
from fastervit_trt.benchmarks.rows import BenchmarkRow

__all__ = ["AXES", "Cell", "State", "benchmark_of", "cells_of", "charted_groups"]

AXES: tuple[Axis, ...] = ("throughput", "latency")
State = Literal["front", "near", "off", "none"]  # near: dominated, but within uncertainty

# Its relatives (Tiny ImageNet, -A, -R, -V2, 21k) have other images or classes.
_IMAGENET = re.compile(r"(imagenet|ilsvrc)(2012|1k)*(val|validation)?")
_VALIDATION_IMAGES = {"ImageNet": 50_000, "COCO": 5_000, "ADE20K": 2_000}
_COCO = re.compile(r"(ms)?coco(2017)?(val|validation)?(2017)?")
_ADE20K = re.compile(r"(ade20k|adechallengedata2016|sceneparse150)(val|validation)?")
_NAMES = {"ImageNet": _IMAGENET, "COCO": _COCO, "ADE20K": _ADE20K}


@dataclass(frozen=True)
class Cell:
    """A record and what the report says of it."""

    number: int  # from 1, the order of the report
    record: Record
    standing: dict[Axis, Standing]

    @property
    def row(self) -> BenchmarkRow:
        return self.record.row

    @property
    def key(self) -> str:
        """Identifies the cell within the page."""
        return f"cell-{self.number}"

    @property
    def group(self) -> Group:
        return self.standing["throughput"].group

    @property
    def doubt(self) -> str:
        return doubt(self.row) if self.row.measured else ""

    def state(self, axis: Axis) -> State:
        """How the point is drawn."""
        standing = self.standing[axis]
        if standing.on_front is None:
            return "none"
        return "front" if standing.on_front else "off" if standing.clearly else "near"


def cells_of(records: Sequence[Record]) -> list[Cell]:
    """Cells of one group stand together, the most accurate and then the fastest first; what failed comes last."""
    rows = [record.row for record in records]
    by_axis = {axis: standings(rows, axis) for axis in AXES}
    order = sorted(range(len(rows)), key=lambda i: _place(rows[i]))
    return [
        Cell(number, records[i], {axis: by_axis[axis][i] for axis in AXES}) for number, i in enumerate(order, start=1)
    ]


def charted_groups(cells: Sequence[Cell], axis: Axis | None = None) -> dict[Group, list[Cell]]:
    """The cells that are points, by group; of one axis, or of any."""
    groups: dict[Group, list[Cell]] = {}
    for cell in cells:
        if any(cell.state(one) != "none" for one in AXES if axis in (None, one)):
            groups.setdefault(cell.group, []).append(cell)
    return groups


def benchmark_of(row: BenchmarkRow) -> str:
    """The public validation set whose published figures may be drawn beside the row's; "" if it is none."""
    benchmark = BENCHMARKS.get(row.metric, "")
    if not benchmark:
        return ""
    name = "".join(sign for sign in (row.dataset or "").casefold() if sign.isalnum())
    images = (row.images or 0) + (row.unreadable_images or 0)
    same = bool(_NAMES[benchmark].fullmatch(name)) or images == _VALIDATION_IMAGES[benchmark]
    return benchmark if same else ""


def _place(row: BenchmarkRow) -> tuple[object, ...]:
    group = Group.of(row)
    where = (group.title, group.dataset_sha256, group.device_kind)
    figures = (-(row.score or 0.0), -(row.throughput_img_per_s or 0.0), row.latency_p50_ms or 0.0)
    return (not row.measured, *where, *figures, row.model, row.resolution, row.precision, row.backend, row.streams)
