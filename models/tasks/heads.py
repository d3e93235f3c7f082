"""What a head is beside its backbone: the settings of transformers' UperNet and RT-DETRv2 that vary; no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.geometry import stage_resolutions

__all__ = [
    "LOGITS",
    "OUTPUTS",
    "TASKS",
    "TASK_CLASSES",
    "DetectionHead",
    "SegmentationHead",
    "Task",
    "check_detection_resolution",
    "get_task",
]

Task = Literal["classification", "segmentation", "detection"]
TASKS: dict[str, Task] = {name: name for name in get_args(Task)}

# Named outputs of an export. All are float32, also those that hold class indices: whole numbers, exact up to 2^24.
LOGITS = "logits"
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "classification": (LOGITS,),
    "segmentation": ("masks",),  # (B, H, W) class indices of every pixel
    "detection": ("boxes", "scores", "labels"),  # (B, Q, 4) in [0, 1], (B, Q) from the surest on, (B, Q) class indices
}

# Where nobody says how many classes a head has: those of ADE20K and of COCO, which backbones are compared on.
TASK_CLASSES: dict[Task, int] = {"segmentation": 150, "detection": 80}


@dataclass(frozen=True)
class SegmentationHead:
    """UperNet (arXiv 1807.10221): pyramid pooling on the last map, a feature pyramid over all four."""

    hidden_size: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary: bool = False  # a second, plain head on stage 2 while training; never part of an export
    stages = (0, 1, 2, 3)


@dataclass(frozen=True)
class DetectionHead:
    """RT-DETRv2 (arXiv 2407.17140): hybrid encoder over three maps, queries picked from it, a deformable decoder.

    Needs no non-maximum suppression: every object is one query's.
    """

    hidden_size: int = 256
    feedforward: int = 1024
    encoder_layers: int = 1
    decoder_layers: int = 6
    heads: int = 8
    points: int = 4  # that a query looks at, per map and head
    queries: int = 300
    expansion: float = 1.0  # of the convolutions between maps
    denoising: int = 100  # queries that training adds
    stages = (1, 2, 3)


def get_task(name: str) -> Task:
    """``name``, if it is one of :data:`TASKS`.

    Raises:
        FasterViTError: it is not.
    """
    if name not in TASKS:
        raise FasterViTError(f"unknown task '{name}'; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def check_detection_resolution(config: FasterViTConfig, head: DetectionHead) -> None:
    """RT-DETR doubles each map to lay it on the one before, and picks its queries among the positions of all.

    Raises:
        FasterViTError: the maps do not double, or have fewer positions than queries are wanted.
    """
    height, width = config.resolution
    maps = [stage_resolutions(config.resolution)[stage] for stage in head.stages]
    for large, small in pairwise(maps):
        if large != (2 * small[0], 2 * small[1]):
            near = [max(32, round(side / 32) * 32) for side in (height, width)]
            raise FasterViTError(
                f"detection at {height}x{width} is impossible: RT-DETR lays each map doubled on the one before, and "
                f"{small[0]}x{small[1]} doubled is not {large[0]}x{large[1]}; choose multiples of 32, "
                f"as {near[0]}x{near[1]}"
            )
    positions = sum(h * w for h, w in maps)
    if positions < head.queries:
        raise FasterViTError(
            f"detection at {height}x{width} is impossible: {head.queries} queries are picked among the positions of "
            f"the maps, which are {positions}; choose a larger resolution"
        )
