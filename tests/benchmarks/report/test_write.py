"""What the report says and draws: files, picture, summary, colours, and nothing but what rows hold."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.benchmarks.pareto import standings
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.report import write_report
from fastervit_trt.benchmarks.report.cells import benchmark_of
from fastervit_trt.benchmarks.report.look import DARK, DARK_PAGE, LIGHT, LIGHT_PAGE
from fastervit_trt.benchmarks.report.spark import sparkline
from fastervit_trt.benchmarks.report.text import percent, signed, significant, verdict
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.errors import FasterViTError
from tests.benchmarks.example_rows import judged, record, row, sweep


def table_of(summary: str) -> list[dict[str, str]]:
    lines = [line for line in summary.splitlines() if line.startswith("|")]
    head, _, *rest = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in rest]


def test_the_summary_is_the_readmes_table(tmp_path: Path) -> None:
    rows = [
        judged("faster_vit_digits_m", 1258, precision="fp32", sqnr_db=200.0),
        judged("faster_vit_digits_m", 889, note="fp16 pays on GPUs", sqnr_db=61.04),
        judged("faster_vit_digits_s", 2011, precision="fp32", agreement_fp32=0.995),
        judged("faster_vit_digits_s", 2500, precision="int8", status="unstable", reason="drifted by 9 %"),
    ]
    failed = row("faster_vit_digits_l", None, 1.0, status="failed", reason="out of memory")
    files = write_report([*map(Record, rows), Record(failed)], tmp_path, title="Digits")
    text = files.summary.read_text()
    assert text.startswith("## Digits\n\n![Accuracy against throughput](pareto.png)\n")
    lines = table_of(text)
    assert [line["on the front"] for line in lines] == ["yes", "no", "yes, if its time holds", "yes"]
    assert lines[0] == {
        "model": "faster_vit_digits_m",
        "precision": "fp32",
        "backend": "ort-cpu",
        "batch": "8",
        "top-1 %": "98.83",
        "95 % interval": "97.6–99.4",
        "same top-1 as fp32 PyTorch %": "100.00",
        "SQNR dB": "exact",
        "images/s": "1258",
        "p50 / p90 / p99 ms": "6.36 / 7.00 / 10.2",
        "on the front": "yes",
    }
    assert lines[1]["SQNR dB"] == "61.0"
    assert "\n1. note: fp16 pays on GPUs\n2. doubt: unstable: drifted by 9 %\n" in text
    assert lines[1]["model"].endswith("<sup>1</sup>")
    assert "\nTop-1 on 599 images of digits, held-out third, 95 % Wilson interval; AMD EPYC on 2 threads" in text
    assert "- faster_vit_digits_l fp16 on ort-cpu, batch 8: failed: out of memory" in text


def test_markup_in_names_stays_text_in_the_summary(tmp_path: Path) -> None:
    nasty = row("<b>a|b*c*[x](http://y)`z`", None, 10, note="<img src=x> | _so_ $x$")
    text = write_report([Record(nasty)], tmp_path).summary.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| &lt;b"))
    assert line.startswith(r"| &lt;b&gt;a\|b\*c\*\[x\](http://y)\`z\` <sup>1</sup> |")
    assert len(re.split(r"(?<!\\)\|", line)) == 13
    assert r"1. note: &lt;img src=x&gt; \| \_so\_ \$x\$" in text


def test_picture_shows_every_group_and_no_emulated_speed(tmp_path: Path) -> None:
    def picture(records: list[Record]) -> tuple[tuple[int, int], int]:
        path = write_report(records, tmp_path).picture
        assert path is not None
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB")).astype(int)
            blue = tuple(int(LIGHT[0][i : i + 2], 16) for i in (1, 3, 5))
            return image.size, int((np.abs(pixels - blue).sum(axis=2) < 12).sum())

    one = [Record(row("$\\frac{$", 0.9, 100.0, device="$^$"))]  # which matplotlib would take for mathematics
    size, blue = picture(one)
    assert size[0] > 1000
    assert blue > 200  # a mark, its bars, its place in the legend
    emulated = dataclasses.replace(one[0].row, top1=0.8, speed_is_meaningful=False)
    others = [Record(emulated), Record(dataclasses.replace(emulated, status="failed", speed_is_meaningful=True))]
    assert picture([*one, *others]) == (size, blue)
    wider, bluer = picture([*one, Record(dataclasses.replace(one[0].row, batch=1))])
    assert wider[0] > 1.3 * size[0]
    assert bluer > 1.4 * blue


def test_where_nothing_was_measured_there_is_a_page_and_no_picture(tmp_path: Path) -> None:
    (tmp_path / "pareto.png").write_bytes(b"of an earlier report")
    (tmp_path / "rows.csv").write_text("not ours")
    files = write_report([Record(row("a", None, 1.0, status="failed", reason="no <GPU>"))], tmp_path)
    assert files.picture is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "rows.csv", "summary.md"]
    page = files.page.read_text()
    assert "No cell was measured" in page
    assert "no &lt;GPU&gt;" in page
    assert "![" not in files.summary.read_text()
    assert "nothing was measured" in write_report([], tmp_path).page.read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FasterViTError, match="cannot write"):
        write_report([], tmp_path / "file" / "report")


def test_files_are_whole_readable_by_others_and_the_same_again(tmp_path: Path) -> None:
    for name in ("new", "again"):
        write_report(sweep()[:1], tmp_path / name)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["pareto.png", "report.html", "summary.md"]
    assert (tmp_path / "new" / "report.html").stat().st_mode & 0o044
    for path in (tmp_path / "new").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def linear(colour: str) -> np.ndarray:
    """Of "#rrggbb", (3,) in [0, 1]."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear sRGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("colours", "page"), [(LIGHT, LIGHT_PAGE), (DARK, DARK_PAGE)])
def test_colours_stand_out_from_their_page(colours: tuple[str, ...], page: str) -> None:
    for colour in colours:
        dark, light = sorted(float(linear(c) @ (0.2126, 0.7152, 0.0722)) for c in (colour, page))
        assert (light + 0.05) / (dark + 0.05) >= 3.0, colour


# Linear sRGB as seen without one kind of cone: Machado, Oliveira and Fernandes 2009, severity 1.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colours_can_be_told_apart_with_every_kind_of_colour_vision(colours: tuple[str, ...], vision: str) -> None:
    seen = [lab(np.array(VISIONS[vision]) @ linear(colour)) for colour in colours]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 17


@pytest.mark.parametrize(
    ("dataset", "images", "is_imagenet"),
    [
        ("ImageNet-1k val", 4000, True),
        ("imagenet", 10, True),
        ("ILSVRC2012_validation", 10, True),
        ("val", 50_000, True),
        ("val", 49_999, False),
        ("tiny-imagenet-200", 10_000, False),
        ("imagenet-r", 30_000, False),
        ("digits, held-out third", 599, False),
        (None, None, False),
    ],
)
def test_published_accuracies_go_with_imagenet_only(dataset: str | None, images: int | None, is_imagenet: bool) -> None:
    found = benchmark_of(row("a", 0.8, 10, dataset=dataset, images=images))
    assert found == ("ImageNet" if is_imagenet else "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123"),
        (1.2, "1.20"),
        (12.34, "12.3"),
        (1234.5, "1234"),
        (9.999, "10.0"),
        (0, "0"),
        (5, "5"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_shares_as_percentages() -> None:
    assert (percent(0.98831), percent(None), signed(-0.008), signed(0.091)) == ("98.83", "–", "−0.8 %", "+9.1 %")


def test_a_verdict_says_what_dominates_by_how_much_and_how_surely() -> None:
    def said(other: BenchmarkRow) -> str:
        return verdict(standings([row("a", 0.90, 100), other])[0], "throughput")

    clear = said(row("faster_vit_b", 0.92, 150, backend="tensorrt", precision="int8"))
    assert clear == "Clearly dominated by throughput by b int8 on tensorrt: 2.00 points more top-1, 1.50 times as fast."
    near = said(row("b", 0.90, 101))
    assert near.startswith(
        "Dominated within uncertainty by throughput by b fp16 on ort-cpu: the same top-1, 1.01 times"
    )
    assert said(row("b", 0.80, 50)).startswith("On the front by throughput")
    assert said(row("b", None, 50)).startswith("On the front")


def test_samples_are_drawn_in_time_and_an_outlier_does_not_flatten_them() -> None:
    def heights(rounds: list[list[float]]) -> list[float]:
        line = re.search(r'<polyline points="([^"]*)"', sparkline(rounds))
        assert line is not None
        return [float(point.split(",")[1]) for point in line[1].split()]

    calm = heights([[1.0, 1.001] * 50])
    assert max(calm) - min(calm) < 1
    rising = heights([[1.0 + i / 200 for i in range(200)]])
    assert rising == sorted(rising, reverse=True)  # upwards on the page
    assert rising[0] - rising[-1] > 20
    shaken = [1.0 + i / 200 for i in range(200)]
    shaken[100] = 50.0
    assert heights([shaken])[0] - heights([shaken])[-1] > 20
    assert sparkline([[1.0] * 10] * 4).count("v-4") == 3  # ticks between rounds
    assert sparkline([]) == sparkline([[1.0]]) == ""


def test_caveats_of_a_row_are_on_the_page_and_what_is_unknown_is_not(tmp_path: Path) -> None:
    full = judged(
        "faster_vit_digits_m", 700, precision="int8", flags="hot", note="a note", audit="41 of 43 in int8",
        slower_because="0.56 times as fast", engines_against_8_bits="rtx for 8.9: stem | trt for 9.0: head",
        non_finite_logits=3, unreadable_images=2, top5=0.9998, top5_low=0.99, top5_high=1.0,
    )  # fmt: skip
    full = dataclasses.replace(full, speed_is_meaningful=False)  # no picture
    page = write_report([record(full)], tmp_path).page.read_text()
    said = ["hot", "a note", "41 of 43 in int8", "0.56 times as fast", "rtx for 8.9: stem", "trt for 9.0: head"]
    said += ["3 are NaN or infinite", "2 could not be read", "99.98 % (99.0–100.0)", "58.3 dB", "host&#39;s monotonic"]
    for text in said:
        assert text in page, text
    assert "None" not in page
    assert "nan" not in re.sub(r"<script.*", "", page, flags=re.S).casefold().replace("nan or", "")
    bare = BenchmarkRow(model="m", precision="fp32", backend="torch", resolution="8x8", batch=1, status="ok")
    sparse = write_report([Record(bare)], tmp_path).page.read_text()
    assert "None" not in sparse
    assert "no front to draw" in sparse
    for unsaid in ("Copies to and from", "Watched meanwhile", "take turns"):
        assert unsaid not in sparse
    assert "CUDA events" not in re.sub(r"<script.*", "", sparse, flags=re.S)


def test_non_finite_numbers_do_not_break_the_page(tmp_path: Path) -> None:
    odd = dataclasses.replace(
        judged("faster_vit_digits_m", 700, speed_is_meaningful=False), sqnr_db=float("nan"), latency_drift=float("nan")
    )
    page = write_report([record(odd)], tmp_path).page.read_text()
    data = re.search(r'id="data">(.*?)</script>', page)
    assert data is not None
    assert "NaN" not in data[1]
