"""What the outputs of a detector or segmenter were decided from, kept in the graph under its name, not as an output.

The written file can so be compared where it is continuous: before the class of a pixel or the order of boxes, where a
rounding makes a jump. Picking queries is such a jump on the way; an exposed graph takes the choice as an input.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from fastervit_trt.export.graph import BLOCK, save_onnx

__all__ = ["PICKED", "expose", "hide_raw_outputs"]

PICKED = "picked"  # input of an exposed graph: positions (B, Q) of the queries
_RAW = "fastervit.raw"  # metadata of the model: names of the values
_SELECTION = "query_selection"  # block of the operator that picks


def hide_raw_outputs(model: ir.Model, count: int) -> None:
    """The last ``count`` outputs of ``model`` become values like any other, which :func:`expose` finds again."""
    if not count:
        return
    outputs = model.graph.outputs
    model.metadata_props[_RAW] = json.dumps([value.name for value in outputs[-count:]])
    del outputs[-count:]


def expose(path: Path, folder: Path, *, pinned: bool) -> tuple[Path, tuple[str, ...]] | None:
    """A copy of the graph at ``path`` in ``folder`` with its hidden values as outputs; None: it hides none.

    Args:
        pinned: only those are outputs, and the queries come from the input :data:`PICKED` (if there are any), else
            they come after the outputs that there are, and nothing else changes.

    Returns:
        The copy and the names of the hidden values, in order.
    """
    model = ir.load(path)
    if _RAW not in model.metadata_props:
        return None
    names: list[str] = json.loads(model.metadata_props[_RAW])
    values = {value.name: value for node in model.graph for value in node.outputs}
    if pinned:
        model.graph.outputs.clear()
        _pin(model)
    model.graph.outputs.extend(values[name] for name in names)
    (copy, *_) = save_onnx(model, folder)
    return copy, tuple(names)


def _pin(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.metadata_props.get(BLOCK) != _SELECTION or node.op_type != "TopK":
            continue
        chosen = node.outputs[1]
        picked = ir.Value(name=PICKED, shape=chosen.shape, type=ir.TensorType(ir.DataType.INT64))
        model.graph.inputs.append(picked)
        ir.convenience.replace_all_uses_with(chosen, picked)
        model.graph.remove(node, safe=True)
