"""A scenes model in, its figures on the validation split out."""

from __future__ import annotations

import torch

from fastervit_trt.models.annotated import open_annotated
from fastervit_trt.models.tasks.model import TaskModel
from fastervit_trt.models.variants import VARIANTS
from fastervit_trt.scoring import Score, scorer

__all__ = ["judge"]

_BATCH = 50


@torch.inference_mode()
def judge(model: TaskModel, name: str) -> Score:
    """How good ``model``, a variant ``name`` in eval mode, is on all validation scenes: mAP or mIoU.

    Raises:
        FasterViTError: scikit-learn or pycocotools is not installed.
    """
    data = open_annotated(model.task, "scenes")
    scoring = scorer(data)
    for images, numbers in data.batches(_BATCH, VARIANTS[name].preprocessing, model.config.resolution):
        scoring.add([output.numpy() for output in model(torch.from_numpy(images))], numbers)
    return scoring.result()
