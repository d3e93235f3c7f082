"""mAP of detections: pycocotools' own on the same files, resamples of its images, agreement, what is not a number."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastervit_trt.detections import box_overlaps
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated import AnnotatedImages, Objects, open_annotated
from fastervit_trt.scoring import Scorer, paired_difference, scorer
from tests.models.annotated.layouts import CATEGORIES, SIZES, Json, coco

QUERIES = 40
Outputs = list[np.ndarray]


def in_memory(*objects: Sequence[tuple[float, float, float, float, int]], classes: int = 2) -> AnnotatedImages:
    """Data of 200x100 pixels: per image, left, top, right, bottom in shares, and the class."""
    sizes = ((100, 200),) * len(objects)
    return AnnotatedImages("detection", "small", (), sizes, tuple(map(annotated, objects)), classes, ())


def annotated(rows: Sequence[tuple[float, ...]]) -> Objects:
    values = np.array(rows, np.float64).reshape(-1, 5)
    boxes = values[:, :4]
    areas = 20_000 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return Objects(boxes, values[:, 4].astype(int), np.zeros(len(values), bool), areas)


def outputs(*rows: tuple[float, float, float, float, float, int]) -> Outputs:
    """Of one image: boxes, scores, labels."""
    values = np.array(rows, np.float32).reshape(1, -1, 6)
    return [values[:, :, :4], values[:, :, 4], values[:, :, 5]]


def scored(data: AnnotatedImages, *found: Outputs, reference: Sequence[Outputs] | None = None) -> Scorer:
    """All images of ``data``, one a batch."""
    made = scorer(data)
    for i, one in enumerate(found):
        made.add(one, np.array([i]), None if reference is None else reference[i])
    return made


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnnotatedImages]:
    """60 images of four sizes with up to 6 objects, some of them crowds, in COCO's layout on disk."""
    rng = np.random.default_rng(1)
    content: Json = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": v} for k, v in CATEGORIES.items()],
    }
    for i in range(60):
        height, width = SIZES[i % 4]
        content["images"].append({"id": 7 * i + 3, "file_name": f"{i % 4}.jpg", "height": height, "width": width})
        for _ in range(rng.integers(0, 7)):
            w, h = rng.uniform(4, width / 2), rng.uniform(4, height / 2)
            box = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 7 * i + 3,
                    "category_id": int(rng.choice(list(CATEGORIES))),
                    "bbox": box,
                    "area": w * h * rng.uniform(0.4, 1) * (30 if rng.random() < 0.2 else 1),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    root = coco(tmp_path_factory.mktemp("coco"), content)
    return root, open_annotated("detection", str(root))


def guesses(data: AnnotatedImages, seed: int, blur: float) -> list[Outputs]:
    """Of each image: its objects, displaced and some with another label, among other boxes; scores fall."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(len(data)):
        objects = data.annotation(i)
        assert isinstance(objects, Objects)
        boxes = rng.random((QUERIES, 4)) * 0.6
        boxes[:, 2:] += boxes[:, :2] * 0.4 + 0.05
        labels, scores = rng.integers(0, data.classes, QUERIES), rng.random(QUERIES) * 0.5
        n = len(objects)
        boxes[:n] = objects.boxes + rng.normal(0, blur, (n, 4))
        labels[:n] = np.where(rng.random(n) < 0.9, objects.labels, labels[:n])
        scores[:n] = 0.2 + 0.7 * rng.random(n)
        order = np.argsort(-scores)
        found.append([values[order][None].astype(np.float32) for values in (boxes, scores, labels)])
    return found


def as_published(root: Path, data: AnnotatedImages, found: Sequence[Outputs], file: Path) -> Any:
    """COCOeval as everybody runs it: from the annotations' file and a file of results."""
    ids = sorted(CATEGORIES)
    images = sorted(
        json.loads((root / "annotations/instances_val2017.json").read_text())["images"], key=lambda i: i["id"]
    )
    results = []
    for image, (boxes, scores, labels) in zip(images, found, strict=True):
        for (left, top, right, bottom), score, label in zip(boxes[0].astype(float), scores[0], labels[0], strict=True):
            box = [left * image["width"], top * image["height"]]
            box += [max(right - left, 0) * image["width"], max(bottom - top, 0) * image["height"]]
            result = {"image_id": image["id"], "category_id": ids[int(label)], "bbox": box, "score": float(score)}
            results.append(result)
    file.write_text(json.dumps(results))
    truth = COCO(root / "annotations" / "instances_val2017.json")
    evaluation = COCOeval(truth, truth.loadRes(str(file)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_the_figures_are_those_of_pycocotools(many: tuple[Path, AnnotatedImages], tmp_path: Path) -> None:
    root, data = many
    found = guesses(data, 2, 0.02)
    score = scored(data, *found).result()
    published = as_published(root, data, found, tmp_path / "results.json")
    names = ["mAP@50", "mAP@75", "mAP small", "mAP medium", "mAP large"]
    expected = dict(zip(["mAP", *names], published.stats[:6], strict=True)) | {"mAR": published.stats[8]}
    assert 0.2 < expected["mAP"] < 0.8
    assert expected.pop("mAP") == pytest.approx(score.value, abs=1e-12)
    assert {name: value for name, value in expected.items() if value >= 0} == pytest.approx(score.further, abs=1e-12)
    assert (score.metric, score.images, score.agreement, score.non_finite) == ("mAP", 60, None, 0)


def test_pycocotools_prints_nothing(many: tuple[Path, AnnotatedImages], capsys: pytest.CaptureFixture[str]) -> None:
    _, data = many
    scored(data, *guesses(data, 2, 0.02)).result()
    assert capsys.readouterr() == ("", "")


def test_a_resample_is_what_pycocotools_makes_of_its_images(many: tuple[Path, AnnotatedImages], tmp_path: Path) -> None:
    root, data = many
    found = guesses(data, 3, 0.03)
    published = as_published(root, data, found, tmp_path / "results.json")
    contributions = scored(data, *found).per_image()
    weights = np.random.default_rng(4).multinomial(60, np.full(60, 1 / 60), size=3)
    weights = np.concatenate([np.ones((1, 60), int), weights, np.eye(60, dtype=int)[:2]])
    values = contributions.values(weights)
    for row, value in zip(weights, values, strict=True):
        expected = accumulated(published, np.repeat(np.arange(60), row))
        assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert not np.isnan(values[:4]).any()


def test_equal_scores_are_ranked_as_pycocotools_ranks_them(many: tuple[Path, AnnotatedImages]) -> None:
    _, data = many
    found = [[boxes, np.round(2 * scores) / 2, labels] for boxes, scores, labels in guesses(data, 3, 0.02)]
    made = scored(data, *found)
    assert made.per_image().values(np.ones((1, 60), int))[0] == pytest.approx(made.result().value, abs=1e-12)


def accumulated(evaluation: Any, images: np.ndarray) -> float:
    """mAP by pycocotools of ``images``, some of them several times."""
    again = copy.copy(evaluation)
    each, ranges = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    starts = range(0, len(evaluation.evalImgs), each)
    again.evalImgs = [evaluation.evalImgs[start + image] for start in starts for image in images]
    assert len(starts) == ranges * len(CATEGORIES)
    again.params = copy.deepcopy(evaluation.params)
    again.params.imgIds = list(range(len(images)))
    again._paramsEval = again.params
    again.accumulate()
    precision = again.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean()) if precision.max() > -1 else float("nan")


def test_by_hand() -> None:
    data = in_memory([(0.1, 0.1, 0.3, 0.5, 0), (0.6, 0.6, 0.8, 0.8, 1)], [(0.2, 0.2, 0.6, 0.6, 0)], [])
    found = [
        outputs((0.1, 0.1, 0.3, 0.4, 0.9, 0), (0.6, 0.6, 0.8, 0.8, 0.8, 1)),  # IoU 0.75, and all of it
        outputs((0.2, 0.2, 0.6, 0.6, 0.7, 1)),  # another label
        outputs(),
    ]
    score = scored(data, *found).result()
    # class 0: one of two found where IoU 0.75 suffices, so recalls 0 to 0.5 are reached; class 1: all of it
    half = 51 / 101
    assert score.further["mAP@50"] == pytest.approx((half + 1) / 2)
    assert score.further["mAP@75"] == pytest.approx((half + 1) / 2, abs=0.26)  # on the edge: float32 decides
    assert score.value == pytest.approx((0.5 * half + 1) / 2, abs=0.03)
    np.testing.assert_allclose(
        box_overlaps(found[0][0][0], np.array([[0.1, 0.1, 0.3, 0.5], [0.5, 0.5, 0.4, 0.4]])),
        [[0.75, 0], [0, 0]],
        atol=1e-6,
    )


def test_what_is_not_a_number_is_no_detection() -> None:
    data = in_memory([(0.1, 0.1, 0.3, 0.5, 0)])
    good = (0.1, 0.1, 0.3, 0.5, 0.9, 0)
    nan, inf = float("nan"), float("inf")
    bad = [(*good[:4], nan, 0), (nan, *good[1:]), (*good[:4], inf, 0), (*good[:5], nan)]
    made = scored(data, outputs(*bad, good))
    assert (made.result().value, made.result().non_finite) == (pytest.approx(1), 4)
    broken = scored(data, outputs(*bad[:3])).result()
    assert (broken.value, broken.non_finite) == (0, 3)
    turned = scored(data, outputs((0.3, 0.5, 0.1, 0.1, 0.9, 0))).result()  # its right is left of its left
    assert turned.value == 0


def test_at_most_100_detections_per_image_and_class_count() -> None:
    data = in_memory([(0.1, 0.1, 0.3, 0.5, 0)])
    others = [(0.5, 0.5, 0.9, 0.9, 0.8, 0)] * 99
    right = (0.1, 0.1, 0.3, 0.5, 0.1, 0)
    assert scored(data, outputs(*others, right)).result().value == pytest.approx(1 / 100)
    assert scored(data, outputs(*others, others[0], right)).result().value == 0


def test_only_images_that_were_scored_count(many: tuple[Path, AnnotatedImages]) -> None:
    _, data = many
    found = guesses(data, 5, 0.02)
    some, backwards = scorer(data), scorer(data)
    for i in range(20):
        some.add(found[i], np.array([i]))
    for start in (10, 0):
        batch = [np.concatenate(values) for values in zip(*found[start : start + 10], strict=True)]
        backwards.add(batch, np.arange(start, start + 10))
    assert some.result() == backwards.result()
    assert some.result().images == 20
    with pytest.raises(ValueError, match="image 3 was scored already"):
        some.add(found[3], np.array([3]))
    with pytest.raises(ValueError, match="for all batches or for none"):
        some.add(found[30], np.array([30]), found[30])
    before = some.result().value
    some.add(found[30], np.array([30]))
    assert some.result().images == 21
    assert some.result().value != before


def test_agreement_is_of_confident_detections_both_ways() -> None:
    data = in_memory([(0.1, 0.1, 0.3, 0.5, 0)], [(0.1, 0.1, 0.3, 0.5, 0)])
    one, two = (0.1, 0.1, 0.3, 0.5, 0.9, 0), (0.6, 0.6, 0.8, 0.8, 0.5, 1)
    sure, unsure = outputs(one, two), outputs((0.1, 0.1, 0.3, 0.5, 0.4, 0), (0.6, 0.6, 0.8, 0.8, 0.3, 1))

    def agreement(ours: Outputs, theirs: Outputs = sure) -> float:
        share = scored(data, ours, unsure, reference=[theirs, unsure]).result().agreement
        assert share is not None
        return share

    # Two confident detections of the first image, the surest of the second: three a side.
    assert agreement(sure) == 1
    assert agreement(outputs(one, (0.6, 0.6, 0.8, 0.8, 0.45, 1))) == 1  # not confident any more, but there
    assert agreement(outputs((0.1, 0.1, 0.3, 0.5, 0.79, 0), two)) == pytest.approx(2 / 3)  # another score
    assert agreement(outputs(one, (*two[:5], 0))) == pytest.approx(2 / 3)  # another label
    assert agreement(outputs((0.1, 0.1, 0.3, 0.45, 0.9, 0), two)) == pytest.approx(2 / 3)  # IoU 0.875
    assert agreement(outputs((0.1, 0.1, 0.3, 0.47, 0.9, 0), two)) == 1  # IoU 0.925
    assert agreement(outputs(one)) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))  # F1 of 2 of 3, and 2 of 2
    assert agreement(sure, outputs(one)) == pytest.approx(0.8)
    assert agreement(outputs()) == pytest.approx(2 * (1 / 3) / (1 / 3 + 1))


def test_agreement_where_nothing_agrees() -> None:
    data = in_memory([(0.1, 0.1, 0.3, 0.5, 0)])
    one = outputs((0.1, 0.1, 0.3, 0.5, 0.9, 0))
    assert scored(data, outputs(), reference=[one]).result().agreement == 0
    assert scored(data, outputs(), reference=[outputs()]).result().agreement == 1


def test_a_worse_model_on_the_same_images(many: tuple[Path, AnnotatedImages]) -> None:
    _, data = many
    good, bad = (scored(data, *guesses(data, 6, blur)) for blur in (0.01, 0.03))
    drop = paired_difference(good, bad)
    assert drop.points == pytest.approx(100 * (good.result().value - bad.result().value))
    assert 0 < drop.low < drop.points < drop.high


def test_intervals_are_narrower_of_more_images(many: tuple[Path, AnnotatedImages]) -> None:
    _, data = many
    found = guesses(data, 7, 0.02)
    widths = []
    for images in (15, 60):
        score = scored(data, *found[:images]).result()
        assert score.low < score.value < score.high
        widths.append(score.high - score.low)
    assert 1.3 < widths[0] / widths[1] < 3  # the root of 4, give or take


def test_no_object_at_all_is_an_error() -> None:
    with pytest.raises(FasterViTError, match="there is no object on the 1 images of 'small' scored"):
        scored(in_memory([]), outputs((0.1, 0.1, 0.3, 0.5, 0.9, 0))).result()
