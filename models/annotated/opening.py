"""A name or a folder in, annotated images out: finds out which layout a folder has and whether it fits the task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated.coco import is_coco, open_coco
from fastervit_trt.models.annotated.images import AnnotatedImages
from fastervit_trt.models.annotated.mask_folders import is_ade20k, is_mask_folder, open_ade20k, open_mask_folder
from fastervit_trt.models.annotated.scenes import open_scenes
from fastervit_trt.models.picture_set import LEFT_OUT
from fastervit_trt.models.tasks.heads import Task

__all__ = ["open_annotated"]


@dataclass(frozen=True)
class _Layout:
    """How annotations lie in a folder."""

    name: str
    task: Task
    needs: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, float], AnnotatedImages]


_LAYOUTS = (
    _Layout("a COCO folder", "detection", "annotations/instances_*.json with its images", is_coco, open_coco),
    _Layout(
        "an ADE20K folder", "segmentation", "images/validation with annotations/validation", is_ade20k, open_ade20k
    ),
    _Layout("a folder of masks", "segmentation", "images with masks and classes.txt", is_mask_folder, open_mask_folder),
)

_DOES: dict[Task, str] = {"detection": "detects", "segmentation": "segments", "classification": "classifies"}


def open_annotated(task: Task, spec: str, max_unreadable: float = LEFT_OUT) -> AnnotatedImages:
    """Data to judge a detector or a segmenter on.

    Args:
        task: "detection" or "segmentation"; labels of whole images are :mod:`fastervit_trt.models.datasets`'.
        spec: "scenes" (the validation split that ships), or a folder: for detection in COCO's layout (or one of its
            ``instances_*.json``), for segmentation in ADE20K's, or ``images``, ``masks`` and ``classes.txt``.
        max_unreadable: share of images that may be unreadable and are then left out; one always may unless it is 0.

    Raises:
        FasterViTError: no such data, data of another task, or annotations that do not fit the images.
    """
    if task not in {layout.task for layout in _LAYOUTS}:
        raise ValueError(f"annotations are for detection and segmentation, not for {task}")
    if spec == "scenes":
        return open_scenes(task)
    if spec == "digits":
        raise FasterViTError(f"'digits' have one label per image, the model {_DOES[task]}: take 'scenes' or a folder")
    path = Path(spec)
    if not path.exists():
        raise FasterViTError(f"data '{spec}' is neither 'scenes' nor a folder")
    found = [layout for layout in _LAYOUTS if layout.recognises(path)]
    for layout in found:
        if layout.task == task:
            return layout.open(path, max_unreadable)
    needs = " or ".join(layout.needs for layout in _LAYOUTS if layout.task == task)
    if found:
        raise FasterViTError(
            f"'{spec}' is {found[0].name}, data for {found[0].task}, but the model {_DOES[task]}; that takes {needs}"
        )
    raise FasterViTError(f"'{spec}' has no annotations for a model that {_DOES[task]}; that takes {needs}")
