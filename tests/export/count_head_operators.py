"""Counts the operators of detectors and segmenters as transformers' models export, and as they export here; and what
TensorRT-RTX launches for either, where it is installed.

``python tests/export/count_head_operators.py`` prints the numbers of export/heads/README.md; about four minutes.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import BLOCK, INPUT, save_onnx
from fastervit_trt.export.onnx_graph import export_failure, onnx_from_torch, quiet_exporter
from fastervit_trt.export.precision import Float, Fp16, Fp32
from fastervit_trt.export.typed_model import typed_model
from fastervit_trt.models import create_model
from fastervit_trt.models.tasks.heads import OUTPUTS, SegmentationHead
from fastervit_trt.models.tasks.model import TaskModel

# The second has what the shipped segmenter has not: pools whose bins overlap, as UperNet's own 3 and 6 on 4x4.
MODELS = {
    "detector": lambda: create_model("faster_vit_scenes_detector"),
    "segmenter": lambda: create_model("faster_vit_scenes_segmenter"),
    "segmenter, pools 1, 2, 3, 6": lambda: create_model(
        "faster_vit_scenes_segmenter", head=SegmentationHead(hidden_size=48)
    ),
}
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"  # "1": transformers does not check sizes while it runs


class Plain(nn.Module):
    """transformers' own model, with the outputs that a head ends in."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.network, self.names = model.network, ("logits", "pred_boxes")[: 1 + (model.task == "detection")]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.network(images)
        return tuple(found[name] for name in self.names)


def plain(model: TaskModel, precision: Float, *, dynamic: bool) -> ir.Model | str:
    """A plain ``torch.onnx.export``, for one image or any batch; or why there is none."""
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    images = torch.zeros(2 if dynamic else 1, 3, *model.config.resolution, dtype=precision.dtype)
    options: dict[str, Any] = {"opset_version": precision.opset, "dynamic_shapes": shapes, "input_names": [INPUT]}
    try:
        with quiet_exporter(), torch.inference_mode():
            whole = Plain(model).eval().to(precision.dtype)
            program = torch.onnx.export(whole, (images,), dynamo=True, verbose=False, **options)
    except torch.onnx.OnnxExporterError as error:
        return export_failure(error)
    assert program is not None
    shape = program.model.graph.outputs[0].shape
    if dynamic and (shape is None or isinstance(shape[0], int)):
        return f"exported without a word for a batch of {shape and shape[0]} only"
    return program.model


def here(model: TaskModel, precision: Float, *, dynamic: bool) -> ir.Model:
    """The graph that this project writes."""
    with torch.inference_mode():
        typed, shape = typed_model(deploy_form(model)[0], precision), (3, *model.config.resolution)
        return onnx_from_torch(typed, shape, BatchRange.parse("1:4:8" if dynamic else "1"), OUTPUTS[model.task])


def of_head(graph: ir.Model | str) -> str:
    """How many nodes the head has, by operator."""
    if isinstance(graph, str):
        return graph
    scopes = [
        (n.op_type, n.metadata_props.get("pkg.torch.onnx.name_scopes", n.metadata_props.get(BLOCK, "")))
        for n in graph.graph
    ]
    counts = Counter(operator for operator, scope in scopes if ".trunk." not in scope and "backbone." not in scope)
    return f"{counts.total()} nodes: {dict(counts.most_common())}"


def launches(graph: ir.Model | str, resolution: tuple[int, int]) -> str:
    """Of the whole network, for one image."""
    if isinstance(graph, str):
        return graph
    with tempfile.TemporaryDirectory() as folder:
        (path, *_), plan = save_onnx(graph, Path(folder)), Path(folder) / "plan"
        try:
            build_rtx_engine(path, plan, RtxTarget.parse("8.9"), BatchRange.parse("1"), INPUT, (3, *resolution))
        except FasterViTError as error:
            return str(error)
        return f"{len(plan_kernels(plan).kernels)} launches"


def main() -> None:
    for name, make in MODELS.items():
        print(name, "| plain |", of_head(plain(make().eval(), Fp32(), dynamic=False)))
        os.environ[CHECKS] = "1"
        print(name, "| plain without checks, one image |", of_head(plain(make().eval(), Fp32(), dynamic=False)))
        print(name, "| plain without checks, any batch |", of_head(plain(make().eval(), Fp32(), dynamic=True)))
        half = plain(make().eval(), Fp16(), dynamic=False)
        print(name, "| plain without checks, fp16 |", launches(half, make().config.resolution))
        del os.environ[CHECKS]
        print(name, "| here, one image |", of_head(here(make().eval(), Fp32(), dynamic=False)))
        print(name, "| here, any batch |", of_head(here(make().eval(), Fp32(), dynamic=True)))
        print(name, "| here, fp16 |", launches(here(make().eval(), Fp16(), dynamic=False), make().config.resolution))


if __name__ == "__main__":
    main()
