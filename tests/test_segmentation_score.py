"""mIoU of masks: by hand, against a plain computation, at other sizes, with what is not annotated or not a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated import AnnotatedImages, open_annotated
from fastervit_trt.scoring import Score, Scorer, paired_difference, scorer
from tests.models.annotated.layouts import ade20k, mask_folder


def in_memory(*masks: list[list[int]], classes: int = 3) -> AnnotatedImages:
    """Data of small masks; -1 is not annotated."""
    arrays = tuple(np.array(mask) for mask in masks)
    return AnnotatedImages("segmentation", "small", (), tuple(m.shape for m in arrays), arrays, classes, ())


def scored(data: AnnotatedImages, *masks: np.ndarray, reference: tuple[np.ndarray, ...] | None = None) -> Scorer:
    """All images of ``data``, one a batch."""
    made = scorer(data)
    for i, mask in enumerate(masks):
        theirs = None if reference is None else [reference[i][None].astype(np.float32)]
        made.add([mask[None].astype(np.float32)], np.array([i]), theirs)
    return made


def test_by_hand() -> None:
    data = in_memory([[0, 0, 1, 1], [0, 0, 1, -1]], [[2, 2, 1, 1]])
    score = scored(data, np.array([[0, 1, 1, 1], [0, 0, 2, 2]]), np.array([[2, 0, 1, 1]])).result()
    # 0: 3 right of 4 annotated and 4 predicted; 1: 4 of 5 and 5; 2: 1 of 2 and 2 (one of 3 where nobody annotated)
    overlaps = [3 / 5, 4 / 6, 1 / 3]
    assert score.value == pytest.approx(np.mean(overlaps))
    assert score.further == pytest.approx(
        {
            "pixel accuracy": 8 / 11,
            "mean class accuracy": (3 / 4 + 4 / 5 + 1 / 2) / 3,
            **{f"IoU of class {i}": overlap for i, overlap in enumerate(overlaps)},
        }
    )
    assert (score.metric, score.images, score.agreement, score.non_finite) == ("mIoU", 2, None, 0)
    assert score.low <= score.value <= score.high


def test_a_class_that_nobody_annotated_is_not_in_the_mean() -> None:
    data = in_memory([[0, 0, 1, 1]])
    score = scored(data, np.array([[0, 2, 1, 1]])).result()
    assert score.value == pytest.approx((1 / 2 + 1) / 2)
    assert "IoU of class 2" not in score.further


def test_values_that_are_no_class_are_wrong_and_those_that_are_no_number_are_counted() -> None:
    data = in_memory([[0, 0, 0, 0, 1, 1, 1, 1]])
    mask = np.array([[0, np.nan, np.inf, -1, 1, 1, 3, 1]])
    score = scored(data, mask, reference=(mask,)).result()
    assert score.value == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert score.non_finite == 2
    assert score.agreement == pytest.approx(4 / 8)  # what is no class agrees with nothing


def test_a_mask_of_another_size_counts_by_its_nearest_pixels() -> None:
    truth = [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert scored(in_memory(truth), np.array([[0, 1, 2], [1, 1, 0]])).result().value == 1
    large = np.array(truth).repeat(3, 0).repeat(5, 1)
    assert scored(in_memory(truth), large).result().value == 1
    # two thirds of a row: centres at 1/6, 1/2 and 5/6 of it lie in the halves 0, 1, 1
    assert scored(in_memory([[0, 1, 1]]), np.array([[0, 1]])).result().value == 1
    off_by_half = np.roll(large, 2, axis=1)  # less than half of a pixel's five
    assert scored(in_memory(truth), off_by_half).result().value == 1


def plain(truths: list[np.ndarray], masks: list[np.ndarray], classes: int) -> float:
    truth, mask = (np.concatenate([one.ravel() for one in many]) for many in (truths, masks))
    mask = np.where(truth < 0, -1, mask)
    overlaps = []
    for index in range(classes):
        if (truth == index).any():
            overlaps.append(((truth == index) & (mask == index)).sum() / ((truth == index) | (mask == index)).sum())
    return float(np.mean(overlaps))


def noisy(data: AnnotatedImages, share: float, seed: int) -> list[np.ndarray]:
    """The annotation with some pixels of any class."""
    rng = np.random.default_rng(seed)
    truths = [np.asarray(data.annotation(i)) for i in range(len(data))]
    return [np.where(rng.random(t.shape) < share, rng.integers(0, data.classes, t.shape), t).clip(0) for t in truths]


@pytest.mark.parametrize("layout", [ade20k, mask_folder])
def test_files_give_what_a_plain_computation_gives(tmp_path: Path, layout: object) -> None:
    assert callable(layout)
    data = open_annotated("segmentation", str(layout(tmp_path)))
    masks = noisy(data, 0.4, 1)
    made = scored(data, *masks)
    score = made.result()
    truths = [np.asarray(data.annotation(i)) for i in range(len(data))]
    assert score.value == pytest.approx(plain(truths, masks, data.classes), abs=1e-12)
    again = [0, 2, 2, 2]  # a resample is what the images together would give
    weights = np.bincount(again, minlength=4)[None]
    expected = plain([truths[i] for i in again], [masks[i] for i in again], data.classes)
    assert made.per_image().values(weights)[0] == pytest.approx(expected, abs=1e-12)
    assert score.low < score.value < score.high
    assert data.class_names == () or score.further.keys() >= {"IoU of road", "IoU of sky", "IoU of tree"}


def test_agreement_is_the_share_of_annotated_pixels(tmp_path: Path) -> None:
    data = open_annotated("segmentation", str(mask_folder(tmp_path)))
    masks, reference = noisy(data, 0.3, 1), noisy(data, 0.3, 2)
    score = scored(data, *masks, reference=tuple(reference)).result()
    same = sum(int((one == other).sum()) for one, other in zip(masks, reference, strict=True))
    assert score.agreement == pytest.approx(same / sum(m.size for m in masks))
    assert scored(data, *masks, reference=tuple(masks)).result().agreement == 1


def test_a_better_model_on_the_same_images(tmp_path: Path) -> None:
    data = open_annotated("segmentation", str(mask_folder(tmp_path)))
    good, bad = (scored(data, *noisy(data, share, 1)) for share in (0.2, 0.25))
    drop = paired_difference(good, bad)
    assert drop.points == pytest.approx(100 * (good.result().value - bad.result().value))
    assert 0 < drop.low < drop.high


def test_batches_in_any_order_are_the_same_images(tmp_path: Path) -> None:
    data = open_annotated("segmentation", str(mask_folder(tmp_path)))
    masks = noisy(data, 0.3, 1)
    backwards = scorer(data)
    for i in (3, 1, 0, 2):
        backwards.add([masks[i][None].astype(np.float32)], np.array([i]))
    forwards = scored(data, *masks)
    score: Score = forwards.result()
    assert backwards.result() == score
    assert paired_difference(forwards, backwards).points == 0
    with pytest.raises(ValueError, match="image 1 was scored already"):
        backwards.add([masks[1][None].astype(np.float32)], np.array([1]))
    with pytest.raises(ValueError, match="for all batches or for none"):
        backwards.add([masks[1][None].astype(np.float32)], np.array([1]), [masks[1][None].astype(np.float32)])


def test_nothing_annotated_is_an_error() -> None:
    with pytest.raises(FasterViTError, match="no pixel of the 1 images of 'small' is annotated"):
        scored(in_memory([[-1, -1]]), np.array([[0, 1]])).result()
