"""A quantised graph, or a deploy form, that computes something else is not let through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export import pipeline
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.precision import Fp8, Fp32, Int8, Precision
from fastervit_trt.export.quantisation.plan import PrecisionPlan, plan_precision
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.verify import expect_quantised
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import build_model, pretrained_source
from tests.export.quantisation.conftest import NAME, SHAPE, QuantisedExports
from tests.export.quantisation.graphs import number


# What goes wrong, in a graph that is otherwise right.
def doubled(name: str) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        value.const_value = ir.tensor(number(value) * number(value).dtype.type(2), name=name)

    return change


def swapped_channels(name: str) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        value.const_value = ir.tensor(np.roll(number(value), 1, axis=0), name=name)

    return change


WRONG: dict[str, tuple[Precision, Callable[[ir.Model], None]]] = {
    "a scale of weights": (Int8(), doubled("stages.1.blocks.0.conv1/Conv_0/weight_scale")),
    "a scale of weights in fp8": (Fp8(), doubled("stages.3.blocks.0.mlp.fc1/Gemm_0/weight_scale")),
    "a scale of a linear layer": (Int8(), doubled("stages.2.blocks.0.attn.qkv/Gemm_0/weight_scale")),
    "a scale of an input": (Int8(), doubled("stages.0.blocks.0.conv1/Conv_0/input0_scale")),
    "scales of other channels": (
        Int8(base=Fp32()),
        swapped_channels("stages.3.blocks.0.attn.proj/Gemm_0/weight_scale"),
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_graph_is_not_let_through(
    quantised_exports: QuantisedExports, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    precision, change = WRONG[kind]
    real = pipeline.plan_precision

    def spoilt(precision: Precision, deployed: nn.Module, ranges: Ranges | None) -> PrecisionPlan:
        plan = real(precision, deployed, ranges)

        def rewrite(graph: ir.Model) -> None:
            plan.rewrite(graph)
            change(graph)

        return replace(plan, rewrite=rewrite)

    monkeypatch.setattr(pipeline, "plan_precision", spoilt)
    with pytest.raises(
        FasterViTError, match=r"graph differs from PyTorch; worst point: logits\[\d, \d\] of \w+ images"
    ):
        quantised_exports.make(precision)


def test_a_deploy_form_that_computes_something_else_is_not_quantised(digits_ranges: Ranges) -> None:
    """Its simulation would agree with its graph."""
    model, _ = build_model(ModelSpec(NAME), pretrained_source(NAME))
    deployed, _ = deploy_form(model)
    plan = plan_precision(Int8(), deployed, digits_ranges)
    with torch.no_grad():
        deployed.get_submodule("head").weight *= 1.01  # type: ignore[operator]
    with pytest.raises(FasterViTError, match="the deploy form differs from the model by"):
        expect_quantised(model, deployed, plan, BatchRange(1, 4, 8), SHAPE)
