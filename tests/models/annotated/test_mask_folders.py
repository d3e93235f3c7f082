"""ADE20K's layout and the plain one: which value is which class, and masks that do not fit their pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated import AnnotatedImages, open_annotated
from tests.models.annotated.layouts import SIZES, ade20k, mask_folder, mask_values, picture


def opened(root: Path) -> AnnotatedImages:
    return open_annotated("segmentation", str(root))


def mask(data: AnnotatedImages, index: int) -> np.ndarray:
    found = data.annotation(index)
    assert isinstance(found, np.ndarray)
    return found


def test_ade20k_counts_from_one_and_zero_is_nothing(tmp_path: Path) -> None:
    data = opened(ade20k(tmp_path))
    assert (data.task, data.classes, data.sizes) == ("segmentation", 150, SIZES)
    for i, size in enumerate(SIZES):
        np.testing.assert_array_equal(mask(data, i), mask_values(i, size, 151).astype(int) - 1)
    assert mask(data, 0).dtype == np.int64
    assert (min(mask(data, i).min() for i in range(4)), max(mask(data, i).max() for i in range(4))) == (-1, 149)


def test_ade20k_has_the_names_of_its_table(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    rows = [f"{i + 1} \t0.1\t10\t1\tname {i}, other word" for i in range(150)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    assert opened(root).class_names == tuple(f"name {i}" for i in range(150))
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows[:-1]]))
    with pytest.raises(FasterViTError, match=r"objectInfo150.txt' does not list the classes 1 to 150 in order"):
        opened(root)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_plain_folder_counts_the_lines_of_its_list(tmp_path: Path, mode: str) -> None:
    root = mask_folder(tmp_path, mode=mode)
    wide = np.array(Image.open(root / "masks" / "3.png"))
    wide[:7] = 255
    Image.fromarray(wide).save(root / "masks" / "3.png")
    data = opened(root)
    assert (data.classes, data.class_names) == (3, ("road", "sky", "tree"))
    np.testing.assert_array_equal(mask(data, 1), mask_values(1, SIZES[1], 3))
    assert (mask(data, 3)[:7] == -1).all()
    np.testing.assert_array_equal(mask(data, 3)[7:], mask_values(3, SIZES[3], 3)[7:])


def test_deeper_folders_and_16_bits_are_read(tmp_path: Path) -> None:
    root = mask_folder(tmp_path)
    picture(root / "images" / "town" / "0.png", (10, 12))
    (root / "masks" / "town").mkdir()
    Image.fromarray(np.full((10, 12), 2, np.uint16)).save(root / "masks" / "town" / "0.png")
    data = opened(root)
    assert [str(path.relative_to(root / "images")) for path in map(Path, data.images)][-1] == "town/0.png"
    assert (mask(data, 4) == 2).all()


def in_colours(path: Path) -> None:
    Image.new("RGB", SIZES[1][::-1]).save(path)


def one_row_more(path: Path) -> None:
    Image.new("L", (SIZES[1][1], SIZES[1][0] + 1)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (in_colours, r"mask '.*1.png' is in colours \(RGB\); .* greyscale or palette PNG"),
        (one_row_more, r"mask '.*1.png' is 32x49 pixels, its image '.*1.jpg' 32x48; they must be of one size"),
        (Path.unlink, r"1.jpg' has no mask of the same name in '.*masks' \(a PNG\)"),
        (lambda path: path.write_bytes(b""), r"mask '.*1.png' cannot be read \(the file is empty\); replace it, or"),
        (lambda path: path.write_bytes(b"x"), r"mask '.*1.png' cannot be read \(it is no image\)"),
        (lambda path: picture(path.with_name("9.png"), (8, 8)), r"masks/9.png' has no image of the same name"),
        (lambda path: picture(path.parents[1] / "images/1.png", SIZES[1]), r"1.jpg', '.*1.png' would share one mask"),
        (lambda path: (path.parents[1] / "classes.txt").unlink(), r"classes.txt' is missing; name the classes there"),
        (lambda path: (path.parents[1] / "classes.txt").write_text("\n"), r"classes.txt' is empty"),
        (lambda path: (path.parents[1] / "classes.txt").write_text("a\na"), r"it names 'a' more than once"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    root = mask_folder(tmp_path)
    damage(root / "masks" / "1.png")
    with pytest.raises(FasterViTError, match=message):
        opened(root)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for folder in ("images/validation", "annotations/validation"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(FasterViTError, match=r"images/validation' has no images"):
        opened(tmp_path)


def test_values_and_pixels_are_checked_when_a_mask_is_read(tmp_path: Path) -> None:
    root = mask_folder(tmp_path)
    (root / "classes.txt").write_text("road\nsky")
    data = opened(root)
    with pytest.raises(FasterViTError, match=r"0.png' holds the value 2, but 2 classes are 0 to 1, and 255 is what"):
        mask(data, 0)
    path = root / "masks" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FasterViTError, match=r"mask '.*1.png' cannot be read \("):
        mask(data, 1)


def test_a_picture_that_cannot_be_read_is_left_to_the_batches(tmp_path: Path) -> None:
    root = mask_folder(tmp_path)
    (root / "images" / "1.jpg").write_bytes(b"")
    assert opened(root).sizes == SIZES


def test_the_identity_changes_with_masks(tmp_path: Path) -> None:
    root = mask_folder(tmp_path)
    before = opened(root).sha256()
    assert before == opened(root).sha256()
    path = root / "masks" / "1.png"
    values = np.array(Image.open(path))
    values[0, 0] = (values[0, 0] + 1) % 3
    Image.fromarray(values).save(path)
    after = opened(root).sha256()
    (root / "classes.txt").write_text("road\nsky\ntree\nsea")
    assert len({before, after, opened(root).sha256()}) == 3
