"""COCO's layout: which box is of which class on which picture, and what is refused before anything is measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated import AnnotatedImages, Objects, open_annotated
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.decoding import Unreadable
from tests.models.annotated.layouts import SIZES, Json, coco, coco_content, picture

RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop_mode="squash")


def opened(root: Path) -> AnnotatedImages:
    return open_annotated("detection", str(root))


def objects(data: AnnotatedImages, index: int) -> Objects:
    found = data.annotation(index)
    assert isinstance(found, Objects)
    return found


def test_categories_are_numbered_by_their_ids_and_boxes_are_shares(tmp_path: Path) -> None:
    data = opened(coco(tmp_path))
    assert (data.task, data.classes, data.class_names) == ("detection", 3, ("car", "bird", "toothbrush"))
    assert data.sizes == SIZES
    assert data.name == f"{tmp_path.name}, val2017"
    first, second, third, empty = (objects(data, i) for i in range(4))
    np.testing.assert_allclose(
        first.boxes, [[5 / 60, 4 / 40, 25 / 60, 34 / 40], [30.5 / 60, 10 / 40, 1, 22.25 / 40]]
    )  # the second one is 0.4 pixels too wide, and cut
    assert (first.labels.tolist(), first.areas.tolist(), first.crowd.tolist()) == ([0, 2], [400.5, 300], [False] * 2)
    assert (second.labels.tolist(), second.crowd.tolist()) == ([0, 1], [True, False])
    assert third.labels.tolist() == [1, 1]
    assert (len(empty), empty.boxes.shape) == (0, (0, 4))


def test_pictures_come_with_their_numbers_and_unreadable_ones_are_left_out(tmp_path: Path) -> None:
    root = coco(tmp_path)
    (root / "val2017" / "1.jpg").write_bytes(b"no picture")
    data = opened(root)
    left_out: list[Unreadable] = []
    batches = list(data.batches(2, RAW, (32, 64), left_out))
    assert [images.shape for images, _ in batches] == [(2, 3, 32, 64), (1, 3, 32, 64)]
    levels = {
        int(n): round(float(x.mean()) * 255)
        for images, numbers in batches
        for x, n in zip(images, numbers, strict=True)
    }
    assert levels == {0: 0, 2: 40, 3: 60}
    assert [image.index for image in left_out] == [1]
    with pytest.raises(FasterViTError, match=r"data '.*, val2017': '.*1.jpg' cannot be read \(it is no image\)"):
        list(open_annotated("detection", str(root), max_unreadable=0).batches(2, RAW, (32, 64)))


@pytest.mark.parametrize("place", ["part", "images/part", "images", "root", "beside the file"])
def test_images_are_found_in_the_usual_places(tmp_path: Path, place: str) -> None:
    coco(tmp_path, name="part")
    (tmp_path / "images").mkdir()
    folder = tmp_path / "part"
    if place == "beside the file":
        (tmp_path / "annotations" / "instances_part.json").rename(folder / "_annotations.coco.json")
        assert len(opened(folder / "_annotations.coco.json")) == 4
        return
    target = tmp_path if place == "root" else tmp_path / place
    target.mkdir(exist_ok=True, parents=True)
    for path in list(folder.iterdir()):
        path.rename(target / path.name)
    assert list(opened(tmp_path).images) == [target / f"{i}.jpg" for i in range(4)]


def test_of_several_files_val2017_is_meant_or_one_is_named(tmp_path: Path) -> None:
    root = coco(coco(tmp_path, name="train2017"))
    assert opened(root).name.endswith("val2017")
    assert opened(root / "annotations" / "instances_train2017.json").name.endswith("train2017")
    (root / "annotations" / "instances_val2017.json").rename(root / "annotations" / "instances_test.json")
    with pytest.raises(
        FasterViTError, match=r"has 2 files instances_.*; name one of them instead of the folder, as '.*"
    ):
        opened(root)
    for file in (root / "annotations").iterdir():
        file.rename(file.with_name(file.name.replace("instances", "captions")))
    with pytest.raises(FasterViTError, match=r"annotations' has no instances_\*.json"):
        opened(root)


def changed(entries: str, number: int, **values: Any) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        content[entries][number].update(values)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("annotations", 1, image_id=11), "annotation 101 is of image 11, which 'images' does not list"),
        (changed("annotations", 1, category_id=4), "annotation 101 is of category 4, which 'categories' does not list"),
        (changed("annotations", 1, bbox=[1, 2, 3]), r"bbox of annotation 101 is \[1, 2, 3\], not left, top, width and"),
        (changed("annotations", 1, bbox=[1, 2, 3, float("nan")]), "is .*nan.*, not left, top, width and height"),
        (changed("annotations", 1, bbox=[1, 2, 3, 10**400]), "not left, top, width and height"),
        (changed("annotations", 1, bbox=[1, 2, 0, 5]), "it has no area"),
        (changed("annotations", 1, bbox=[31, 2, 30.5, 5]), r"outside of '0.jpg' of 60x40 pixels"),
        (changed("annotations", 1, bbox=[-1.5, 2, 30, 5]), r"outside of '0.jpg' of 60x40 pixels"),
        (changed("annotations", 1, bbox=[60.2, 2, 0.5, 5]), r"outside of '0.jpg' of 60x40 pixels"),
        (changed("annotations", 1, area=float("inf")), "area of annotation 101 is inf, not a number of pixels"),
        (changed("images", 1, id=10), "2 images have the id 10"),
        (changed("images", 1, id="x"), "the id of an image is 'x', not a whole number"),
        (changed("images", 1, file_name="../0.jpg"), "is '../0.jpg', outside of the folder of images"),
        (changed("images", 1, width=0), "image 30, '2.jpg', has no height and width in pixels"),
        (changed("images", 1, width=63), r"2.jpg' is 64x64 pixels, but '.*json' was made for 63x64"),
        (changed("images", 1, file_name="5.jpg"), "annotates '5.jpg', not to be found in '.*val2017'; add the images"),
        (changed("categories", 1, id=7), "2 categories have the id 7"),
        (lambda content: content.pop("categories"), "is no COCO file for detection: it has no list 'categories'"),
        (lambda content: content["categories"].clear(), "'categories' is empty"),
        (lambda content: content["images"].clear(), "'images' is empty"),
        (lambda content: content["annotations"].clear(), "'annotations' is empty"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: Callable[[Json], None], message: str) -> None:
    content = coco_content()
    change(content)
    with pytest.raises(FasterViTError, match=message) as refused:
        opened(coco(tmp_path, content))
    assert "instances_val2017.json" in str(refused.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    root = coco(tmp_path)
    file = root / "annotations" / "instances_val2017.json"
    text = file.read_text()
    for broken in (text[: len(text) // 2], ""):
        file.write_text(broken)
        with pytest.raises(FasterViTError, match=r"instances_val2017.json' is cut off or no JSON \("):
            opened(root)
    file.write_text("[1]")
    with pytest.raises(FasterViTError, match="it has no list 'images'"):
        opened(root)
    file.write_text(text)
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(FasterViTError, match=r"none of the 4 images of '.*' is in '.*val2017' or '.*images'; put them"):
        opened(root)


def test_a_box_may_reach_one_pixel_beyond_the_picture(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [-0.9, -0.9, 61.7, 41.7]
    assert objects(opened(coco(tmp_path, content)), 0).boxes[0].tolist() == [0, 0, 1, 1]


def test_the_identity_changes_with_pictures_boxes_and_what_is_left_out(tmp_path: Path) -> None:
    root = coco(tmp_path)
    seen = {opened(root).sha256(), opened(root).sha256([3])}
    picture(root / "val2017" / "0.jpg", SIZES[0], 101)
    seen.add(opened(root).sha256())
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    coco(root, content)
    moved = opened(root).sha256()
    content["annotations"][2]["iscrowd"] = 0
    assert len(seen | {moved, opened(coco(root, content)).sha256()}) == 5
    assert opened(root).sha256() == opened(root).sha256()


def test_other_classes_than_the_models_are_refused(tmp_path: Path) -> None:
    data = opened(coco(tmp_path))
    data.check_classes(3, "the model")
    with pytest.raises(FasterViTError, match=re.escape(f"data '{data.name}' has 3 classes, the model 80")):
        data.check_classes(80, "the model")


def test_orientation_tags_are_ignored(tmp_path: Path) -> None:
    root = coco(tmp_path)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", SIZES[0][::-1]).save(root / "val2017" / "0.jpg", exif=tags)
    assert opened(root).sizes[0] == SIZES[0]
