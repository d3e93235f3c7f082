from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import open_dataset

RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))


def test_folder_labels_follow_sorted_class_names(tmp_path: Path) -> None:
    for name, level, count in (("zebra", 200, 1), ("ant", 50, 2), ("bee", 100, 2)):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i in range(count):
            Image.new("L", (20, 20), level).save(tmp_path / name / "deeper" / f"{i}.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    data = open_dataset(str(tmp_path))
    assert (len(data), data.classes, data.labels.tolist()) == (5, 3, [0, 0, 1, 1, 2])
    batches = list(data.batches(2, RAW, (32, 48)))
    assert [x.shape for x, _ in batches] == [(2, 3, 32, 48), (2, 3, 32, 48), (1, 3, 32, 48)]
    np.testing.assert_allclose([x.mean() * 255 for x, _ in batches], [50, 100, 200], rtol=1e-5)


def test_digits_are_the_held_out_third() -> None:
    data = open_dataset("digits")
    assert (len(data), data.classes) == (599, 10)


def test_folder_without_images_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "class_a").mkdir()
    with pytest.raises(FasterViTError, match="has no images; it needs one sub-folder of images per class"):
        open_dataset(str(tmp_path))
    with pytest.raises(FasterViTError, match="is neither 'digits' nor a folder"):
        open_dataset(str(tmp_path / "nowhere"))


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(FasterViTError, match=r"broken\.jpg' cannot be read"):
        list(open_dataset(str(tmp_path)).batches(1, RAW, (32, 32)))
