"""The client example on a detector and a segmenter: what it prints, and that it judges servers as this package does."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.bundle.opened import opened_bundle
from fastervit_trt.deploy.triton.repository import write_repository
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.export.golden import decision_differences
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.preprocessing import preprocess_image
from fastervit_trt.models.scenes.data import Scene, scene
from tests.deploy.serving.running import running
from tests.random_decisions import disturbed, some_detections, some_masks

TASKS = ("detector", "segmenter")
Outputs = dict[str, np.ndarray]


class Case:
    """A written repository, its client, and a server of the same bundle; a golden set on which the model is sure."""

    def __init__(self, folder: Path, address: str, model: str, scenes: Path) -> None:
        self.folder, self.address, self.model, self.scenes = folder, address, model, scenes
        spec = importlib.util.spec_from_file_location(f"client_of_{model}", folder / "client.py")
        assert spec is not None and spec.loader is not None
        self.client: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.client)


@pytest.fixture(scope="module")
def cases(task_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    made = {}
    with ExitStack() as stack:
        for name in TASKS:
            bundle = stack.enter_context(opened_bundle(task_bundles / name)).bundle
            folder = write_repository(bundle, tmp_path_factory.mktemp("triton") / name).folder
            scenes = scenes_golden(bundle, tmp_path_factory.mktemp("scenes") / name, folder / "golden")
            made[name] = Case(folder, stack.enter_context(running(bundle)).address, bundle.export.model, scenes)
        yield made


def scenes_golden(bundle: Bundle, folder: Path, like: Path) -> Path:
    """The golden set ``like`` with scenes instead of noise, on which a detector finds next to nothing."""
    shutil.copytree(like, folder)
    record = json.loads((folder / "golden.json").read_text())
    how = Preprocessing(**bundle.export.preprocessing)
    images = np.stack([preprocess_image(scene(n, "validation").picture, how, (128, 128)) for n in range(3)])
    np.save(folder / record["images"], images)
    with Engine.load(bundle.export_folder, backend="ort-cpu", threads=1) as engine:
        for name, rows in zip(engine.outputs, engine(images), strict=True):
            np.save(folder / record["outputs"][name]["file"], rows)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Exit code and lines of the client, asked as users ask it."""

    def run(case: Case, *arguments: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(
            "sys.argv", ["client.py", "--url", case.address, "--model", case.model, *map(str, arguments)]
        )
        code = case.client.main()
        return code, capsys.readouterr().out.splitlines()

    return run


def spoiled(case: Case, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Outputs], None]) -> None:
    """From now on the server's answers are changed on their way."""
    ask = case.client.infer

    def infer(*arguments: Any) -> Outputs:
        answer = {name: rows.copy() for name, rows in ask(*arguments).items()}
        spoil(answer)
        return answer

    monkeypatch.setattr(case.client, "infer", infer)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_served_is_what_pytorch_finds(cases: dict[str, Case], run: Any, task: str) -> None:
    """Of the segmenter two images at a time, no fewer and no more: the client fills up what it sends."""
    case = cases[task]
    code, lines = run(case, "--golden", case.folder / "golden")
    assert code == 0
    assert [line.split()[0] for line in lines[:-1]] == ["noise", "smooth", "extreme"]
    budget = json.loads((case.folder / "golden" / "golden.json").read_text())["outputs"]
    name, each = {"detector": ("boxes", "most by label "), "segmenter": ("masks", " of 16384 pixels have another ")}[
        task
    ]
    assert all(each in line for line in lines[:-1])
    assert lines[-1].startswith(f"{name}: largest difference ")
    assert f"allowed {budget[name]['budget']:.3g}" in lines[-1]


def swap_a_label(outputs: Outputs) -> None:
    outputs["labels"][0, 0] = 9 - outputs["labels"][0, 0]


def shift_a_box(outputs: Outputs) -> None:
    outputs["boxes"][0, 0, ::2] += 0.05


def lower_a_score(outputs: Outputs) -> None:
    outputs["scores"][0, 0] -= 0.1


def add_a_box(outputs: Outputs) -> None:
    outputs["scores"][0, -1] = 0.9


def lose_a_number(outputs: Outputs) -> None:
    outputs["boxes"][0, 3, 2] = np.nan


def change_some_pixels(outputs: Outputs) -> None:
    outputs["masks"].reshape(-1)[: outputs["masks"].size // 100] = 10  # a hundredth of them


SPOILED = {
    swap_a_label: ("detector", "not (found|expected) at all|expected as label"),
    shift_a_box: ("detector", "found as label"),
    lower_a_score: ("detector", "found as label"),
    add_a_box: ("detector", "not expected at all|expected as label"),
    lose_a_number: ("detector", "some of it is no number"),
    change_some_pixels: ("segmenter", "pixels have another class"),
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_what_is_not_what_pytorch_finds(
    cases: dict[str, Case], run: Any, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Outputs], None]
) -> None:
    task, reason = SPOILED[spoil]
    assert run(cases[task], "--golden", cases[task].scenes)[0] == 0
    spoiled(cases[task], monkeypatch, spoil)
    code, lines = run(cases[task], "--golden", cases[task].scenes)
    assert code == 1, lines
    assert re.search(reason, "\n".join(lines)), lines


def test_other_outputs_and_other_shapes(cases: dict[str, Case], run: Any, tmp_path: Path) -> None:
    case = cases["segmenter"]
    code, lines = run(case, "--golden", cases["detector"].folder / "golden")
    assert (code, lines) == (1, ["boxes: the server yields masks"])
    shutil.copytree(case.folder / "golden", tmp_path / "golden")
    np.save(tmp_path / "golden" / "golden-masks.npy", np.zeros((3, 1, 1), np.float32))  # which NumPy would stretch
    code, lines = run(case, "--golden", tmp_path / "golden")
    assert (code, lines) == (1, ["masks: the server yields (3, 128, 128), the golden set has (3, 1, 1)"])


def test_it_judges_as_this_package_does(cases: dict[str, Case]) -> None:
    compare = cases["detector"].client.compare
    for seed in range(40):
        expected = some_detections(3, seed)
        found = disturbed(expected, seed)
        by_image = decision_differences(expected, tuple(found.values()))["boxes"]
        shuffled = {name: expected[name] for name in ("labels", "boxes", "scores")}
        (difference,) = compare(shuffled, found, {"boxes": float(by_image.max()), "scores": None, "labels": None})
        np.testing.assert_allclose(difference.by_image, by_image, rtol=1e-6, atol=1e-7)
        assert difference.worst == difference.by_image.max()
        masks, others = some_masks(3, seed), some_masks(3, seed + 1)
        others["masks"][:2] = masks["masks"][:2]
        others["masks"][1, 0, : seed % 6] += 1
        (difference,) = compare(masks, others, {"masks": 0.0})
        np.testing.assert_allclose(
            difference.by_image, decision_differences(masks, (others["masks"],))["masks"], rtol=1e-6
        )
        assert not difference.within
        assert str(difference).endswith(", allowed 0")
    expected["scores"][1, 2] = np.nan
    (difference,) = compare(expected, found, {"boxes": 1.0, "scores": None, "labels": None})
    assert not difference.within


@pytest.mark.parametrize("task", TASKS)
def test_pictures_of_any_shape(cases: dict[str, Case], run: Any, tmp_path: Path, task: str) -> None:
    """They are squashed, so that boxes are shares of the picture as it was."""
    shown = scene(7, "validation")
    shown.picture.resize((200, 320)).save(tmp_path / "scene.png")
    code, lines = run(cases[task], "--top", 3, tmp_path / "scene.png")
    assert (code, lines[0]) == (0, str(tmp_path / "scene.png"))
    (_boxes_found if task == "detector" else _pixels_found)(shown, lines[1:])


def _boxes_found(shown: Scene, lines: list[str]) -> None:
    names = "zero one two three four five six seven eight nine".split()
    truth = [(names[label], box / 128) for label, box in zip(shown.labels, shown.boxes, strict=True)]
    assert 1 <= len(truth) <= len(lines) == 3
    scores = [float(line.split("%")[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    for line in lines[: len(truth)]:
        name, corners = re.fullmatch(r" *[\d.]+%  (\w+)  \((.*)\)", line).groups()  # type: ignore[union-attr]
        box = np.array([float(side) for side in corners.split(", ")])
        assert any(name == other and np.abs(box - place).max() < 0.05 for other, place in truth), (line, truth)


def _pixels_found(shown: Scene, lines: list[str]) -> None:
    assert re.fullmatch(r" +[\d.]+% of the pixels  background", lines[0])
    share = float(lines[0].split("%")[0]) / 100
    assert share == pytest.approx((shown.mask == 0).mean(), abs=0.05)
