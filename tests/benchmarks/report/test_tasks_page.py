"""A report of detectors and segmenters in a browser: metrics by name, resolutions told apart, examples to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastervit_trt.benchmarks.bench import merge_reports
from fastervit_trt.benchmarks.examples import Example, _write_index
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.report import write_report
from fastervit_trt.benchmarks.report.beside import besides
from fastervit_trt.benchmarks.report.cells import benchmark_of
from fastervit_trt.benchmarks.report.text import facts
from fastervit_trt.benchmarks.rows import write_rows
from tests.benchmarks.example_rows import of_tasks, row
from tests.benchmarks.report.browser import Browser
from tests.benchmarks.report.pages import choose, column, header, written

GROUPS = "[...document.querySelector('#group').options].map(o => o.textContent)"
TEXTS = "[...document.querySelectorAll('#chart text')].map(t => t.textContent)"
PUBLISHED = "[...document.querySelectorAll('#chart .published')].map(p => p.getAttribute('aria-label'))"
EXAMPLE = Example(
    file="door.png",
    picture="000139.jpg",
    data="doors, val2017",
    export="detector-fp16",
    model="faster_vit_0_224",
    task="detection",
    precision="fp16",
    backend="ort-cpu",
    resolution="800x1216",
)


def with_example(folder: Path, size: int) -> Path:
    """A result folder with one example, a picture of this many pixels."""
    (folder / "examples").mkdir(parents=True)
    write_rows([record.row for record in of_tasks()[:1]], folder)
    Image.new("RGB", (size, size), (200, 30, 30)).save(folder / "examples" / EXAMPLE.file)
    _write_index([EXAMPLE], folder / "examples")
    return folder


def test_axes_and_table_name_the_metric_and_the_resolution(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(of_tasks(), tmp_path))
    groups = browser.run(GROUPS)
    assert [title.split(" · ")[-1] for title in groups] == ["mAP", "mIoU"]
    for number, title in enumerate(("mAP (IoU 0.50 to 0.95), %", "mean IoU, %")):
        choose(browser, "#group", str(number))
        texts = browser.run(TEXTS)
        assert title in texts
        assert "top-1 accuracy, %" not in texts
    choose(browser, "#group", "0")
    labels = set(browser.run(TEXTS))
    assert {"scenes_detector 128x128 fp32", "scenes_detector 192x192 fp32"} <= labels
    place = header(browser, "metric")
    metrics = browser.run(
        f"[...document.querySelectorAll('#cells tbody tr')].map(r => r.children[{place}].textContent)"
    )
    assert sorted(metrics) == ["mAP"] * 3 + ["mIoU"] * 2 + ["–"]
    scores = [float(score) for score in column(browser, header(browser, "accuracy %")) if score is not None]
    assert sorted(scores) == [0.609, 0.612, 0.667, 0.829, 0.834]
    names = browser.run("[...document.querySelectorAll('#filters legend')].map(l => l.textContent)")
    assert {"task", "resolution"} <= set(names)
    assert browser.complaints() == []


def test_one_metric_is_the_heading_of_its_column(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(of_tasks()[:3], tmp_path))
    assert header(browser, "mAP %") > 0
    assert header(browser, "metric") == -1


def test_examples_are_seen_in_the_page_itself(browser: Browser, tmp_path: Path) -> None:
    folder = with_example(tmp_path / "one", 30)
    page = write_report(of_tasks(), folder).page
    browser.open(page)
    seen = "[...document.querySelectorAll('.examples img')].map(i => i.decode().then(() => [i.naturalWidth, i.alt]))"
    ((width, words),) = browser.run(f"Promise.all({seen})")
    assert (width, words.split(":")[0]) == (30, "000139.jpg of doors, val2017")
    assert "FasterViT-0 fp16, 800x1216, on ort-cpu" in browser.run("document.querySelector('.examples').innerText")
    assert browser.requests()[:1] == [page.as_uri()]
    assert not [address for address in browser.requests() if not address.startswith(("file:", "data:"))]
    assert browser.complaints() == []


def test_merged_reports_keep_the_examples_of_each(tmp_path: Path) -> None:
    folders = [with_example(tmp_path / name, size) for name, size in (("a", 20), ("b", 40))]
    merge_reports(folders, tmp_path / "all")
    sizes = []
    for path in sorted((tmp_path / "all" / "examples").glob("*.png")):
        with Image.open(path) as picture:
            sizes.append(picture.width)
    assert sizes == [20, 40]
    assert (tmp_path / "all" / "report.html").read_text().count("<figure><img") == 2


def test_published_figures_stand_beside_their_own_data_only(browser: Browser, tmp_path: Path) -> None:
    detector, segmenter = of_tasks()[0].row, of_tasks()[3].row
    coco = Record(replace(detector, dataset="coco, val2017", images=5000))
    ade = Record(replace(segmenter, dataset="ADEChallengeData2016", images=2000))
    digits = Record(row("faster_vit_0_224", 0.82, 5000))
    browser.open(written([coco, ade, digits], tmp_path, published=True))
    shown = {}
    for number, title in enumerate(browser.run(GROUPS)):
        choose(browser, "#group", str(number))
        shown[title.split(" · ")[-1]] = " | ".join(browser.run(PUBLISHED))
    assert "Cascade Mask R-CNN" in shown["mAP"] and "UperNet" not in shown["mAP"]
    assert "UperNet" in shown["mIoU"] and "Mask R-CNN" not in shown["mIoU"]
    assert shown["digits, held-out third"] == ""
    assert not any("top-1" in point.brief for point in besides(["COCO", "ADE20K"]))


@pytest.mark.parametrize(
    ("metric", "task", "dataset", "images", "benchmark"),
    [
        ("mAP", "detection", "coco, val2017", 5000, "COCO"),
        ("mAP", "detection", "val", 5000, "COCO"),
        ("mAP", "detection", "doors, val2017", 4999, ""),
        ("mAP", "detection", "imagenet", 50_000, ""),
        ("mIoU", "segmentation", "ADE20K", 10, "ADE20K"),
        ("mIoU", "segmentation", "coco", 5000, ""),
        ("top-1", "classification", "imagenet", 50_000, "ImageNet"),
    ],
)
def test_public_data_are_known_by_name_or_size(
    metric: str, task: str, dataset: str, images: int, benchmark: str
) -> None:
    one = row("a", 0.5, 10, metric=metric, task=task, dataset=dataset, images=images)
    assert benchmark_of(one) == benchmark


def test_further_figures_are_told_of_classes_the_worst() -> None:
    many = ", ".join(f'"IoU of {i}": {i / 100}' for i in range(20, 0, -1))
    told = dict(facts(replace(of_tasks()[3].row, figures=f'{{"pixel accuracy": 0.974, {many}}}')))
    assert told["pixel accuracy"] == "97.40 %"
    assert told["IoU by class"].startswith("1 1.0, 2 2.0, ")
    assert told["IoU by class"].endswith("8 8.0 %; 12 classes are better")
    assert told["mIoU"].startswith("83.40 % (95 %: 81.4–85.4) of 300 images")
    assert told["same as fp32"] == "99.10 % of pixels"
