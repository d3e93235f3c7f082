"""What a graph hides is found again, in order; and the choice of queries can be given from outside, that one alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fastervit_trt.export.exposed import PICKED, expose, hide_raw_outputs
from fastervit_trt.export.graph import BLOCK, INPUT, save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession

SCORES = np.array([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.8]], np.float32)


def constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(values, dtype=ir.DataType.INT64, name=name))
    graph.register_initializer(value)
    return value


def small_graph(folder: Path) -> Path:
    """Scores (B, 4) → the two largest ("best"), behind it what they are taken from: "two" scores that were picked by a
    block of their own, in float32, and "all" of them.
    """
    images = ir.val(INPUT, ir.DataType.FLOAT, ["batch", 4])
    graph = ir.Graph([images], [], nodes=[], opset_imports={"": 20}, name="small")
    count = constant(graph, "count", [2])

    def add(operator: str, inputs: list[ir.Value], block: str, outputs: int = 1, **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes, num_outputs=outputs, metadata_props={BLOCK: block})
        for i, value in enumerate(node.outputs):
            value.name, value.shape = f"{operator}{len(graph)}_{i}", ir.Shape(["batch", 2])
            value.dtype = ir.DataType.FLOAT if i == 0 else ir.DataType.INT64
        graph.append(node)
        return node.outputs[-1]

    cast = add("Cast", [images], "query_selection", to=int(ir.DataType.FLOAT))
    places = add("TopK", [cast, count], "query_selection", outputs=2, axis=1)
    cast.shape = ir.Shape(["batch", 4])
    two = add("GatherElements", [images, places], "model", axis=1)
    add("TopK", [two, count], "model", outputs=2, axis=1)
    best = graph[-1].outputs[0]
    everything = add("Identity", [images], "model")
    everything.shape = ir.Shape(["batch", 4])
    for value, name in ((best, "best"), (two, "two"), (everything, "all")):
        value.name = name
    graph.outputs.extend([best, two, everything])
    model = ir.Model(graph, ir_version=10)
    hide_raw_outputs(model, 2)
    assert [value.name for value in graph.outputs] == ["best"]
    (path,) = save_onnx(model, folder)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (folder := tmp_path / "hidden").mkdir()
    return small_graph(folder)


def test_hidden_values_come_after_the_outputs_in_their_order(path: Path, tmp_path: Path) -> None:
    assert OnnxCpuSession(path).outputs == ("best",)
    found = expose(path, tmp_path, pinned=False)
    assert found is not None and found[1] == ("two", "all")
    session = OnnxCpuSession(found[0])
    assert session.outputs == ("best", "two", "all")
    for one, same in zip(session(SCORES), ([[0.9, 0.7], [0.8, 0.4]],) * 2, strict=False):
        np.testing.assert_array_equal(one, np.array(same, np.float32))


def test_a_choice_from_outside_replaces_that_of_queries_and_no_other(path: Path, tmp_path: Path) -> None:
    found = expose(path, tmp_path, pinned=True)
    assert found is not None
    session = OnnxCpuSession(found[0])
    assert session.outputs == ("two", "all")
    two, everything = session(SCORES, **{PICKED: np.array([[0, 2], [3, 1]])})
    np.testing.assert_array_equal(two, np.array([[0.1, 0.5], [0.8, 0.3]], np.float32))
    np.testing.assert_array_equal(everything, SCORES)
    kept = [(node.op_type, node.metadata_props[BLOCK]) for node in ir.load(found[0]).graph if node.op_type == "TopK"]
    assert kept == [("TopK", "model")]


def test_a_graph_that_hides_nothing_is_told(tmp_path: Path) -> None:
    images = ir.val(INPUT, ir.DataType.FLOAT, ["batch", 4])
    node = ir.node("Relu", [images])
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, images.shape
    model = ir.Model(ir.Graph([images], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)
    hide_raw_outputs(model, 0)
    (folder := tmp_path / "plain").mkdir()
    (path,) = save_onnx(model, folder)
    assert expose(path, tmp_path, pinned=True) is None
