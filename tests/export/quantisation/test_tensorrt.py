"""TensorRT-RTX compiles quantised layers to kernels that take 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from fastervit_trt.engines.kernels import Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, check_precision, rtx_unavailable_reason
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.quantisation.operands import operands
from tests.export.quantisation.conftest import SHAPE, QuantisedExports
from tests.export.quantisation.graphs import FORMS


@pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))
@pytest.mark.parametrize(
    ("form", "capability", "kinds"),
    [
        ("int8", "8.9", ["convolution", "linear"]),
        ("fp8", "8.9", ["convolution", "linear"]),
        ("int8", "7.5", ["linear"]),
    ],
)
def test_tensorrt_takes_quantised_layers_for_what_they_are(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    tmp_path: Path,
    form: str,
    capability: str,
    kinds: list[str],
) -> None:
    """Scales and weights are part of the product's kernel; for 7.5 convolutions of so few channels stay in 16 bits."""
    target = RtxTarget.parse(capability)
    check_precision(capability, FORMS[form])
    path = quantised_exports(FORMS[form]).files[0]
    engine = build_rtx_engine(path, tmp_path / "plan", target, BatchRange(1, 4, 8), "images", SHAPE)
    assert engine.layers > 100
    plan = plan_kernels(engine.path)
    assert plan.targets == (target.sm,)
    kernels = [k for k in plan.kernels if k.kind in (Kind.GEMM, Kind.CONVOLUTION)]
    dequantised = [[node.split("/")[0] for node in k.nodes if "/DequantizeLinear_" in node] for k in kernels]
    found = {block for names in dequantised for block in names if names.count(block) == 2}  # input and weights
    assert found == {o.block for o in operands(digits_s) if o.kind in kinds}
