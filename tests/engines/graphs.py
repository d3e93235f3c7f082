"""Graphs of the smallest digits model in every precision and form, and TensorRT-RTX's plans of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common
import pytest
from filelock import FileLock

from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import inline_functions
from fastervit_trt.export.onnx_graph import _name_nodes
from fastervit_trt.export.precision import Fp8, Int8, Quantised
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.qdq import insert_qdq
from fastervit_trt.export.quantisation.ranges import CalibrationKey, Ranges
from fastervit_trt.models.datasets import open_calibration_images
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.source import build_model, pretrained_source
from tests.conftest import on_one_thread

__all__ = ["NAME", "Graphs"]

NAME, SHAPE = "faster_vit_digits_s", (3, 224, 224)


class Graphs:
    """``graphs("int8")`` is the path of a graph, ``graphs.plan("int8", "12.0")`` that of its plan; each is made once.

    Names are fp32, fp16, bf16, int8 and fp8, with any of these behind: ``-inline`` (fused operators written out),
    ``-static1`` (batch of 1), ``-weights`` (of 8 bits only the weights are left), ``-but-BLOCK`` (quantised, less one).
    """

    def __init__(self, exports: Path, root: Path) -> None:
        self.exports, self.root = exports, root
        self._made = cache(self._make)
        self.plan = cache(self._plan)
        self._quantised_blocks = cache(self._calibrated)

    def __call__(self, name: str) -> Path:
        return self.exports / name / "model.onnx" if name in ("fp32", "fp16", "bf16") else self._made(name)

    @property
    def quantised_blocks(self) -> list[str]:
        return self._quantised_blocks()[0]

    def _plan(self, name: str, capability: str = "8.9", batch: str = "1:4:8") -> Path:
        if (reason := rtx_unavailable_reason()) is not None:
            pytest.skip(reason)
        graph = self(name)
        plan = self.root / f"{name}-{capability}-{batch.replace(':', '-')}.engine"
        sizes = BatchRange.parse("1" if "-static1" in name else batch)
        with FileLock(f"{plan}.lock"):
            if not plan.exists():
                build_rtx_engine(graph, plan, RtxTarget.parse(capability), sizes, "images", SHAPE)
        return plan

    def _make(self, name: str) -> Path:
        path = self.root / f"{name}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                ir.save(self._graph(name), path)
        return path

    def _graph(self, name: str) -> ir.Model:
        base, *forms = name.replace("but-", "but:").split("-")
        without = [form.removeprefix("but:") for form in forms if form.startswith("but:")]
        graph = self._quantise(base, without) if base in ("int8", "fp8") else ir.load(self(base))
        for form in forms:
            FORMS.get(form, lambda graph: None)(graph)
        return graph

    def _quantise(self, base: str, without: Iterable[str]) -> ir.Model:
        precision: Quantised = Int8() if base == "int8" else Fp8()
        blocks, ranges = self._quantised_blocks()
        graph = ir.load(self("fp16"))
        insert_qdq(graph, [block for block in blocks if block not in without], precision, ranges)
        _name_nodes(graph)
        return graph

    def _calibrated(self) -> tuple[list[str], Ranges]:
        model, _ = deploy_form(build_model(ModelSpec(NAME), pretrained_source(NAME))[0])
        images = open_calibration_images("digits", 16).batches(16, get_variant(NAME).preprocessing, SHAPE[1:])
        with on_one_thread():
            ranges = calibrate(model, images, CalibrationKey("", "", "", "", "", 16))
        return [operand.block for operand in operands(model)], ranges


def with_static_batch_1(graph: ir.Model) -> None:
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([1, *value.shape[1:]])


def with_quantised_weights_alone(graph: ir.Model) -> None:
    """Activations go into products as they were before they were quantised."""
    for node in list(graph.graph):
        if node.op_type == "DequantizeLinear":
            value = node.inputs[0]
            quantise = value.producer() if value is not None else None
            if quantise is not None:
                ir.convenience.replace_all_uses_with(node.outputs[0], quantise.inputs[0])
    onnx_ir.passes.common.RemoveUnusedNodesPass()(graph)


FORMS: dict[str, Callable[[ir.Model], None]] = {
    "inline": inline_functions,
    "static1": with_static_batch_1,
    "weights": with_quantised_weights_alone,
}
