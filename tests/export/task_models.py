"""Small detectors and segmenters whose every weight matters: transformers starts most of them near zero."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from fastervit_trt.models import create_model
from fastervit_trt.models.tasks.heads import DetectionHead, SegmentationHead
from fastervit_trt.models.tasks.model import TaskModel

SIZE = (96, 128)
QUERIES = 20
POSITIONS = 252  # of the three maps at that size
HEADS = {
    "detection": DetectionHead(hidden_size=16, feedforward=32, decoder_layers=2, heads=2, queries=QUERIES, denoising=0),
    "segmentation": SegmentationHead(hidden_size=16),
}


def small_model(task: str, size: tuple[int, int] = SIZE, seed: int = 0, queries: int = QUERIES) -> TaskModel:
    """Of 5 classes; statistics of BatchNorms and the linear layers of heads are drawn anew."""
    torch.manual_seed(seed)
    head = HEADS[task] if task != "detection" else replace(HEADS[task], queries=queries)
    # Windows of 4 in stage 2: several of them, with carriers.
    model: TaskModel = create_model(
        "faster_vit_digits_s", size, task=task, num_classes=5, window_size=(7, 7, 4, 2), head=head
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Linear) and ".trunk." not in name:
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Conv2d) and ".trunk." not in name:
            nn.init.kaiming_normal_(module.weight)
    return model.eval()
