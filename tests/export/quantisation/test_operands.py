"""What may be in 8 bits in detectors and segmenters: the backbone as it is alone, convolutions of heads on request."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.precision import Int8
from fastervit_trt.export.quantisation.operands import left_out, operands
from fastervit_trt.export.quantisation.plan import plan_precision
from fastervit_trt.export.quantisation.ranges import CalibrationKey, Ranges
from fastervit_trt.export.quantisation.simulation import chosen_operands
from tests.export.task_models import small_model

BACKBONE = "backbone."
LINEAR_IN_HEAD = "linear layer of a detector's head: few rows, and coordinates"
UNRANGED = Ranges(CalibrationKey("", "", "", "", "", 0), {})


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def deployed(request: pytest.FixtureRequest) -> nn.Module:
    with torch.inference_mode():
        return deploy_form(small_model(request.param))[0]


def layers(model: nn.Module, kind: type[nn.Module], *, backbone: bool) -> set[str]:
    found = {name.replace("levels.", "stages.", 1) for name, part in model.named_modules() if isinstance(part, kind)}
    return {name for name in found if name.startswith(BACKBONE) == backbone}


def test_every_layer_is_an_operand_or_left_out_for_a_reason(deployed: nn.Module) -> None:
    either = {operand.block: operand.kind for operand in operands(deployed)}
    kinds: dict[str, type[nn.Module]] = {"convolution": nn.Conv2d, "linear": nn.Linear}
    everything = {
        name: kind
        for kind, part in kinds.items()
        for side in (True, False)
        for name in layers(deployed, part, backbone=side)
    }
    assert either.keys() | left_out(deployed).keys() == everything.keys()
    assert not either.keys() & left_out(deployed).keys()
    assert all(everything[block] == kind for block, kind in either.items())


def test_of_a_head_only_convolutions_can_be_quantised(deployed: nn.Module) -> None:
    reasons = left_out(deployed)
    in_head = {operand.block for operand in operands(deployed) if operand.in_head}
    convolutions = layers(deployed, nn.Conv2d, backbone=False)
    last = {"decode_head.classifier"} & convolutions
    assert in_head == convolutions - last
    assert {reasons[block] for block in last} <= {"stem or head"}
    for block in layers(deployed, nn.Linear, backbone=False):
        assert reasons[block] == LINEAR_IN_HEAD
    assert len(in_head) > 10


def test_of_a_backbone_the_same_is_quantised_as_without_a_head(deployed: nn.Module) -> None:
    alone = {f"{BACKBONE}{operand.block}" for operand in operands(deployed.get_submodule("backbone"))}
    within = {operand.block for operand in operands(deployed) if not operand.in_head}
    assert within == alone
    assert f"{BACKBONE}patch_embed.conv_down.0" not in within
    assert left_out(deployed)[f"{BACKBONE}patch_embed.conv_down.0"] == "stem or head"


def test_heads_are_quantised_where_asked_for(deployed: nn.Module) -> None:
    every = operands(deployed)
    assert [o.block for o in chosen_operands(deployed, Int8())] == [o.block for o in every if not o.in_head]
    assert chosen_operands(deployed, Int8(heads=True)) == every
    one = next(o.block for o in every if o.in_head)
    assert [o.block for o in chosen_operands(deployed, Int8(only=frozenset({one})))] == [one]


def test_the_report_tells_what_of_the_head_stays(deployed: nn.Module) -> None:
    reason = "in the head (--quantise-heads takes them along)"
    report = plan_precision(Int8(), deployed, UNRANGED).report
    assert report is not None
    in_head = [operand.block for operand in operands(deployed) if operand.in_head]
    assert report.left[reason] == in_head
    assert "kept by choice" not in report.left
    along = plan_precision(Int8(heads=True), deployed, UNRANGED).report
    assert along is not None and reason not in along.left
    none = plan_precision(Int8(only=frozenset(in_head)), deployed, UNRANGED).report
    assert none is not None
    assert none.left["kept by choice"] == [o.block for o in operands(deployed) if not o.in_head]


def test_a_classifier_has_no_head_of_this_kind(digits_s: nn.Module) -> None:
    assert not any(operand.in_head for operand in operands(digits_s))
    assert LINEAR_IN_HEAD not in left_out(digits_s).values()
