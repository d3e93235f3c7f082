"""The validation scenes that ship here, as data for detection or segmentation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastervit_trt.models.annotated.images import AnnotatedImages, Objects
from fastervit_trt.models.scenes.data import SCENE_CLASSES, VALIDATION_SCENES, Scene, scene
from fastervit_trt.models.tasks.heads import Task

__all__ = ["open_scenes"]

_BACKGROUND = "background"  # the first class of masks


def open_scenes(task: Task) -> AnnotatedImages:
    """Boxes of 10 digits, or masks of background and 10 digits.

    Raises:
        FasterViTError: scikit-learn, whose digits they show, is not installed.
    """
    scenes = _validation()
    detection = task == "detection"
    return AnnotatedImages(
        task=task,
        name="scenes, validation part",
        images=tuple(s.picture for s in scenes),
        sizes=tuple((s.picture.height, s.picture.width) for s in scenes),
        annotations=tuple(map(_objects, scenes)) if detection else tuple(s.mask.astype(np.uint8) for s in scenes),
        classes=len(SCENE_CLASSES) + (not detection),
        class_names=SCENE_CLASSES if detection else (_BACKGROUND, *SCENE_CLASSES),
    )


@lru_cache(maxsize=1)
def _validation() -> tuple[Scene, ...]:
    """All of them: drawing takes seconds, and both tasks ask for them."""
    return tuple(scene(index, "validation") for index in range(VALIDATION_SCENES))


def _objects(of: Scene) -> Objects:
    pixels = of.boxes.astype(np.float64).reshape(-1, 4)
    width, height = of.picture.size
    sides = pixels[:, 2:] - pixels[:, :2]
    return Objects(
        boxes=pixels / (width, height, width, height),
        labels=of.labels,
        crowd=np.zeros(len(of.labels), bool),
        areas=sides.prod(axis=1),
    )
