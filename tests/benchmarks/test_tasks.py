"""Detection and segmentation are measured as classification is: their own metric, PyTorch beside it, examples drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends import BACKENDS
from fastervit_trt.benchmarks.backends.runner import Outputs, Request
from fastervit_trt.benchmarks.evaluate import Reference, check_dataset, evaluate
from fastervit_trt.benchmarks.examples import draw_examples, read_examples, take_examples
from fastervit_trt.benchmarks.reference import reference_outputs
from fastervit_trt.errors import FasterViTError
from fastervit_trt.metering import images_at_once, open_data
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model
from fastervit_trt.models.tasks.heads import OUTPUTS
from fastervit_trt.scoring import Score
from tests.benchmarks.task_exports import CLASSES, DOOR, SIDES, coco_folder, detector, mask_folder, segmenter
from tests.conftest import QUICK_BENCH


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mask_folder(tmp_path_factory.mktemp("data") / "streets")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("data") / "doors")


@pytest.fixture(scope="module")
def sweep(masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter at half the pictures' size, and one at all of it that takes roofs for walls; two examples of each."""
    from fastervit_trt.cli import bench

    root = tmp_path_factory.mktemp("sweep")
    exports = [segmenter(root / "half", (16, 32)), segmenter(root / "blind", blind=True, name="fp16")]
    for folder in exports:  # whose model cannot be built: PyTorch's part has a test of its own
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["weights"] = {"kind": "checkpoint", "path": "gone.pth"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    output = root / "report"
    options = ["--backend", "ort-cpu", "--batch", 4, "--data", masks, "--examples", 2, *QUICK_BENCH, "--output", output]
    with pytest.raises(SystemExit) as stop:
        bench.main([str(argument) for argument in (*exports, *options)])
    assert stop.value.code == 0
    return output


@pytest.fixture(scope="module")
def rows(sweep: Path) -> dict[str, dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((sweep / "rows.json").read_text())
    return {row["export"]: row for row in found}


def run(folder: Path, backend: str, **options: Any) -> Any:
    return BACKENDS[backend].open(Request(folder, Manifest.read(folder), **{"batch": 3, "threads": 1, **options}))


def test_a_row_says_which_metric_its_score_is(rows: dict[str, dict[str, Any]]) -> None:
    half, blind = rows["half"], rows["blind"]
    assert (blind["task"], blind["metric"], blind["images"], blind["dataset"]) == ("segmentation", "mIoU", 6, "streets")
    assert (blind["top1"], blind["sqnr_db"], blind["non_finite_logits"]) == (None, None, 0)
    # Half as many walls as roofs and walls are said to be walls; roofs are not found.
    walls, roofs = 0.5, 0.0
    assert blind["score"] == pytest.approx((1 + walls + 1 + roofs) / 4)
    assert blind["score_low"] <= blind["score"] <= blind["score_high"] < half["score"] == 1.0
    figures = json.loads(blind["figures"])
    assert (figures["IoU of wall"], figures["IoU of roof"]) == (walls, roofs)
    assert figures["pixel accuracy"] == 0.75
    assert "no agreement with PyTorch" in half["note"]


def test_resolutions_of_one_model_are_told_apart(rows: dict[str, dict[str, Any]], sweep: Path) -> None:
    assert (rows["half"]["resolution"], rows["blind"]["resolution"]) == ("16x32", "32x64")
    page, summary = (sweep / "report.html").read_text(), (sweep / "summary.md").read_text()
    assert "digits_s 16x32 fp32" in page
    assert "digits_s 32x64 fp16" in page
    assert "| resolution | precision | backend | batch | mIoU % |" in summary
    assert "| 32x64 | fp16 | ort-cpu | 4 | 62.50 |" in summary
    assert "mIoU on 6 images of streets, 95 % interval by bootstrap over images" in summary


def test_examples_are_drawn_into_the_report(sweep: Path) -> None:
    examples = read_examples(sweep / "examples")
    assert sorted((one.export, one.picture) for one in examples) == [
        (export, picture) for export in ("blind", "half") for picture in ("00.png", "03.png")
    ]
    page = (sweep / "report.html").read_text()
    for one in examples:
        with Image.open(sweep / "examples" / one.file) as picture:
            assert picture.width > 2 * 360
        assert f"{one.picture} of streets: ground truth, PyTorch fp32, and {one.precision}" in page
    assert page.count("data:image/png;base64,") >= len(examples)


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
def test_all_outputs_of_a_file_come_in_its_order(tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed (extra 'peers')")
    folder = detector(tmp_path / "export")
    images = np.zeros((7, 3, 128, 128), np.float32)  # no multiple of the batch
    runner = run(folder, backend)
    try:
        boxes, scores, labels = runner.outputs(images)
        runner.prepare(images[:3])
        assert len(runner.latency(2)) == 2
    finally:
        runner.close()
    np.testing.assert_allclose(boxes[6, 0], DOOR, atol=1e-6)
    np.testing.assert_allclose(scores[6], [0.9, 0.3], atol=1e-6)
    assert (boxes.shape, labels.tolist()) == ((7, 2, 4), [[1, 0]] * 7)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_pytorch_is_the_reference_of_a_task_and_agrees_with_itself(
    tmp_path: Path, masks: Path, coco: Path, task: str, one_thread: None
) -> None:
    folder = segmenter(tmp_path / "export") if task == "segmentation" else detector(tmp_path / "export")
    manifest = Manifest.read(folder)
    model, _ = build_model(ModelSpec.from_record(manifest.spec), WeightSource.from_record(manifest.weights))
    data = open_data(task, str(masks if task == "segmentation" else coco), 0.0)
    how = Preprocessing(**manifest.preprocessing)
    images, numbers = next(iter(data.batches(len(data), how, manifest.resolution)))
    with torch.inference_mode():
        expected = [output.numpy() for output in model(torch.from_numpy(images))]
    assert numbers.tolist() == list(range(len(data)))
    names = [output["name"] for output in manifest.outputs]
    shapes = [{"name": n, "shape": ["batch", *e.shape[1:]]} for n, e in zip(names, expected, strict=True)]
    manifest = Manifest(**{**vars(manifest), "outputs": shapes})

    reference = reference_outputs(manifest, data, tmp_path / "cache", threads=1)
    for name, found, wanted in zip(names, reference.outputs, expected, strict=True):
        assert found.dtype == (np.uint8 if name in ("masks", "labels") else np.float32)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert reference.known.all()

    runner = BACKENDS["torch"].open(Request(folder, manifest, batch=2, threads=1))
    try:
        outputs = runner.outputs(images)
        for found, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        judged = evaluate(runner.outputs, data, how, manifest.resolution, 3, reference)
    finally:
        runner.close()
    assert isinstance(judged.accuracy, Score)
    assert (judged.accuracy.agreement, judged.accuracy.images, judged.right) == (1.0, len(data), None)
    assert judged.dataset_sha256 == data.sha256()


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("torch-compile", "faster_vit_scenes_detector"),
        ("torch-fused", "faster_vit_scenes_detector"),
        ("torch-fused", "faster_vit_scenes_segmenter"),
    ],
)
def test_every_form_in_pytorch_finds_the_same(
    tmp_path: Path, backend: str, name: str, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Compiled without inductor, which takes minutes: what it is given must be one graph that computes the same."""
    monkeypatch.delenv("TRANSFORMERS_DISABLE_TORCH_CHECK", raising=False)  # another test may have opened a backend
    real, counters = torch.compile, torch._dynamo.utils.counters

    def by_tracing_alone(model: torch.nn.Module, **options: object) -> object:
        counters.clear()
        return real(model, backend="eager", dynamic=False)

    monkeypatch.setattr(torch, "compile", by_tracing_alone)
    folder = detector(tmp_path / "export")
    spec = ModelSpec(name)
    manifest = Manifest(**{**vars(Manifest.read(folder)), "spec": spec.record(), "task": spec.chosen_task})
    model, _ = build_model(spec, WeightSource.from_record(manifest.weights))
    images = np.random.default_rng(0).standard_normal((3, 3, *manifest.resolution), np.float32)
    with torch.inference_mode():
        expected = [output.numpy() for output in model(torch.from_numpy(images))]
    request = Request(folder, manifest, batch=3, threads=1)
    if (reason := BACKENDS[backend].why_not(request)) is not None:
        pytest.skip(reason)
    runner = BACKENDS[backend].open(request)
    try:
        found = runner.outputs(images)
        assert backend != "torch-compile" or counters["stats"]["unique_graphs"] == 1
    finally:
        runner.close()
    for output, one, wanted in zip(OUTPUTS[spec.chosen_task], found, expected, strict=True):
        if output in ("masks", "labels"):  # the surest class; of two that are as sure, either
            assert (one == wanted).mean() > 0.99
        else:
            np.testing.assert_allclose(one, wanted, rtol=0, atol=1e-3)


def test_a_detector_is_scored_as_coco_does_and_its_agreement_is_with_the_reference(tmp_path: Path, coco: Path) -> None:
    manifest = Manifest.read(detector(tmp_path / "export"))
    data = open_data("detection", str(coco), 0.0)
    check_dataset(manifest, data)
    boxes = np.array([[DOOR, (0.6, 0.1, 0.9, 0.4)]] * 4, np.float32)
    scores, labels = np.array([[0.9, 0.3]] * 4, np.float32), np.array([[1, 0]] * 4, np.float32)

    def found(images: np.ndarray) -> Outputs:
        return boxes[: len(images)], scores[: len(images)], labels[: len(images)]

    how = Preprocessing(**manifest.preprocessing)
    moved = np.clip(boxes + 0.2, 0, 1)
    known = np.ones(4, bool)
    for reference, agreement in ((None, None), (Reference((boxes, scores, labels), known), 1.0),
                                 (Reference((moved, scores, labels), known), 0.0)):  # fmt: skip
        accuracy = evaluate(found, data, how, manifest.resolution, 3, reference).accuracy
        assert isinstance(accuracy, Score)
        assert accuracy.metric == "mAP"
        assert accuracy.value == pytest.approx(1.0)  # the only object of its category, found surest in each picture
        assert accuracy.agreement == agreement


def test_examples_hold_what_both_found_in_pictures_spread_over_the_data(tmp_path: Path, coco: Path) -> None:
    folder = detector(tmp_path / "export")
    manifest, data = Manifest.read(folder), open_data("detection", str(coco), 0.0)
    found = (np.array([[DOOR]], np.float32), np.array([[0.9]], np.float32), np.array([[1]], np.float32))
    theirs = tuple(np.concatenate([x] * 4) for x in found)
    theirs[1][:] = np.array([[0.1], [0.2], [0.3], [0.4]])
    picture = data.images[2]
    assert isinstance(picture, Path)
    content = picture.read_bytes()
    seen = []

    def outputs_of(images: np.ndarray) -> Outputs:
        seen.append(images.shape)
        return found

    reference = Reference(theirs, np.ones(4, bool))
    arguments = {"export": folder, "backend": "ort-cpu"}
    output = tmp_path / "examples"
    path = take_examples(outputs_of, data, manifest, reference, 2, output, **arguments)  # type: ignore[arg-type]
    assert path is not None
    assert seen == [(1, 3, 128, 128)] * 2
    with np.load(path) as kept:
        assert kept["numbers"].tolist() == [0, 2]
        np.testing.assert_allclose(kept["reference_1"].ravel(), [0.1, 0.3])
    assert [one.picture for one in draw_examples(output, data)] == ["0.png", "2.png"]
    picture.write_bytes(b"")
    try:
        path = take_examples(outputs_of, data, manifest, None, 2, output, **arguments)  # type: ignore[arg-type]
        assert [one.picture for one in draw_examples(output, data)] == ["0.png"]
    finally:
        picture.write_bytes(content)


def test_what_cannot_be_judged_or_drawn_is_said_before_anything_is_measured(
    tmp_path: Path, masks: Path, coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastervit_trt.cli import bench

    paint, find = segmenter(tmp_path / "paint"), detector(tmp_path / "find")
    backbone = segmenter(tmp_path / "backbone")
    content = json.loads((backbone / "manifest.json").read_text())
    content |= {"task": "classification", "outputs": [{"name": "stage3", "shape": ["batch", 1, 2, 2]}]}
    (backbone / "manifest.json").write_text(json.dumps(content))
    cases: list[tuple[list[Any], str]] = [
        ([paint, find, "--data", masks], "different tasks: segmentation ('paint'), detection ('find'); "),
        ([paint, "--data", coco], "data for detection, but the model segments"),
        ([find, "--data", masks], "data for segmentation, but the model detects"),
        ([paint, "--examples", 2], "--examples are pictures of the data, and there is none; add --data"),
        ([backbone, "--data", "digits"], "is a backbone without classes; leave out --data"),
        ([backbone, "--data", "digits", "--examples", 1], "--examples draws boxes and masks, and a classifier"),
        (["--model", "faster_vit_0_224", "--random-init", "--task", "dreaming"], "unknown task 'dreaming'"),
    ]  # fmt: skip
    for arguments, said in cases:
        with pytest.raises(SystemExit) as stop:
            bench.main([str(argument) for argument in (*arguments, *QUICK_BENCH, "--output", tmp_path / "report")])
        assert stop.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "report").exists()


def test_data_of_other_classes_are_refused(tmp_path: Path, masks: Path) -> None:
    (root := tmp_path / "streets").mkdir()
    for name in ("images", "masks"):
        (root / name).symlink_to(masks / name)
    (root / "classes.txt").write_text("\n".join([*CLASSES, "sky"]) + "\n")
    manifest = Manifest.read(segmenter(tmp_path / "export"))
    check_dataset(manifest, open_data("segmentation", str(masks), 0.0))
    with pytest.raises(FasterViTError, match="data 'streets' has 5 classes, faster_vit_digits_s 4"):
        check_dataset(manifest, open_data("segmentation", str(root), 0.0))


@pytest.mark.parametrize(("resolution", "images"), [(SIDES, 32), ((224, 224), 32), ((576, 960), 2), ((2000, 2000), 1)])
def test_fewer_large_images_are_looked_at_at_once(resolution: tuple[int, int], images: int) -> None:
    assert images_at_once(resolution) == images
