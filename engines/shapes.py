"""A graph in, the same graph with a shape and a type for every tensor out, where attention was written out as well."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from fastervit_trt.export.graph import shape_at

__all__ = ["with_all_shapes"]

_BATCH = 2  # of a dynamic graph: a size that no other side is taken for, as 1 might be


def with_all_shapes(model: ir.Model) -> ir.Model:
    """Infer, in place, what the tensors within attention that was written out (``--inline``) have not.

    Sides that depend on the batch are numbers then, those of a batch of 2: what is inferred within depends on
    reshapes, which ONNX follows through numbers only. A graph that lacks nothing stays as it is.
    """
    values = list(_values(model))
    if all(value.shape is not None for value in values):
        return model
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(shape_at(value, _BATCH))
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return model


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs
