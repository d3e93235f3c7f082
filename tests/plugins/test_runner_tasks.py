"""fastervit-runner on engines of detectors and segmenters: what it prints, and that it judges as Python does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.export.golden import decision_differences
from tests.plugins.standin.running import IMAGE, Runner, pictures
from tests.random_decisions import SIDES, disturbed, some_detections, some_masks


def engine(folder: Path, found: Mapping[str, np.ndarray], batches: tuple[int, int] = (1, 4)) -> str:
    """An engine that yields row n of ``found`` for image n. Its outputs are in another order than in exports."""
    tensors = [f"images:in:0:0:-1,{','.join(map(str, IMAGE))}"]
    lines = ["standin", "profiles=1"]
    for name, rows in sorted(found.items(), reverse=True):
        rows.astype("<f4").tofile(folder / f"{name}.raw")
        tensors.append(f"{name}:out:0:0:-1,{','.join(map(str, rows.shape[1:]))}")
        lines.append(f"rows.{name}={name}.raw")
    for name, batch in zip(("least", "most"), batches, strict=True):
        lines.append(f"{name}0={batch},{','.join(map(str, IMAGE))}")
    return "\n".join([*lines, f"tensors={' '.join(tensors)}", ""])


def golden(folder: Path, outputs: Mapping[str, np.ndarray]) -> str:
    (folder / "golden").mkdir(exist_ok=True)
    for name, rows in outputs.items():
        np.save(folder / "golden" / f"golden-{name}.npy", rows.astype(np.float32))
    return "golden"


# Judged as Python judges.


def test_detections_differ_by_what_python_says(run: Runner, tmp_path: Path) -> None:
    for seed in range(40):
        expected = some_detections(1, seed)
        found = disturbed(expected, seed)
        difference = decision_differences(expected, tuple(found.values()))["boxes"][0]
        ran = run(engine(tmp_path, found), pictures(1), "--golden", golden(tmp_path, expected), "--tolerance", 0)
        assert ran.code == 1
        assert worst(ran.error) == (pytest.approx(difference, rel=1e-6, abs=1e-7), 0)


def test_masks_differ_by_what_python_says(run: Runner, tmp_path: Path) -> None:
    for changed in (1, 3, 30):
        expected = some_masks(1)
        found = {"masks": expected["masks"].copy()}
        found["masks"].reshape(-1)[:changed:2] += 1
        found["masks"].reshape(-1)[1:changed:2] -= 1
        difference = decision_differences(expected, (found["masks"],))["masks"][0]
        ran = run(engine(tmp_path, found), pictures(1), "--golden", golden(tmp_path, expected), "--tolerance", 0)
        assert (ran.code, worst(ran.error)) == (1, (pytest.approx(difference, rel=1e-6), 0))
        assert ran.error.endswith(f"image 0, {changed} of 30 pixels have another class")


@pytest.mark.parametrize("kind", ["detections", "masks"])
def test_the_worst_of_many_images_counts(run: Runner, tmp_path: Path, kind: str) -> None:
    count = 10  # in batches of 4, 4 and 2, the last of them filled up to 3
    expected = some_detections(count) if kind == "detections" else some_masks(count)
    found = disturbed(expected, 1) if kind == "detections" else {"masks": expected["masks"].copy()}
    if kind == "masks":
        found["masks"][6, 1, 2:5] += 1
        found["masks"][8, 1, 2:4] += 1
    ((_, by_image),) = decision_differences(expected, tuple(found.values())).items()
    text, images = engine(tmp_path, found, (3, 4)), pictures(count)
    options = "--golden", golden(tmp_path, expected), "--tolerance"
    ran = run(text, images, *options, f"{by_image.max() * 0.999:.9f}")
    assert (ran.code, worst(ran.error)) == (1, (pytest.approx(by_image.max(), rel=1e-6), by_image.argmax()))
    ran = run(text, images, *options, f"{by_image.max() * 1.001:.9f}")
    assert (ran.code, ran.err) == (0, "")
    assert worst(ran.out.splitlines()[-1]) == (pytest.approx(by_image.max(), rel=1e-6), by_image.argmax())
    assert [line for line in ran.out.splitlines() if line.startswith("image")] == [f"image {n}" for n in range(count)]


def worst(line: str) -> tuple[float, int]:
    """The difference that a verdict names, and its image."""
    found = re.match(r"golden: the worst difference is (\S+) of \S+ allowed, image (\d+), ", line)
    assert found is not None, line
    return float(found[1]), int(found[2])


@pytest.mark.parametrize(
    ("name", "at", "value", "reason"),
    [
        ("scores", 1, 0.3, "most by label 2, score 0.5, box 0 0.25 0.5 0.75, found as label 2, score 0.3, box 0 0.25 "),
        ("labels", 1, 0, "most by label 2, score 0.5, box 0 0.25 0.5 0.75, which was not found at all"),
        ("scores", 2, 0.9, "most by label 1, score 0.9, box 0 0.25 0.5 0.75, expected as label 1, score 0.1, box 0 "),
        ("labels", 2, 7, "most by label 7, score 0.1, box 0 0.25 0.5 0.75, which was not expected at all"),
        ("boxes", (1, 2), 0.75, "most by label 2, score 0.5, box 0 0.25 0.5 0.75, found as label 2, score 0.5, box 0 "),
        ("scores", 0, np.nan, "some of it is not finite"),
        ("boxes", (2, 3), -np.inf, "some of it is not finite"),
        ("labels", 0, np.inf, "some of it is not finite"),
    ],
)
def test_the_worst_detection_is_described(
    run: Runner, tmp_path: Path, name: str, at: int, value: float, reason: str
) -> None:
    expected = {
        "boxes": np.tile(np.float32([0, 0.25, 0.5, 0.75]), (1, 3, 1)),
        "scores": np.float32([[0.75, 0.5, 0.1]]),
        "labels": np.float32([[3, 2, 1]]),
    }
    if (name, at) == ("labels", 2):
        expected["scores"][0, 2] = 0.0999  # what was found weighs more than what was expected
    found = {key: rows.copy() for key, rows in expected.items()}
    if (name, at) == ("labels", 2):
        found["scores"][0, 2] = 0.1
    found[name][0][at] = value
    ran = run(engine(tmp_path, found), pictures(1), "--golden", golden(tmp_path, expected), "--tolerance", 1e-6)
    assert ran.code == 1
    assert f"image 0, {reason}" in ran.error
    if "finite" in reason:
        assert worst(ran.error)[0] == 1


def test_masks_and_logits_lie_in_a_file_or_in_a_folder(run: Runner, tmp_path: Path) -> None:
    masks = some_masks(2)
    golden(tmp_path, masks)
    for place in ("golden", "golden/", "golden/golden-masks.npy"):
        assert run(engine(tmp_path, masks), pictures(2), "--golden", place, "--tolerance", 0).code == 0


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("nan", "the golden scores of image 1 are not finite: they can judge nothing"),
        ("shape", "golden/golden-labels.npy is 2x6, the labels are 2x7"),
        ("missing", "there is no file golden/golden-boxes.npy"),
        (
            "file",
            "golden/golden-boxes.npy is one file, and there are 3 outputs; name the folder with golden-boxes.npy and ",
        ),
    ],
)
def test_golden_detections_that_cannot_judge(run: Runner, tmp_path: Path, spoil: str, line: str) -> None:
    found = some_detections(2)
    path = golden(tmp_path, found)
    if spoil == "nan":
        found["scores"][1, 3] = np.nan
        golden(tmp_path, found)
    elif spoil == "shape":
        golden(tmp_path, {"labels": found["labels"][:, :6]})
    elif spoil == "missing":
        (tmp_path / "golden/golden-boxes.npy").unlink()
    else:
        path = "golden/golden-boxes.npy"
    ran = run(engine(tmp_path, some_detections(2)), pictures(2), "--golden", path, "--tolerance", 1)
    assert ran.code == 2
    assert ran.error.startswith(line)


# What comes out.


def test_the_surest_detections(run: Runner, tmp_path: Path) -> None:
    found = some_detections(6)
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl, grey\n")
    for labels in ((), ("cat", "dog", "owl, grey")):
        options = ("--labels", "labels.txt") if labels else ()
        ran = run(engine(tmp_path, found), pictures(6), "--top", 3, *options)
        text = ""
        for number in range(6):
            text += f"image {number}\n"
            for i in range(3):
                index = int(found["labels"][number, i])
                corners = " ".join(f"{side:.4f}" for side in found["boxes"][number, i].astype(float))
                name = f"  {labels[index]}" if labels else ""
                text += f"{i + 1:4d}  {float(found['scores'][number, i]):.6f}  {index}  {corners}{name}\n"
        assert (ran.code, ran.out, ran.err) == (0, text, "")


def test_the_classes_of_most_pixels(run: Runner, tmp_path: Path) -> None:
    masks = np.zeros((2, *SIDES), np.float32)
    masks[0, 0], masks[0, 1, :2], masks[0, 4, 4:] = 3, 2, 1  # 20 of 0, 6 of 3, 2 of 2, 2 of 1
    (tmp_path / "labels.txt").write_text("sky\nsea\nsand\nship\n")
    ran = run(engine(tmp_path, {"masks": masks}), pictures(2), "--labels", "labels.txt", "--top", 3)
    lines = ["image 0", "   1  0.666667  0  sky", "   2  0.200000  3  ship", "   3  0.066667  1  sea"]
    assert ran.out.splitlines() == [*lines, "image 1", "   1  1.000000  0  sky"]


@pytest.mark.parametrize("kind", ["detections", "masks"])
def test_outputs_are_written(run: Runner, tmp_path: Path, kind: str) -> None:
    found = some_detections(5) if kind == "detections" else some_masks(5)
    (tmp_path / "found").mkdir()
    place = "found" if kind == "detections" else "found/masks.npy"
    ran = run(engine(tmp_path, found), pictures(5), "--output", place)
    assert (ran.code, ran.err) == (0, "")
    assert {path.stem for path in (tmp_path / "found").iterdir()} == set(found)
    for name, rows in found.items():
        np.testing.assert_array_equal(np.load(tmp_path / "found" / f"{name}.npy"), rows)


def test_several_outputs_need_a_folder(run: Runner, tmp_path: Path) -> None:
    ran = run(engine(tmp_path, some_detections(1)), pictures(1), "--output", "found.npy")
    assert (ran.code, ran.error) == (
        2,
        "--output found.npy is no folder, and there are 3 outputs; name one for boxes.npy and the others",
    )


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("boxes", np.nan, "image 1 has a detection, 0, that is not finite: the engine overflows, or the image does"),
        ("scores", np.inf, "image 1 has a detection, 0, that is not finite: the engine overflows, or the image does"),
        ("labels", np.nan, "image 1 has the class nan, which is none: the engine overflows, or the image does"),
        ("labels", -1, "image 1 has the class -1, which is none: the engine overflows, or the image does"),
        ("labels", 0.5, "image 1 has the class 0.5, which is none: the engine overflows, or the image does"),
        ("labels", 3e7, "image 1 has the class 30000000, which is none: the engine overflows, or the image does"),
        ("labels", 3, "image 1 has the class 3, and there are 3 labels"),
        ("masks", 3, "image 1 has the class 3, and there are 3 labels"),
        ("masks", np.nan, "image 1 has the class nan, which is none: the engine overflows, or the image does"),
    ],
)
def test_what_is_no_class_and_no_box_is_not_printed(
    run: Runner, tmp_path: Path, name: str, value: float, line: str
) -> None:
    found = some_masks(2) if name == "masks" else some_detections(2)
    found[name][1].reshape(-1)[0] = value
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    (tmp_path / "found").mkdir()
    place = "found/masks.npy" if name == "masks" else "found"
    ran = run(engine(tmp_path, found), pictures(2), "--labels", "labels.txt", "--output", place)
    assert (ran.code, ran.error) == (2, line)
    assert not list((tmp_path / "found").iterdir())


@pytest.mark.parametrize(
    "shapes",
    [
        {"masks": (5,), "boxes": (5, 4)},
        {"boxes": (5, 4), "scores": (5,), "labels": (4,)},
        {"boxes": (5, 3), "scores": (5,), "labels": (5,)},
        {"boxes": (5, 4), "scores": (5,), "classes": (5,)},
        {"boxes": (5, 4), "scores": (5,)},
        {"boxes": (5, 4), "scores": (5,), "labels": (5,), "features": (8,)},
        {"heights": (5, 6)},
        {"masks": (2, 5, 6)},
    ],
)
def test_other_outputs_are_refused(run: Runner, tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
    ran = run(engine(tmp_path, found), pictures(1))
    assert ran.code == 2
    assert re.fullmatch(
        r"engine yields .*(masks|boxes|heights) [0-9x]+.* for an image; this runs engines that yield .*", ran.error
    )
