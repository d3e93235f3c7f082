from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace

import pytest

from fastervit_trt.benchmarks.published import scores as module
from fastervit_trt.benchmarks.published.points import load_published
from fastervit_trt.benchmarks.published.scores import PublishedScore, load_scores, published_scores

TASKS = [score for score in load_scores() if score.task != "classification"]
CASCADE = "Cascade Mask R-CNN, 3x schedule"
# Groups of similar size, the paper's own last.
SIZES = [
    ("Swin-T", "ConvNeXt-T", "DeiT-S/16", "FasterViT-2"),
    ("Swin-S", "X101-32", "ConvNeXt-S", "FasterViT-3"),
    ("X101-64", "Swin-B", "ConvNeXt-B", "FasterViT-4"),
]


def of(metric: str, method: str) -> dict[str, PublishedScore]:
    return {score.model: score for score in published_scores(metric) if score.method == method}


def test_every_row_of_the_table_becomes_a_score() -> None:
    with module._TABLE.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(set(row) == set(rows[0]) and None not in row.values() for row in rows)  # no cell too many or too few
    found = [(s.model, s.method, s.metric, f"{100 * s.value:.4g}") for s in TASKS]
    assert found == [(r["model"], r["method"], r["metric"], f"{float(r['value_percent']):.4g}") for r in rows]
    assert len(rows) == 12 * 6 + 1 + 8 + 10


def test_top1_is_that_of_the_classifiers_and_theirs_alone() -> None:
    points = [point for point in load_published() if point.top1 is not None]
    scores = published_scores("top-1")
    assert [(s.model, s.value, s.throughput_img_per_s, s.resolution, s.url) for s in scores] == [
        (p.model, p.top1, p.throughput_img_per_s, p.resolution, p.url) for p in points
    ]
    assert {s.task for s in scores} == {"classification"}
    assert {p.model for p in points} >= {"FasterViT-0", "Swin-T", "MambaVision-T"}


@pytest.mark.parametrize(
    ("metric", "count"), [("mAP", 13), ("mAP@50", 12), ("mask mAP@75", 12), ("mIoU", 8), ("mIoU, multi-scale", 10)]
)
def test_a_metric_has_all_its_scores_and_no_others(metric: str, count: int) -> None:
    scores = published_scores(metric)
    assert len(scores) == count
    assert {s.metric for s in scores} == {metric}
    assert len({s.dataset for s in scores}) == 1


def test_a_metric_that_nobody_published_is_empty() -> None:
    assert published_scores("HOTA") == []


def test_callers_cannot_change_what_others_load() -> None:
    load_scores().clear()
    published_scores("mAP").clear()
    assert published_scores("mAP")


@pytest.mark.parametrize("score", TASKS, ids=lambda s: f"{s.model}, {s.method}, {s.metric}")
def test_scores_are_complete_and_plausible(score: PublishedScore) -> None:
    assert score.model and score.family and score.framework and score.precision and score.source
    assert score.url.startswith("https://")
    assert 0.4 < score.value < 0.75
    assert score.throughput_img_per_s is None or 50 < score.throughput_img_per_s < 500
    assert bool(score.device) == (score.throughput_img_per_s is not None)
    assert score.gflops is None or (score.task == "segmentation" and 900 < score.gflops < 1300)
    own_file = "README" in score.source
    assert own_file or ("transcription" in score.source and score.device == "not stated")


def test_no_score_is_there_twice() -> None:
    keys = Counter((s.model, s.dataset, s.method, s.metric) for s in TASKS)
    assert not [key for key, count in keys.items() if count > 1]


def test_a_stricter_overlap_and_masks_score_lower_than_boxes() -> None:
    boxes, masks = of("mAP", CASCADE), of("mask mAP", CASCADE)
    for model, score in boxes.items():
        for kind, mean in (("", score), ("mask ", masks[model])):
            loose, strict = of(f"{kind}mAP@50", CASCADE)[model].value, of(f"{kind}mAP@75", CASCADE)[model].value
            assert strict < loose
            assert 0.55 * loose < mean.value < strict
        assert masks[model].value < score.value
        assert replace(masks[model], metric="mAP", value=score.value) == score  # one model, one speed


def test_the_paper_claims_the_best_of_each_size_at_a_speed_of_its_own() -> None:
    scores = of("mAP", CASCADE)
    assert [model for group in SIZES for model in group] == list(scores)
    for *rivals, own in SIZES:
        assert all(scores[own].value > scores[rival].value for rival in rivals)
        assert all(scores[own].throughput_img_per_s > scores[rival].throughput_img_per_s for rival in rivals)  # type: ignore[operator]


def test_several_scales_score_higher_and_say_that_the_speed_is_of_one() -> None:
    one, several = of("mIoU", "UperNet"), of("mIoU, multi-scale", "UperNet")
    assert set(several) - set(one) == {"ConvNeXt-T", "ConvNeXt-S", "ConvNeXt-B"}
    assert set(one) - set(several) == {"Swin-T"} and "cut off" in one["Swin-T"].remark
    for model, score in several.items():
        assert "one scale" in score.remark
        if model in one:
            assert score.value > one[model].value
            assert score.throughput_img_per_s == one[model].throughput_img_per_s


def test_figures_of_the_text_are_there() -> None:
    dino = of("mAP", "DINO, 4 scales, 12 epochs")["FasterViT-4-21K-224"]
    assert (dino.value, dino.throughput_img_per_s, dino.device) == (pytest.approx(0.5516), None, "")
    assert of("mIoU", "UperNet")["FasterViT-4"].value == pytest.approx(0.491)
    assert of("mIoU", "UperNet")["FasterViT-4"].throughput_img_per_s == 202
    assert of("mask mAP@75", CASCADE)["FasterViT-4"].value == pytest.approx(0.498)
