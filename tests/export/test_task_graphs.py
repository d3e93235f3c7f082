"""Graphs of detectors and segmenters: written, verified, and refused where they are wrong."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export import decisions, exposed, verify
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.golden import Golden, decision_differences
from fastervit_trt.export.graph import BLOCK
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.pipeline import ExportedGraph, export_graph
from fastervit_trt.export.precision import get_float
from fastervit_trt.export.typed_model import TypedModel, typed_model
from fastervit_trt.models.tasks.heads import OUTPUTS
from tests.export.task_models import SIZE, small_model

TASKS = ["segmentation", "detection"]


def exported(folder: Path, task: str, precision: str = "fp32", batch: str = "1:2:4") -> ExportedGraph:
    folder.mkdir(parents=True)
    return export_graph(lambda: small_model(task), get_float(precision), BatchRange.parse(batch), folder)


@pytest.fixture(scope="module", params=TASKS)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, ExportedGraph]:
    folder = tmp_path_factory.mktemp("graph") / request.param
    return request.param, folder, exported(folder, request.param)


def test_outputs_have_their_names_and_sizes(graph: tuple[str, Path, ExportedGraph]) -> None:
    task, folder, found = graph
    sizes = {"segmentation": {"masks": [*SIZE]}, "detection": {"boxes": [20, 4], "scores": [20], "labels": [20]}}
    assert found.outputs == sizes[task]
    assert found.verification.share_of_budget < 1
    session = OnnxCpuSession(folder / "model.onnx")
    for count in (1, 3):
        results = session(np.random.default_rng(count).standard_normal((count, 3, *SIZE)).astype(np.float32))
        assert [(r.dtype, r.shape) for r in results] == [(np.float32, (count, *s)) for s in sizes[task].values()]
    graph_of_file = ir.load(folder / "model.onnx")
    assert [value.name for value in graph_of_file.graph.outputs] == list(OUTPUTS[task])  # type: ignore[index]


def test_backbones_keep_their_fused_operators(graph: tuple[str, Path, ExportedGraph]) -> None:
    _, folder, found = graph
    assert found.fusion.operators["WindowAttention"] == 2
    assert found.fusion.operators["CarrierAttention"] == 1
    blocks = {node.metadata_props[BLOCK] for node in ir.load(folder / "model.onnx").graph}
    assert any(block.startswith("backbone.stages.2.blocks.0") for block in blocks)


def test_heads_hold_nothing_that_tensorrt_lacks_or_reads_wrongly(graph: tuple[str, Path, ExportedGraph]) -> None:
    """As their README says: sizes that depend on the image, and GridSample, which its parsers take for another."""
    found = {node.op_type for node in ir.load(graph[1] / "model.onnx").graph}
    data_dependent = {"NonMaxSuppression", "NonZero", "Compress", "Unique", "If", "Loop", "Scan"}
    assert not found & (data_dependent | {"GridSample", "ScatterND", "ScatterElements", "GatherND", "Where", "Log"})
    assert found >= ({"Resize", "ArgMax"} if graph[0] == "segmentation" else {"TopK", "GatherElements", "Gather"})


def test_the_golden_set_holds_what_was_decided(graph: tuple[str, Path, ExportedGraph]) -> None:
    task, folder, found = graph
    golden = Golden.read(folder, found.golden)
    model = small_model(task)
    with torch.inference_mode():
        expected = [output.numpy() for output in model(torch.from_numpy(golden.images))]
    for name, array in zip(OUTPUTS[task], expected, strict=True):  # type: ignore[index]
        apart = golden.outputs[name] != array  # two runs of PyTorch need not round alike
        assert (apart & (np.abs(golden.outputs[name] - array) > 1e-4)).mean() < 0.002
    outputs = OnnxCpuSession(folder / "model.onnx")(golden.images)
    comparison = golden.compare(OUTPUTS[task], outputs)  # type: ignore[index]
    assert comparison.passed
    wrong = [np.roll(output, 7, axis=-1) for output in outputs]
    assert not golden.compare(OUTPUTS[task], wrong).passed  # type: ignore[index]


def test_a_wrong_weight_is_found_behind_the_decision(graph: tuple[str, Path, ExportedGraph], tmp_path: Path) -> None:
    """In the last layer before it, by a hundredth: most pixels and boxes stay what they are."""
    task, folder, _ = graph
    model = ir.load(folder / "model.onnx")
    last = "decode_head.classifier" if task == "segmentation" else "decoder.class_embed.1"
    node = next(n for n in reversed(list(model.graph)) if n.metadata_props[BLOCK] == last and len(n.inputs) > 1)
    weight = next(v for v in node.inputs if v is not None and v.const_value is not None)
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    ir.save(model, tmp_path / "model.onnx")
    expectation = verify.expect(small_model(task), _typed(task, "fp32"), BatchRange.parse("1:2:4"), (3, *SIZE))
    with pytest.raises(FasterViTError, match="verification failed: the fp32 graph differs"):
        verify.verify_onnx(tmp_path / "model.onnx", expectation)
    verify.verify_onnx(folder / "model.onnx", expectation)


@pytest.mark.parametrize(
    ("task", "operator", "change"),
    [("segmentation", "ArgMax", "ArgMin"), ("detection", "TopK", "smallest")],
)
def test_a_wrong_decision_is_found_behind_right_values(
    tmp_path: Path, graph: tuple[str, Path, ExportedGraph], task: str, operator: str, change: str
) -> None:
    if graph[0] != task:
        pytest.skip("of the other task")
    model = ir.load(graph[1] / "model.onnx")
    node = [n for n in model.graph if n.op_type == operator][-1]
    if change == "smallest":
        node.attributes["largest"] = ir.AttrInt64("largest", 0)
    else:
        node.op_type = change
    ir.save(model, tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE)).astype(np.float32)
    decisions.check_decisions(graph[1] / "model.onnx", images, task, get_float("fp32"))  # type: ignore[arg-type]
    with pytest.raises(FasterViTError, match="do not follow from its logits"):
        decisions.check_decisions(tmp_path / "model.onnx", images, task, get_float("fp32"))  # type: ignore[arg-type]


def test_queries_are_those_that_were_picked_elsewhere(graph: tuple[str, Path, ExportedGraph], tmp_path: Path) -> None:
    task, folder, _ = graph
    found = exposed.expose(folder / "model.onnx", tmp_path, pinned=True)
    assert found is not None
    session = OnnxCpuSession(found[0])
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE)).astype(np.float32)
    if task == "segmentation":
        assert session.outputs == ("logits",)
        return
    assert session.outputs == ("logits", "query_boxes", "position_scores")
    picked = np.random.default_rng(1).permuted(np.tile(np.arange(252), (2, 1)), axis=1)[:, :20]
    with torch.inference_mode():
        expected = deploy_form(small_model(task))[0].raw(torch.from_numpy(images), torch.from_numpy(picked))
    for one, same in zip(expected, session(images, picked=picked), strict=True):
        np.testing.assert_allclose(same, one.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("task", "precision"), [("segmentation", "bf16"), ("detection", "fp16")])
def test_lower_precisions_and_static_batches(tmp_path: Path, task: str, precision: str) -> None:
    found = exported(tmp_path / "graph", task, precision, "2")
    assert found.verification.share_of_budget < 1
    golden = Golden.read(tmp_path / "graph", found.golden)
    session = OnnxCpuSession(tmp_path / "graph" / "model.onnx")
    outputs = session(golden.images[:2])
    padded = [np.concatenate([o, golden.outputs[n][2:]]) for n, o in zip(session.outputs, outputs, strict=True)]
    assert golden.compare(session.outputs, padded).passed
    if task == "segmentation":  # of a detector that was never trained all scores are near each other, and change places
        assert max(golden.budgets.values()) < 0.1


def test_masks_differ_by_their_pixels() -> None:
    masks = np.zeros((2, 4, 5), np.float32)
    others = masks.copy()
    others[1, 0, :2] = 3
    found = decision_differences({"masks": masks}, (others,))
    np.testing.assert_allclose(found["masks"], [0, 0.1])


def test_detections_differ_by_the_worst_that_counts_on_either_side() -> None:
    boxes = np.array([[[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.8], [0, 0, 1, 1]]], np.float32)
    one = {"boxes": boxes, "scores": np.array([[0.9, 0.8, 0.1]]), "labels": np.array([[2.0, 1.0, 0.0]])}

    def apart(**changed: np.ndarray) -> float:
        return float(decision_differences(one, tuple({**one, **changed}.values()))["boxes"][0])

    order = [1, 0, 2]
    swapped = {name: array[:, order] for name, array in one.items()}
    assert apart(**swapped) == 0  # the order of two boxes is no difference
    second = (0.8 / 0.9) ** 4  # scores count relative to the surest
    assert apart(scores=np.array([[0.9, 0.75, 0.1]])) == pytest.approx(second * 0.05 / 0.9)
    assert apart(scores=np.array([[0.9, 0.8, 0.11]])) == pytest.approx((0.11 / 0.9) ** 4 * 0.01 / 0.9)
    assert apart(labels=np.array([[2.0, 0.0, 0.0]])) == pytest.approx(second)
    assert apart(labels=np.array([[2.0, 1.0, 1.0]])) == pytest.approx(1 / 9**4)  # it is hardly there
    moved = boxes.copy()
    moved[0, 1, 2] += 0.07
    assert apart(boxes=moved) == pytest.approx(second * 0.07)
    assert apart(scores=np.array([[0.9, 0.8, 0.85]])) == pytest.approx((0.85 / 0.9) ** 4 * 0.75 / 0.9)  # a box too many
    assert apart(scores=np.array([[0.9, np.nan, 0.1]])) == 1


@pytest.mark.parametrize("surest", [0.9, 0.03])
def test_a_detector_that_is_sure_of_nothing_is_held_to_its_boxes_and_scores_all_the_same(surest: float) -> None:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.random((1, 20)), axis=1) * surest
    one = {"boxes": rng.random((1, 20, 4)), "scores": scores, "labels": rng.integers(0, 5, (1, 20)).astype(float)}

    def apart(**changed: np.ndarray) -> float:
        return float(decision_differences(one, tuple({**one, **changed}.values()))["boxes"][0])

    assert apart(boxes=one["boxes"] + 0.03) > 0.02
    assert apart(scores=scores / 2) > 0.3
    assert apart(labels=4 - one["labels"]) > 0.3
    noise = 1 + 0.001 * rng.standard_normal(scores.shape)
    assert apart(scores=scores * noise) < 0.005


def _typed(task: str, precision: str) -> TypedModel:
    return typed_model(deploy_form(small_model(task))[0], get_float(precision))
