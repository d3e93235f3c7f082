"""Predicted boxes in, COCO's mean average precision out, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastervit_trt.average_precision import AveragePrecision
from fastervit_trt.bootstrap import bootstrap_interval
from fastervit_trt.detection_agreement import Agreement
from fastervit_trt.detections import Detections, detections
from fastervit_trt.errors import FasterViTError
from fastervit_trt.scoring import Score

if TYPE_CHECKING:
    from fastervit_trt.models.annotated.images import AnnotatedImages, Objects

__all__ = ["DetectionScorer"]

_MOST = 100  # detections per image and class that count, as in COCO's challenge
_SIZES = ("small", "medium", "large")  # below 32², below 96² pixels, and above: COCO's, of the original picture


class DetectionScorer:
    """COCO's mAP: mean over classes and over IoU thresholds 0.50, 0.55, … 0.95 of the average precision.

    At most 100 detections per image and class count, the surest. Detections with a value that is not finite are none.
    Agreement is that of :class:`~fastervit_trt.detection_agreement.Agreement`.
    """

    def __init__(self, data: AnnotatedImages) -> None:
        _pycocotools()
        self._data = data
        self._found: dict[int, Detections] = {}  # by image
        self._agreement: Agreement | None = None
        self._non_finite = 0
        self._evaluated: Any = None  # pycocotools' COCOeval of all images so far

    def add(
        self, outputs: Sequence[np.ndarray], numbers: np.ndarray, reference: Sequence[np.ndarray] | None = None
    ) -> None:
        """Score one batch.

        Args:
            outputs: boxes (B, Q, 4) as left, top, right, bottom in shares of width and height, scores (B, Q), labels
                (B, Q).
            numbers: (B,) of these images in the data.
            reference: the same of PyTorch fp32 for the same images; for all batches or for none.
        """
        if self._found and (reference is None) != (self._agreement is None):
            raise ValueError("reference detections are needed for all batches or for none")
        self._non_finite += sum(int((~np.isfinite(values)).sum()) for values in outputs)
        self._evaluated = None
        for place, number in enumerate(map(int, numbers)):
            if number in self._found:
                raise ValueError(f"image {number} was scored already")
            self._found[number] = ours = detections(outputs, place)
            if reference is not None:
                self._agreement = self._agreement or Agreement()
                self._agreement.add(detections(reference, place), ours)

    def result(self) -> Score:
        """Of all batches so far.

        Raises:
            FasterViTError: there is no object on any of their images.
        """
        evaluated = self._evaluate()
        precision, recall = evaluated.eval["precision"], evaluated.eval["recall"]  # (T, 101, K, A, 1), (T, K, A, 1)
        value = _mean(precision[:, :, :, 0])
        if value is None:
            raise FasterViTError(f"there is no object on the {len(self._found)} images of '{self._data.name}' scored")
        low, high = bootstrap_interval(self.per_image())
        further = {
            "mAP@50": _mean(precision[0, :, :, 0]),
            "mAP@75": _mean(precision[5, :, :, 0]),
            **{f"mAP {size}": _mean(precision[:, :, :, 1 + area]) for area, size in enumerate(_SIZES)},
            "mAR": _mean(recall[:, :, 0]),
        }
        return Score(
            metric="mAP",
            images=len(self._found),
            value=value,
            low=low,
            high=high,
            further={name: mean for name, mean in further.items() if mean is not None},
            agreement=None if self._agreement is None else self._agreement.share(),
            non_finite=self._non_finite,
        )

    def per_image(self) -> AveragePrecision:
        """What each image so far contributes to the mAP."""
        return AveragePrecision.of(self._evaluate(), np.array(sorted(self._found)))

    def _evaluate(self) -> Any:
        """pycocotools' evaluation, accumulated."""
        if self._evaluated is None:
            numbers = sorted(self._found)
            entries = [(n, self._data.sizes[n]) for n in numbers]
            objects = [_objects(self._data.annotation(n), n, size) for n, size in entries]
            found = [_detected(self._found[n], n, size) for n, size in entries]
            self._evaluated = _evaluated(numbers, self._data.classes, _numbered(objects), _numbered(found))
        return self._evaluated


def _evaluated(numbers: Sequence[int], classes: int, objects: list[dict[str, Any]], found: list[dict[str, Any]]) -> Any:
    """``COCOeval`` of annotations and detections, evaluated and accumulated."""
    coco, coco_eval = _pycocotools()
    with _quiet():
        truth, detected = coco(), coco()
        for side, annotations in ((truth, objects), (detected, found)):
            side.dataset = {
                "images": [{"id": number} for number in numbers],
                "categories": [{"id": label} for label in range(classes)],
                "annotations": annotations,
            }
            side.createIndex()
        evaluation = coco_eval(truth, detected, "bbox")
        evaluation.params.maxDets = [_MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _objects(annotation: Objects | np.ndarray, number: int, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """pycocotools' entries of what is on image ``number``."""
    assert not isinstance(annotation, np.ndarray)
    rows = zip(_pixels(annotation.boxes, size), annotation.labels, annotation.crowd, annotation.areas, strict=True)
    for box, label, crowd, area in rows:
        yield {
            "image_id": number,
            "category_id": int(label),
            "bbox": box.tolist(),
            "area": float(area),
            "iscrowd": int(crowd),
        }


def _detected(found: Detections, number: int, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """pycocotools' entries of what was found on image ``number``."""
    for box, score, label in zip(_pixels(found.boxes, size), found.scores, found.labels, strict=True):
        yield {
            "image_id": number,
            "category_id": int(label),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
            "score": float(score),
        }


def _numbered(entries: Sequence[Iterator[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All with ids, from 1 on: pycocotools takes the id 0 for no match."""
    return [{**entry, "id": i + 1} for i, entry in enumerate(entry for image in entries for entry in image)]


def _pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 4) left, top, width, height in pixels; a box whose right is left of its left is empty."""
    height, width = size
    scaled = boxes * np.array([width, height, width, height], np.float64)
    return np.concatenate([scaled[:, :2], np.maximum(scaled[:, 2:] - scaled[:, :2], 0)], axis=1)


def _mean(values: np.ndarray) -> float | None:
    """Of classes that occur: pycocotools has -1 for the others. None where none does."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress that pycocotools prints; its errors are exceptions."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise FasterViTError("mean average precision needs pycocotools: pip install 'fastervit-trt[tasks]'") from error
    return COCO, COCOeval
