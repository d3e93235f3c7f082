"""A model and scenes in, the loss to train it by out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.models.preprocessing import preprocess_image
from fastervit_trt.models.scenes.data import Scene
from fastervit_trt.models.tasks.model import Detector, Segmenter, TaskModel
from fastervit_trt.models.variants import VARIANTS

__all__ = ["DenseHints", "boxed_classes", "detection_loss", "pixels_of", "segmentation_loss"]


class DenseHints(nn.Module):
    """Which digit's box is at every position of a detector's maps, asked of a linear layer per map while training.

    A detector's queries learn slowly, because few of them are matched with an object; this tells every position at once
    what its features are for. Not part of the model.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        channels = [info.channels for info in model.backbone.feature_info]
        self.layers = nn.ModuleList(nn.Conv2d(width, model.config.num_classes + 1, 1) for width in channels)
        self.maps: tuple[torch.Tensor, ...] = ()
        model.backbone.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, maps: tuple[torch.Tensor, ...]) -> None:
        self.maps = maps

    def forward(self, boxed_BHW: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, summed over the maps of the last forward pass; ``boxed_BHW`` of :func:`boxed_classes`."""
        total = torch.zeros(())
        for layer, maps in zip(self.layers, self.maps, strict=True):
            # The digit at the middle of every position.
            wanted = F.interpolate(boxed_BHW[:, None], size=maps.shape[2:], mode="nearest-exact")[:, 0].long()
            total = total + F.cross_entropy(layer(maps), wanted)
        return total


def pixels_of(model: TaskModel, name: str, scenes: Sequence[Scene]) -> torch.Tensor:
    """(B, 3, H, W) as the variant ``name`` expects them."""
    how = VARIANTS[name].preprocessing
    return torch.from_numpy(np.stack([preprocess_image(s.picture, how, model.config.resolution) for s in scenes]))


def segmentation_loss(model: Segmenter, images: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
    """Cross-entropy of every pixel, as transformers' UperNet defines it."""
    return model.network(images, labels=torch.from_numpy(np.stack([s.mask for s in scenes]))).loss


def detection_loss(
    model: Detector, hints: DenseHints, images: torch.Tensor, scenes: Sequence[Scene], hint_weight: float
) -> torch.Tensor:
    """transformers' loss of RT-DETR (matching, auxiliary layers, denoising), plus the hints."""
    labels = [{"class_labels": torch.from_numpy(s.labels), "boxes": _centred(s)} for s in scenes]
    found = model.network(images, labels=labels).loss
    return found + hint_weight * hints(torch.from_numpy(np.stack([boxed_classes(s) for s in scenes])))


def boxed_classes(found: Scene) -> np.ndarray:
    """(H, W) float32: 0, or d + 1 in the box of digit d; the smaller box wins where two overlap."""
    filled = np.zeros(found.mask.shape, np.float32)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    for number in np.argsort(-areas, kind="stable"):
        left, top, right, bottom = found.boxes[number]
        filled[top:bottom, left:right] = found.labels[number] + 1
    return filled


def _centred(found: Scene) -> torch.Tensor:
    """Boxes (N, 4) as centre x, centre y, width, height in shares of the picture."""
    width, height = found.picture.size
    corners = found.boxes / np.array([width, height, width, height])
    start, end = corners[:, :2], corners[:, 2:]
    return torch.from_numpy(np.concatenate([(start + end) / 2, end - start], axis=1)).float()
