from __future__ import annotations

import csv
from collections import Counter
from itertools import pairwise

import pytest
import torch

from fastervit_trt.benchmarks.published import points as module
from fastervit_trt.benchmarks.published.points import PublishedPoint, load_published
from fastervit_trt.models import create_model

POINTS = load_published()
PAPER = [p for p in POINTS if p.family == "FasterViT" and p.device == "NVIDIA A100"]
KNOWN_TYPOS = {"FasterViT-4": 365.6, "FasterViT-5": 957.5}  # published otherwise; by the released code


def test_every_row_of_the_table_becomes_a_point() -> None:
    with module._TABLE.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(POINTS) == len(rows) > 60
    assert [(p.model, str(p.resolution), p.remark) for p in POINTS] == [
        (r["model"], r["resolution"], r["remark"]) for r in rows
    ]
    assert all(set(row) == set(rows[0]) and None not in row.values() for row in rows)  # no cell too many or too few


def test_callers_cannot_change_what_others_load() -> None:
    load_published().clear()
    assert len(load_published()) == len(POINTS)


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p.model}, {p.device}, {p.framework}, {p.precision}")
def test_points_are_complete_and_plausible(point: PublishedPoint) -> None:
    assert point.model and point.family and point.framework and point.precision and point.source
    assert point.url.startswith("https://")
    assert point.resolution in (224, 240, 256, 288, 384, 512, 768)
    for share in (point.top1, point.top5, point.top1_of_weights):
        assert share is None or 0.7 < share < 0.99
    assert point.top5 is None or point.top1 is None or point.top5 > point.top1
    assert point.params_m is None or 5 < point.params_m < 1500
    assert point.gflops is None or 0.5 < point.gflops < 500
    assert point.throughput_img_per_s is None or 50 < point.throughput_img_per_s < 10_000
    assert point.latency_ms is None or 0.5 < point.latency_ms < 100
    timed = point.throughput_img_per_s is not None or point.latency_ms is not None
    assert timed == bool(point.device)
    assert point.top1 is None or point.top1_of_weights is None


def test_no_point_is_there_twice() -> None:
    keys = Counter((p.model, p.device, p.batch, p.precision, p.framework, p.resolution, p.source) for p in POINTS)
    assert not [key for key, count in keys.items() if count > 1]


def test_accuracy_of_weights_is_never_that_of_an_engine() -> None:
    engines = [p for p in POINTS if "TensorRT" in p.framework]
    assert len(engines) > 20
    assert {p.top1 for p in engines} == {None}
    assert {p.device for p in engines} == {"NVIDIA T4"}


def test_the_papers_models_trade_throughput_for_accuracy() -> None:
    assert [p.model for p in PAPER] == [f"FasterViT-{size}" for size in range(7)]
    for small, large in pairwise(PAPER):
        assert small.top1 is not None and large.top1 is not None and small.top1 < large.top1
        assert small.throughput_img_per_s and large.throughput_img_per_s
        assert small.throughput_img_per_s > large.throughput_img_per_s
        assert small.params_m and large.params_m and small.params_m < large.params_m
    assert (PAPER[0].top1, PAPER[0].throughput_img_per_s, PAPER[0].batch) == (pytest.approx(0.821), 5802, 128)


def test_higher_resolutions_of_21k_are_more_accurate_and_have_no_speed() -> None:
    points = [p for p in POINTS if "21K" in p.model]
    assert [p.resolution for p in points] == [224, 384, 512, 768]
    assert [p.top1 for p in points] == sorted(p.top1 for p in points if p.top1)
    assert {p.throughput_img_per_s for p in points} == {None}


@pytest.mark.parametrize("point", [p for p in POINTS if "FasterViT README" in p.source], ids=lambda p: p.model)
def test_published_parameters_are_those_of_our_models_but_for_known_typos(point: PublishedPoint) -> None:
    name = point.model.replace("FasterViT-", "faster_vit_").replace("-21K-", "_21k_")
    with torch.device("meta"):
        model = create_model(name if "21k" in name else f"{name}_224")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    expected = KNOWN_TYPOS.get(point.model, point.params_m)
    rounding = 0.5 if point.model == "FasterViT-6" else 0.051  # 1360.3 is published as 1360.0
    assert millions == pytest.approx(expected, abs=rounding)
    assert ("parameters" in point.remark) == (point.model in KNOWN_TYPOS)


def test_competitors_include_those_that_beat_fastervit() -> None:
    rivals = {p.model: p for p in POINTS if p.device == "NVIDIA A100" and p.family != "FasterViT"}
    assert {"Swin-T", "ConvNeXt-T", "SwinV2-B", "DeiT3-L", "MaxViT-L", "NextViT-S"} <= set(rivals)
    mamba, small = rivals["MambaVision-T"], PAPER[0]
    assert mamba.top1 and small.top1 and mamba.top1 > small.top1
    assert mamba.throughput_img_per_s and small.throughput_img_per_s
    assert mamba.throughput_img_per_s > small.throughput_img_per_s
