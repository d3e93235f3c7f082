import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.rounding import RoundedArithmetic
from fastervit_trt.models import create_model
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, pretrained_source, save_model
from fastervit_trt.models.tasks.deciding import decide_boxes, decide_masks
from fastervit_trt.models.tasks.heads import DetectionHead, SegmentationHead
from fastervit_trt.models.tasks.model import TaskModel

NAME = "faster_vit_digits_s"
DETECTION = DetectionHead(hidden_size=16, feedforward=32, decoder_layers=2, heads=2, queries=20, denoising=10)
SEGMENTATION = SegmentationHead(hidden_size=16)


@pytest.mark.parametrize("size", [(128, 128), (96, 160)], ids=str)
def test_the_outputs_are_those_that_an_export_names(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    detector = create_model(NAME, size, task="detection", num_classes=7, head=DETECTION).eval()
    boxes, scores, labels = detector(x)
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 20, 4), (2, 20), (2, 20))
    assert ((scores > 0) & (scores < 1)).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert set(labels.unique().tolist()) <= set(range(7))
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    (masks,) = create_model(NAME, size, task="segmentation", num_classes=7, head=SEGMENTATION).eval()(x)
    assert masks.shape == (2, *size)
    assert set(masks.unique().tolist()) <= set(range(7))


def test_a_model_of_another_size_is_the_model_built_at_that_size() -> None:
    for task, head in (("detection", DETECTION), ("segmentation", SEGMENTATION)):
        torch.manual_seed(0)
        model = create_model(NAME, (128, 128), task=task, num_classes=7, head=head).eval()
        other = create_model(NAME, (128, 192), task=task, num_classes=7, head=head).eval()
        own = other.state_dict()
        parameters = {key: value for key, value in model.state_dict().items() if value.shape == own[key].shape}
        other.load_state_dict(parameters, strict=False)
        other.backbone.reset_derived_buffers()
        model.set_resolution((128, 192))
        x = torch.randn(1, 3, 128, 192)
        for one, same in zip(model.raw(x), other.raw(x), strict=True):
            torch.testing.assert_close(one, same)


def test_backbones_start_as_everywhere_else_in_this_project() -> None:
    """transformers would give its detector's BatchNorms weights around 0."""
    torch.manual_seed(3)
    detector = create_model(NAME, 128, task="detection", head=DETECTION)
    norms = [module for module in detector.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)
    assert detector.network.model.backbone.model.trunk is detector.backbone
    assert [info.stage for info in detector.backbone.feature_info] == [1, 2, 3]


def test_classes_are_those_of_ade20k_and_coco_unless_asked_for() -> None:
    assert ModelSpec("faster_vit_0_any_res", task="segmentation").config().num_classes == 150
    assert ModelSpec("faster_vit_0_any_res", task="detection").config().num_classes == 80
    assert ModelSpec("faster_vit_0_any_res", task="detection", num_classes=3).config().num_classes == 3
    assert ModelSpec("faster_vit_0_any_res").config().num_classes == 1000
    spec = ModelSpec("faster_vit_0_224", task="detection")
    assert (spec.preprocessing.crop_mode, spec.preprocessing.crop_pct) == ("squash", 1.0)
    assert ModelSpec.from_record(spec.record()) == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "tracking"}, "unknown task 'tracking'; choose one of classification, segmentation, detection"),
        ({"task": "detection", "features_only": True}, "leave out either the task or features_only"),
        ({"task": "detection", "resolution": (100, 128)}, "choose multiples of 32, as 96x128"),
        ({"task": "detection", "resolution": 64}, "20 queries .* which are 84|300 queries .* which are 84"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_said_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(FasterViTError, match=message) as caught:
        create_model(NAME, **options)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)


def test_a_model_that_refuses_a_size_stays_as_it_was() -> None:
    model = create_model(NAME, 128, task="detection", head=DETECTION).eval()
    with pytest.raises(FasterViTError, match="lays each map doubled"):
        model.set_resolution((128, 144))
    assert model.config.resolution == (128, 128)
    assert model(torch.randn(1, 3, 128, 128))[0].shape == (1, 20, 4)


def test_a_task_model_has_to_say_all_that_an_export_asks() -> None:
    class Headless(TaskModel):
        def raw(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (images,)

        def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return raw

    with pytest.raises(TypeError, match=r"abstract.*backbone"):
        Headless()  # type: ignore[abstract]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(task: str) -> None:
    head = DETECTION if task == "detection" else SEGMENTATION
    model = create_model(NAME, 128, task=task, num_classes=3, head=head).eval()  # type: ignore[call-overload]
    twin = copy.deepcopy(model)
    x = torch.randn(1, 3, 128, 128)
    before = model.raw(x)
    for parameter in twin.parameters():
        parameter.add_(0.1)
    assert all(torch.equal(one, same) for one, same in zip(model.raw(x), before, strict=True))
    assert not torch.allclose(twin.raw(x)[0], before[0])


@torch.no_grad()
def test_queries_are_picked_by_the_scores_that_raw_tells() -> None:
    name = "faster_vit_scenes_detector"  # trained: the classes of fresh ones are alike
    detector, _ = build_model(ModelSpec(name), pretrained_source(name))
    assert isinstance(detector, TaskModel)
    seen = []
    score_head = detector.network.model.enc_score_head
    score_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    raw = detector.raw(torch.randn(2, 3, 128, 128))
    assert torch.equal(raw[2], seen[0].amax(-1))
    picked = detector.picked(*raw)
    assert picked is not None
    assert torch.equal(raw[2].gather(1, picked), raw[2].sort(dim=1, descending=True).values[:, :30])


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fastervit_trt.models.tasks.")]:
        if not name.endswith(".heads"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FasterViTError, match=r"segmentation needs transformers: pip install 'fastervit-trt\[tasks\]'"):
        create_model(NAME, 128, task="segmentation")
    assert create_model(NAME).config.num_classes == 10  # classifiers do not


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_weights_come_back_and_a_classifiers_are_refused(tmp_path: Path, task: str) -> None:
    spec = ModelSpec(NAME, resolution=(160, 160), num_classes=5, task=task)
    model, _ = build_model(spec, WeightSource.random(1))
    save_model(model, tmp_path / "weights.safetensors")
    again, tolerated = build_model(spec, WeightSource.checkpoint(tmp_path / "weights.safetensors"))
    assert tolerated == []
    x = torch.randn(1, 3, 160, 160)
    for one, same in zip(model.raw(x), again.raw(x), strict=True):  # type: ignore[union-attr]
        assert torch.equal(one, same)
    with pytest.raises(FasterViTError, match="no detector or segmenter in it"):
        build_model(spec, pretrained_source(NAME))


def test_masks_are_the_largest_logits_of_the_enlarged_map() -> None:
    logits = torch.randn(2, 5, 6, 9)
    masks = decide_masks(logits, (24, 36)).numpy()
    for y, x in [(0, 0), (23, 35), (10, 17), (11, 2)]:
        # Half-pixel centres, without corners aligned: the usual bilinear rule, by hand.
        row, column = np.clip((y + 0.5) / 4 - 0.5, 0, None), np.clip((x + 0.5) / 4 - 0.5, 0, None)
        top, left = int(row), int(column)
        bottom, right = min(top + 1, 5), min(left + 1, 8)
        v, u = row - top, column - left
        values = logits.numpy()
        upper = values[:, :, top, left] * (1 - u) + values[:, :, top, right] * u
        lower = values[:, :, bottom, left] * (1 - u) + values[:, :, bottom, right] * u
        assert (masks[:, y, x] == (upper * (1 - v) + lower * v).argmax(1)).all()


def test_boxes_are_the_surest_pairs_of_query_and_class() -> None:
    logits, centred = torch.randn(2, 6, 3), torch.rand(2, 6, 4)
    boxes, scores, labels = decide_boxes(logits, centred)
    for image in range(2):
        pairs = [(float(logits[image, q, c].sigmoid()), q, c) for q in range(6) for c in range(3)]
        for slot, (score, query, label) in enumerate(sorted(pairs, reverse=True)[:6]):
            x, y, w, h = centred[image, query].tolist()
            assert float(scores[image, slot]) == pytest.approx(score)
            assert float(labels[image, slot]) == label
            assert boxes[image, slot].tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1e-6)


def test_a_detector_can_be_verified_whatever_another_of_the_process_was_used_for() -> None:
    """transformers keeps tables of positions for all of its models; one made while training served no inference."""
    size, kinds = (64, 64), (torch.float32, torch.float16)
    made = [create_model(NAME, size, task="detection", num_classes=7, head=DETECTION).eval() for _ in range(2)]
    detectors = [deploy_form(detector)[0] for detector in made]
    for dtype in kinds:
        detectors[0].to(dtype).raw(torch.zeros(1, 3, *size, dtype=dtype))
    for dtype in kinds:
        with torch.inference_mode(), RoundedArithmetic(torch.float16):
            logits, *_ = detectors[1].to(dtype).raw(torch.zeros(1, 3, *size, dtype=dtype))
        assert logits.isfinite().all()
