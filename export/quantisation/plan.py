"""How a graph of a precision is made: a handler per class of precision, registered by its type.

A new precision is a frozen dataclass in ``export.precision`` and a handler here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import singledispatch

import onnx_ir as ir
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Float, Fp32, Int8Cpu, Precision, Quantised
from fastervit_trt.export.quantisation.calibration import OUTPUT_OF
from fastervit_trt.export.quantisation.cpu_form import to_cpu_form
from fastervit_trt.export.quantisation.operands import left_out, operands
from fastervit_trt.export.quantisation.qdq import QuantisationReport, insert_qdq
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.simulation import chosen_operands, simulated, simulated_on_cpu

__all__ = ["PrecisionPlan", "plan_precision"]


@dataclass(frozen=True)
class PrecisionPlan:
    """How to get from a deploy form to a graph of a precision."""

    base: Float  # the type it is traced in
    simulation: Callable[[nn.Module], AbstractContextManager[None]]  # in which the traced module computes as the graph
    rewrite: Callable[[ir.Model], None]  # of the traced graph, in place
    report: QuantisationReport | None


@singledispatch
def plan_precision(precision: Precision, deployed: nn.Module, ranges: Ranges | None) -> PrecisionPlan:
    """The plan for ``precision`` on a deploy form.

    Args:
        deployed: in any type; only its structure counts.
        ranges: of its activations; floating-point precisions need none.

    Raises:
        FasterViTError: no ranges where they are needed, or ranges of another model.
    """
    raise FasterViTError(f"no handler for precision {type(precision).__name__}; register one with plan_precision")


@plan_precision.register
def _float(precision: Float, deployed: nn.Module, ranges: Ranges | None) -> PrecisionPlan:
    return PrecisionPlan(precision, lambda model: nullcontext(), lambda graph: None, None)


@plan_precision.register
def _int8_cpu(precision: Int8Cpu, deployed: nn.Module, ranges: Ranges | None) -> PrecisionPlan:
    if precision.attention or precision.residual or not isinstance(precision.base, Fp32):
        raise FasterViTError("int8 for ONNX Runtime's CPU keeps attention, residual sums and all else in fp32")
    plan = _quantised(precision, deployed, ranges)
    assert ranges is not None and plan.report is not None
    found: Ranges = ranges
    outputs = {
        operand.block: found.of(OUTPUT_OF.format(operand.block), precision)
        for operand in chosen_operands(deployed, precision)
        if operand.kind == "convolution"
    }

    def rewrite(graph: ir.Model) -> None:
        plan.rewrite(graph)
        to_cpu_form(graph, outputs)

    return replace(
        plan,
        simulation=lambda model: simulated_on_cpu(model, precision, found),
        rewrite=rewrite,
        report=replace(plan.report, form="ONNX Runtime's CPU provider"),
    )


@plan_precision.register
def _quantised(precision: Quantised, deployed: nn.Module, ranges: Ranges | None) -> PrecisionPlan:
    if ranges is None:
        raise FasterViTError(
            f"{precision.name} needs the ranges of activations; give --calibration-data DIR or --calibration-cache FILE"
        )
    blocks = [operand.block for operand in chosen_operands(deployed, precision)]
    unknown = sorted((precision.only or frozenset()) - {operand.block for operand in operands(deployed)})
    if unknown:
        raise FasterViTError(f"{precision.name}: {unknown[0]} is no layer that can be quantised in this model")
    found: Ranges = ranges

    def rewrite(graph: ir.Model) -> None:
        insert_qdq(graph, blocks, precision, found)

    report = QuantisationReport(
        type=precision.name,
        base=precision.base.name,
        calibrator=precision.calibrator,
        blocks=blocks,
        left=_left(deployed, precision, blocks),
        calibration=asdict(ranges.key),
        attention=precision.attention,
        residual=precision.residual,
    )
    return PrecisionPlan(precision.base, lambda model: simulated(model, precision, found), rewrite, report)


def _left(deployed: nn.Module, precision: Quantised, blocks: list[str]) -> dict[str, list[str]]:
    left: dict[str, list[str]] = {}
    for block, reason in left_out(deployed).items():
        left.setdefault(reason, []).append(block)
    others = [operand for operand in operands(deployed) if operand.block not in blocks]
    for reason, in_head in (("kept by choice", False), ("in the head (--quantise-heads takes them along)", True)):
        if kept := [operand.block for operand in others if operand.in_head == in_head]:
            left[reason] = kept
    return left
