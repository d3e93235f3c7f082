"""Detectors and segmenters in their deploy form, where that form could differ from transformers' own."""

from __future__ import annotations

import onnx_ir as ir
import torch

from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.heads.static import QuerySelection
from fastervit_trt.export.onnx_graph import quiet_exporter
from fastervit_trt.export.precision import Bf16
from tests.export.task_models import small_model


def test_boxes_at_the_edge_of_the_range_end_where_those_of_transformers_do() -> None:
    """Anchors within a hundredth of the border have a logit of infinity there, and no candidate of their own."""
    size = (64, 416)  # the largest map is 52 wide: the middles of its outermost pixels are so near
    model = small_model("detection", size)
    network = model.network.model
    with torch.no_grad():  # of all candidates, theirs score best
        network.enc_score_head.weight[:] = network.enc_output(torch.zeros(network.config.d_model))
        network.decoder.bbox_embed[0].layers[-1].bias.fill_(-8)  # back from where the inverse sigmoid ends
    deployed, _ = deploy_form(model)
    outside = network.generate_anchors(((8, 52), (4, 26), (2, 13)))[1][0, :, 0].logical_not().nonzero()[:, 0]
    assert len(outside) == 16
    assert deployed.anchors.half().isfinite().all()
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = model.raw(x)
        picked = model.picked(*expected)
        assert picked is not None
        assert all(set(outside.tolist()) == set(of_image[:16].tolist()) for of_image in picked)
        found = deployed.raw(x, picked)
    for one, same in zip(expected, found, strict=True):
        torch.testing.assert_close(same, one, rtol=1e-3, atol=5e-4)


def test_queries_are_ordered_in_a_type_that_onnx_orders() -> None:
    """Not in bfloat16 before opset 24."""
    scores = torch.tensor([[0.5, 2, 1, 3]], dtype=torch.bfloat16)
    assert QuerySelection(2)(scores).tolist() == [[3, 1]]
    with quiet_exporter():
        program = torch.onnx.export(
            QuerySelection(2), (scores,), dynamo=True, opset_version=Bf16().opset, verbose=False
        )
    assert program is not None
    (order,) = [node for node in program.model.graph if node.op_type == "TopK"]
    assert order.inputs[0] is not None and order.inputs[0].dtype is ir.DataType.FLOAT
