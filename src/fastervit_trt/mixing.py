"""A mixed precision as asked for on the command line in, the assignment out: costs, search, progress, tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastervit_trt.accuracy import Drop
from fastervit_trt.console import progress_bar
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Quantised
from fastervit_trt.export.quantisation.assignment import Assignment, assign
from fastervit_trt.export.quantisation.cost import ROOFLINES, UnitCost, modelled_costs, read_costs
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.sensitivity import Evaluator, SensitivityCache
from fastervit_trt.metering import Data, images_at_once, meter, numbered_batches
from fastervit_trt.models.config import FasterViTConfig, Preprocessing

__all__ = ["MixedRequest", "search_assignment"]

_COST_BATCH = 8  # images whose shapes the cost is modelled for, where so many fit
_DEFAULT_ROOFLINE = "8.9"


@dataclass(frozen=True)
class MixedRequest:
    """The cheapest mixture of 8 and 16 bits that loses at most ``budget_points`` of top-1, mAP or mIoU."""

    budget_points: float
    times: Path | None = None  # measured microseconds per unit; a roofline otherwise
    capability: str = _DEFAULT_ROOFLINE  # of the GPU whose roofline it is
    record: Path | None = None  # evaluations, to go on from after an interruption

    def check(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            FasterViTError: a negative budget.
        """
        if self.budget_points < 0:
            raise FasterViTError(f"an accuracy budget is points to lose, 0 or more; got {self.budget_points:g}")


def search_assignment(
    request: MixedRequest,
    model: nn.Module,
    precision: Quantised,
    ranges: Ranges,
    data: Data,
    how: Preprocessing,
    config: FasterViTConfig,
) -> Assignment:
    """The assignment for ``model`` (a deploy form, fp32), chosen by its accuracy on ``data``.

    Raises:
        FasterViTError: times of another model, or the record of another search.
    """
    costs = _costs(request, model, config)
    key = {"ranges": asdict(ranges.key), "data": data.name, "images": len(data)}
    key |= {"type": precision.name, "base": precision.base.name}
    key |= {"calibrator": precision.calibrator, "attention": precision.attention, "heads": precision.heads}
    cache = SensitivityCache(request.record, hashlib.sha256(json.dumps(key).encode()).hexdigest())

    def batches() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        return numbered_batches(data, images_at_once(config.resolution), how, config.resolution)

    with progress_bar() as progress:
        task = progress.add_task("what each unit does alone", total=None)
        done = 0

        def advance(what: str, left: int) -> None:
            nonlocal done
            progress.update(task, description=f"{precision.name}: {what}", completed=done, total=done + left)
            done += 1

        evaluator = Evaluator(model, precision, ranges, batches, lambda: meter(data), cache)
        assignment = assign(evaluator, costs, request.budget_points, advance)
        progress.update(task, description=f"{precision.name}: assignment", completed=done, total=done)
    _check_budget(assignment, request)
    return assignment


def _costs(request: MixedRequest, model: nn.Module, config: FasterViTConfig) -> dict[str, UnitCost]:
    units = list(dict.fromkeys(operand.unit for operand in operands(model)))
    if request.times is not None:
        return read_costs(request.times, units)
    count = min(_COST_BATCH, images_at_once(config.resolution))
    roofline = ROOFLINES.get(request.capability, ROOFLINES[_DEFAULT_ROOFLINE])
    return modelled_costs(model, torch.zeros(count, config.in_chans, *config.resolution), roofline)


def _check_budget(assignment: Assignment, request: MixedRequest) -> None:
    found = assignment.evaluation
    if found.drop_points > request.budget_points:  # with nothing quantised, the types around cost more than that
        drop = Drop(found.drop_points, found.drop_low, found.drop_high)
        raise FasterViTError(f"no mixture stays within {request.budget_points:g} points; the least loses {drop}")
