"""From what a head computes to the outputs of an export: plain functions, the same for every form of a model."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["decide_boxes", "decide_masks"]


def decide_masks(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits (B, classes, h, w) → masks (B, H, W): enlarged to ``size`` bilinearly, as UperNet does, then the class
    with the largest logit, the first of equal ones.
    """
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return large.argmax(dim=1).float()


def decide_boxes(logits: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (B, Q, classes) and boxes (B, Q, 4) as centre and size → boxes (B, Q, 4) as corners, scores, labels.

    The Q surest pairs of query and class, in float32, as in RT-DETR's own post-processing: one query may stand for two
    classes, and nothing is lost to a threshold.
    """
    logits, boxes = logits.float(), boxes.float()
    scores, places = logits.sigmoid().flatten(1).topk(logits.shape[1], dim=1)
    queries = torch.div(places, logits.shape[2], rounding_mode="floor")
    labels = places - queries * logits.shape[2]
    x, y, w, h = boxes.gather(1, queries[:, :, None].expand(-1, -1, 4)).unbind(-1)
    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1)
    return corners, scores, labels.float()
