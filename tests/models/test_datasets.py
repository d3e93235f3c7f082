"""Folders of images: which image has which label, what is left out, what is refused, when two are the same."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import decoding
from fastervit_trt.models.class_folders import is_imagenet_1k
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages, open_calibration_images, open_dataset
from fastervit_trt.models.decoding import Unreadable, decoded, describe_unreadable

RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
SIZE = (32, 32)
WORDNET = ["n01440764", "n01443537", "n01484850"]


def fill(folder: Path, *levels: int) -> Path:
    """One even grey picture per level."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, level in enumerate(levels):
        Image.new("L", (20, 20), level).save(folder / f"{i:03}.png")
    return folder


def classes(root: Path, *names: str) -> Path:
    """Sub-folders with one picture each, whose grey level is 10 times its place in ``names``."""
    for i, name in enumerate(names):
        fill(root / name, 10 * i)
    return root


def seen(data: LabelledImages, size: int = 4) -> list[tuple[int, int]]:
    """Grey level and label of every image."""
    batches = data.batches(size, RAW, SIZE)
    pairs = [pair for images, labels in batches for pair in zip(images, labels, strict=True)]
    return [(round(float(image.mean()) * 255), int(label)) for image, label in pairs]


def test_folder_labels_follow_sorted_class_names(tmp_path: Path) -> None:
    for name, level, count in (("zebra", 200, 1), ("ant", 50, 2), ("bee", 100, 2)):
        fill(tmp_path / name / "deeper", *[level] * count)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._000.png").write_bytes(b"what macOS leaves beside a file")
    (tmp_path / ".cache").mkdir()
    data = open_dataset(str(tmp_path))
    assert (len(data), data.classes, data.labels.tolist()) == (5, 3, [0, 0, 1, 1, 2])
    assert data.class_names == ("ant", "bee", "zebra")
    batches = list(data.batches(2, RAW, (32, 48)))
    assert [x.shape for x, _ in batches] == [(2, 3, 32, 48), (2, 3, 32, 48), (1, 3, 32, 48)]
    np.testing.assert_allclose([x.mean() * 255 for x, _ in batches], [50, 100, 200], rtol=1e-5)


def test_the_folder_around_train_and_val_stands_for_val(tmp_path: Path) -> None:
    classes(tmp_path / "train", "a", "b", "c")
    classes(tmp_path / "val", *WORDNET[:2])
    (tmp_path / "val" / WORDNET[1] / "000.png").rename(tmp_path / "val" / WORDNET[1] / "ILSVRC2012_val_1.JPEG")
    data = open_dataset(str(tmp_path))
    assert (data.class_names, data.labels.tolist()) == (tuple(WORDNET[:2]), [0, 1])


def test_digits_are_the_held_out_third() -> None:
    data = open_dataset("digits")
    assert (len(data), data.classes) == (599, 10)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "class_a").mkdir()
    with pytest.raises(FasterViTError, match="has no images; it needs one sub-folder of images per class"):
        open_dataset(str(tmp_path))
    fill(tmp_path / "class_b", 1)
    with pytest.raises(FasterViTError, match=r"'class_a' in '.*' has no images, though it would count as a class"):
        open_dataset(str(tmp_path))
    with pytest.raises(FasterViTError, match="is neither 'digits' nor a folder"):
        open_dataset(str(tmp_path / "nowhere"))


def test_names_whose_order_is_a_matter_of_opinion_are_refused(tmp_path: Path) -> None:
    classes(tmp_path / "words", "class10", "class2")
    with pytest.raises(FasterViTError, match=r"is class 0: 'class10' \(sorted as text\) or 'class2' \(as numbers"):
        open_dataset(str(tmp_path / "words"))
    classes(tmp_path / "case", "ant", "Zebra")
    with pytest.raises(FasterViTError, match=r"is class 0: 'Zebra' .* or 'ant' "):
        open_dataset(str(tmp_path / "case"))
    (tmp_path / "case" / "classes.txt").write_text("ant\nZebra\n")
    assert open_dataset(str(tmp_path / "case")).class_names == ("ant", "Zebra")
    numbers = [str(i) for i in range(12)]  # as ImageNet-V2 names its folders
    assert seen(open_dataset(str(classes(tmp_path / "numbers", *numbers)))) == [(10 * i, i) for i in range(12)]


@pytest.mark.parametrize("file", ["classes.txt", "class_to_idx.json", "a list of ImageNet"])
def test_a_subset_keeps_the_numbers_that_a_file_gives_its_classes(tmp_path: Path, file: str) -> None:
    names = [*WORDNET, "n01491361"]
    classes(tmp_path, WORDNET[2], WORDNET[0])
    if file == "class_to_idx.json":
        (tmp_path / file).write_text(json.dumps({name: names.index(name) for name in reversed(names)}))
    elif file == "classes.txt":
        (tmp_path / file).write_bytes("\r\n".join(names).encode("utf-8-sig"))
    else:
        (tmp_path / "classes.txt").write_text("\n".join(f"{name} some fish, Piscis quidam" for name in names))
    data = open_dataset(str(tmp_path))
    assert (data.classes, data.class_names) == (4, tuple(names))
    assert seen(data) == [(10, 0), (0, 2)]
    data.check_classes(4, "the model")
    with pytest.raises(FasterViTError, match=r"has 4 classes, the model 1000; .*all names, one a line, in classes.txt"):
        data.check_classes(1000, "the model")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", "ant\nbee\n", r"'cat', 'dog' in '.*' is not in '.*classes.txt'; add or remove it"),
        ("classes.txt", "ant\nbee\ncat\ndog\nbee\n", "names 'bee' more than once"),
        ("class_to_idx.json", '{"ant": 0, "bee": 7, "cat": 1, "dog": 2}', "its 4 indices are not 0 to 3, each once"),
        ("class_to_idx.json", '{"ant": 0, "bee": "1"}', "does not number classes"),
        ("class_to_idx.json", '["ant", "bee"]', "not of the form"),
        ("class_to_idx.json", '{"ant": 0', "does not number classes"),
    ],
)
def test_a_file_that_does_not_number_the_classes_is_refused(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    (classes(tmp_path, "ant", "bee", "cat", "dog") / file).write_text(content)
    with pytest.raises(FasterViTError, match=message):
        open_dataset(str(tmp_path))


def test_two_files_that_number_the_classes_are_one_too_many(tmp_path: Path) -> None:
    classes(tmp_path, "ant")
    (tmp_path / "classes.txt").write_text("ant")
    (tmp_path / "class_to_idx.json").write_text('{"ant": 0}')
    with pytest.raises(FasterViTError, match="both number the classes; keep one"):
        open_dataset(str(tmp_path))


def test_a_thousand_other_wordnet_ids_are_not_imagenet(tmp_path: Path) -> None:
    names = tuple(f"n{i:08}" for i in range(1000))
    picture = (Image.new("L", (8, 8)),)
    data = LabelledImages("mine", picture, np.array([0]), 1000, class_names=names)
    assert not is_imagenet_1k(names)
    with pytest.raises(FasterViTError, match=r"are not those of ImageNet-1k in sorted order.* name them in its order"):
        data.check_classes(1000, "the model")
    mapped = LabelledImages("mine", picture, np.array([0]), 1000, class_names=names, mapping=tmp_path / "classes.txt")
    mapped.check_classes(1000, "the model")  # its owner says so
    with pytest.raises(FasterViTError, match=r"classes.txt' are not those of ImageNet-1k"):
        mapped.check_classes(1000, "the model", imagenet=True)
    words = tuple(f"word {i}" for i in range(1000))
    LabelledImages("words", picture, np.array([0]), 1000, class_names=words).check_classes(1000, "m", imagenet=True)


def damaged(tmp_path: Path) -> LabelledImages:
    """300 images, of which one is truncated, one empty and one a text: 1 %."""
    fill(tmp_path / "a", *range(150))
    fill(tmp_path / "b", *range(100, 250))
    whole = (tmp_path / "a" / "003.png").read_bytes()
    (tmp_path / "a" / "003.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "149.png").write_bytes(b"")
    (tmp_path / "b" / "149.png").write_text("no picture")
    return open_dataset(str(tmp_path))


def test_unreadable_images_are_left_out_named_and_shift_no_label(tmp_path: Path) -> None:
    data, left_out = damaged(tmp_path), list[Unreadable]()
    batches = list(data.numbered_batches(32, RAW, SIZE, left_out))
    assert [len(x) for x, _ in batches] == [32] * 9 + [9]
    assert np.concatenate([numbers for _, numbers in batches]).tolist() == [
        i for i in range(300) if i not in (3, 149, 299)
    ]
    levels = [i if i < 150 else i - 50 for i in range(300) if i not in (3, 149, 299)]
    assert seen(data) == [(level, int(i >= 149 - 1)) for i, level in enumerate(levels)]
    assert [image.index for image in left_out] == [3, 149, 299]
    assert [image.path.relative_to(tmp_path).as_posix() for image in left_out] == [
        "a/003.png",
        "a/149.png",
        "b/149.png",
    ]
    assert [image.reason for image in left_out][1:] == ["the file is empty", "it is no image"]
    assert "3.png' cannot be read (" in describe_unreadable(left_out)


def test_too_many_unreadable_images_are_an_error_that_names_the_first(tmp_path: Path) -> None:
    damaged(tmp_path)
    (tmp_path / "b" / "000.png").write_text("no picture")
    data = open_dataset(str(tmp_path))
    with pytest.raises(FasterViTError, match=r"a/003.png' .*a/149.png' .*b/000.png' .* and 1 more; at most 3 of 300"):
        seen(data)
    assert len(seen(open_dataset(str(tmp_path), max_unreadable=0.014))) == 296
    with pytest.raises(FasterViTError, match=r"a/003.png' cannot be read"):
        seen(open_dataset(str(tmp_path), max_unreadable=0.0))


def test_one_unreadable_image_is_tolerated_in_a_small_set_unless_it_is_all(tmp_path: Path) -> None:
    fill(tmp_path / "a", 7)
    (tmp_path / "a" / "broken.jpg").write_bytes(b"not a picture")
    assert seen(open_dataset(str(tmp_path))) == [(7, 0)]
    (tmp_path / "a" / "000.png").unlink()
    with pytest.raises(FasterViTError, match=r"broken\.jpg' cannot be read \(it is no image\)\. Remove or replace"):
        seen(open_dataset(str(tmp_path)))


def test_an_unreadable_calibration_image_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, *range(200))
    (tmp_path / "150.png").write_bytes(b"")
    images = open_calibration_images(str(tmp_path), 200)
    with pytest.raises(FasterViTError, match=r"150\.png' cannot be read \(the file is empty\)"):
        list(images.batches(16, RAW, SIZE))


class Gate:
    """``preprocess_image`` that notes the grey level it was given and lets pictures other than black ones wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.open = decoding.preprocess_image, threading.Event()
        self.started: list[int] = []
        monkeypatch.setattr(decoding, "usable_cpus", lambda: 3)
        monkeypatch.setattr(decoding, "preprocess_image", self)

    def __call__(self, image: Image.Image, how: Preprocessing, resolution: tuple[int, int]) -> np.ndarray:
        level = int(np.asarray(image)[0, 0])
        self.started.append(level)
        assert level == 0 or self.open.wait(20)
        return self.real(image, how, resolution)

    def wait_for(self, count: int) -> None:
        """Until ``count`` pictures are in work; and a little longer, for one too many."""
        until = time.monotonic() + 20
        while len(self.started) < count and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)


PICTURES = [Image.new("L", (4, 4), i) for i in range(60)]


def test_images_are_decoded_by_several_threads_in_order_and_a_bounded_number_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(monkeypatch)
    items = decoded(PICTURES, RAW, SIZE, ahead=7)
    levels = [next(items)]
    gate.wait_for(4)
    assert sorted(gate.started) == [0, 1, 2, 3]  # the black one is done, three threads have one each
    gate.open.set()
    gate.wait_for(8)
    assert sorted(gate.started) == list(range(8))  # nobody asked for more
    levels += items
    assert [round(float(x.mean()) * 255) for x in levels if isinstance(x, np.ndarray)] == list(range(60))


def test_a_reader_that_stops_waits_for_no_more_than_is_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    items = decoded(PICTURES, RAW, SIZE, ahead=40)
    next(items)
    gate.wait_for(4)
    threading.Timer(0.5, gate.open.set).start()
    items.close()
    assert len(gate.started) == 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_the_identity_of_a_data_set_is_what_accuracy_depends_on(tmp_path: Path) -> None:
    root = classes(tmp_path / "here", "ant", "bee")
    data = open_dataset(str(root))
    moved = open_dataset(str(shutil.copytree(root, tmp_path / "there")))
    assert data.sha256() == moved.sha256() == data.sha256()
    assert data.sha256(without=[1]) != data.sha256(without=[0]) != data.sha256()
    others = {data.sha256(), data.sha256(without=[1])}

    def changed() -> None:
        others.add(open_dataset(str(root)).sha256())

    (root / "classes.txt").write_text("bee\nant\n")  # other labels
    changed()
    (root / "classes.txt").write_text("ant\nbee\ncat\n")  # another number of classes
    changed()
    (root / "classes.txt").unlink()
    (root / "bee" / "000.png").rename(root / "bee" / "001.png")
    changed()
    content = bytearray((root / "ant" / "000.png").read_bytes())
    content[-1] ^= 1  # the same size
    (root / "ant" / "000.png").write_bytes(content)
    changed()
    assert len(others) == 6


def test_the_identity_of_many_images_needs_the_contents_of_few_and_the_size_of_all(tmp_path: Path) -> None:
    fill(tmp_path / "a", *[1] * 300)
    data = open_dataset(str(tmp_path))
    identities = {data.sha256()}
    for path in data.images[:10]:  # 256 of 300 are read, so not each of these
        assert isinstance(path, Path)
        path.write_bytes(path.read_bytes() + b"?")
        identities.add(data.sha256())
    for path in data.images[10:]:  # all compressed anew, to the same sizes
        assert isinstance(path, Path)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    identities.add(data.sha256())
    assert len(identities) == 12


def test_pictures_in_memory_have_an_identity(tmp_path: Path) -> None:
    pictures = tuple(Image.new("L", (8, 8), i) for i in range(3))
    labels = np.arange(3)
    identity = LabelledImages("one", pictures, labels, 3).sha256()
    assert LabelledImages("renamed", pictures, labels, 3).sha256() == identity
    assert LabelledImages("one", pictures[::-1], labels, 3).sha256() != identity
    assert LabelledImages("one", pictures, labels[::-1], 3).sha256() != identity
