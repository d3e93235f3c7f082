"""Names and folders: the shipped scenes, and data of another task, which is said to be that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated import Objects, open_annotated, scenes
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import open_calibration_images, open_dataset
from fastervit_trt.models.scenes.data import VALIDATION_SCENES, scene
from tests.models.annotated.layouts import ade20k, coco, mask_folder, picture

SCENES = 5  # drawing all takes seconds


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert VALIDATION_SCENES > SCENES
    monkeypatch.setattr(scenes, "VALIDATION_SCENES", SCENES)
    scenes._validation.cache_clear()
    yield
    scenes._validation.cache_clear()


@pytest.mark.usefixtures("few_scenes")
def test_scenes_have_boxes_of_ten_digits() -> None:
    data = open_annotated("detection", "scenes")
    assert (len(data), data.classes, data.class_names) == (SCENES, 10, tuple("0123456789"))
    for i in range(SCENES):
        drawn, found = scene(i, "validation"), data.annotation(i)
        assert isinstance(found, Objects)
        height, width = data.sizes[i]
        np.testing.assert_allclose(found.boxes * (width, height, width, height), drawn.boxes, atol=1e-9)
        np.testing.assert_array_equal(found.labels, drawn.labels)
        sides = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
        np.testing.assert_array_equal(found.areas, sides[:, 0] * sides[:, 1])
        assert not found.crowd.any()


@pytest.mark.usefixtures("few_scenes")
def test_scenes_have_masks_of_background_and_ten_digits() -> None:
    data = open_annotated("segmentation", "scenes")
    assert (len(data), data.classes, data.class_names) == (SCENES, 11, ("background", *"0123456789"))
    for i in range(SCENES):
        np.testing.assert_array_equal(data.annotation(i), scene(i, "validation").mask)
    assert data.sha256() != open_annotated("detection", "scenes").sha256()
    how = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop_mode="squash")
    (images, numbers) = next(data.batches(2, how, data.sizes[0]))
    pixels = np.asarray(scene(1, "validation").picture, np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(images[1], pixels, atol=1e-6)
    assert numbers.tolist() == [0, 1]


def test_scenes_to_calibrate_with_are_those_to_train_on() -> None:
    data = open_calibration_images("scenes", 3)
    assert len(data) == 3
    drawn = [np.asarray(image) for image in data.images]
    assert all(np.array_equal(one, np.asarray(scene(i, "train").picture)) for i, one in enumerate(drawn))
    assert not np.array_equal(drawn[0], np.asarray(scene(0, "validation").picture))


def test_data_of_another_task_is_said_to_be_that(tmp_path: Path) -> None:
    root = coco(tmp_path / "coco")
    with pytest.raises(
        FasterViTError, match=r"is a COCO folder, data for detection, but the model segments; that take"
    ):
        open_annotated("segmentation", str(root))
    for folder, name in ((ade20k(tmp_path / "ade"), "an ADE20K folder"), (mask_folder(tmp_path / "m"), "of masks")):
        with pytest.raises(FasterViTError, match=rf"{name}, data for segmentation, but the model detects"):
            open_annotated("detection", str(folder))
    with pytest.raises(FasterViTError, match="'digits' have one label per image, the model detects: take 'scenes'"):
        open_annotated("detection", "digits")
    with pytest.raises(FasterViTError, match="'scenes' have boxes and masks, the model classifies"):
        open_dataset("scenes")


def test_a_folder_with_both_serves_both(tmp_path: Path) -> None:
    ade20k(coco(tmp_path))
    assert open_annotated("detection", str(tmp_path)).task == "detection"
    assert open_annotated("segmentation", str(tmp_path)).task == "segmentation"


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match="nowhere' is neither 'scenes' nor a folder"):
        open_annotated("detection", str(tmp_path / "nowhere"))
    picture(tmp_path / "cat" / "0.png", (8, 8))
    with pytest.raises(
        FasterViTError, match=r"has no annotations for a model that detects; that takes annotations/ins"
    ):
        open_annotated("detection", str(tmp_path))
    with pytest.raises(ValueError, match="not for classification"):
        open_annotated("classification", str(tmp_path))
