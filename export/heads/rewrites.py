"""The rewrites of transformers' heads: each changes a model in place and says how many places it changed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastervit_trt.export.heads.modules import DeformableAttention, PooledBins, SelfAttention
from fastervit_trt.export.heads.static import StaticDetector, StaticSegmenter
from fastervit_trt.models.geometry import stage_resolutions
from fastervit_trt.models.tasks.model import Detector, Segmenter

__all__ = [
    "HEAD_REWRITES",
    "fold_batchnorm_into_head_convolutions",
    "make_deformable_attention_static",
    "make_pooling_static",
    "make_task_models_static",
    "merge_queries_and_keys",
    "merge_repvgg_branches",
]

_CONV_NAMES = ("conv", "0")  # as transformers calls a convolution beside its BatchNorm
_NORM_NAMES = ("batch_norm", "norm", "1")


def fold_batchnorm_into_head_convolutions(model: nn.Module) -> int:
    """conv → BN becomes one convolution, in heads."""
    folded = 0
    for head in _heads(model):
        for parent in head.modules():
            children = dict(parent.named_children())
            for conv_name, norm_name in product(_CONV_NAMES, _NORM_NAMES):
                conv, norm = children.get(conv_name), children.get(norm_name)
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, norm_name, nn.Identity())
                    folded += 1
    return folded


def merge_repvgg_branches(model: nn.Module) -> int:
    """A 3x3 and a 1x1 convolution of the same map, added, become one (arXiv 2101.03697). Needs folded BatchNorms."""
    merged = 0
    for head in _heads(model):
        block: Any
        for block in head.modules():
            if type(block).__name__ != "RTDetrV2RepVggBlock" or isinstance(block.conv2, _Nothing):
                continue
            large, small = block.conv1.conv, block.conv2.conv
            assert isinstance(large, nn.Conv2d) and isinstance(small, nn.Conv2d)
            weight, bias = large.weight + F.pad(small.weight, (1, 1, 1, 1)), _bias(large) + _bias(small)
            conv = nn.Conv2d(large.in_channels, large.out_channels, 3, padding=1, device="meta")
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            block.conv1, block.conv2 = conv, _Nothing()
            merged += 1
    return merged


def make_pooling_static(model: nn.Module) -> int:
    """Adaptive pooling of UperNet's pyramid becomes a product with the constant matrix of its bins."""
    replaced = 0
    for segmenter in model.modules():
        if not isinstance(segmenter, Segmenter):
            continue
        size = stage_resolutions(segmenter.config.resolution)[segmenter.backbone.out_indices[-1]]
        for parent in segmenter.network.modules():
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    side = child.output_size
                    assert isinstance(side, int)
                    setattr(parent, name, PooledBins(size, side))
                    # transformers' block runs through a plain list that holds its modules, too
                    layers = getattr(parent, "layers", None)
                    if isinstance(layers, list):
                        parent.layers = [getattr(parent, str(i)) for i in range(len(layers))]
                    replaced += 1
    return replaced


def make_deformable_attention_static(model: nn.Module) -> int:
    """RT-DETRv2's deformable attention becomes :class:`DeformableAttention`."""
    replaced = 0
    for detector in model.modules():
        if not isinstance(detector, Detector):
            continue
        maps = stage_resolutions(detector.config.resolution)
        sizes = tuple(maps[stage] for stage in detector.backbone.out_indices)
        for parent in detector.network.modules():
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "RTDetrV2MultiscaleDeformableAttention":
                    setattr(parent, name, DeformableAttention(child, sizes))
                    replaced += 1
    return replaced


def merge_queries_and_keys(model: nn.Module) -> int:
    """RT-DETR's self-attention becomes :class:`SelfAttention`."""
    replaced = 0
    for head in _heads(model):
        for parent in head.modules():
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "RTDetrV2SelfAttention":
                    setattr(parent, name, SelfAttention(child))
                    replaced += 1
    return replaced


def make_task_models_static(model: nn.Module) -> int:
    """Detectors and segmenters become :class:`StaticDetector` and :class:`StaticSegmenter`."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (Detector, Segmenter)):
                setattr(parent, name, StaticDetector(child) if isinstance(child, Detector) else StaticSegmenter(child))
                replaced += 1
    return replaced


class _Nothing(nn.Module):
    """Adds nothing to what it is added to."""

    def forward(self, x: torch.Tensor) -> float:
        return 0.0


def _heads(model: nn.Module) -> list[nn.Module]:
    """What stands on backbones; their own BatchNorms are not touched, having been folded."""
    return [module.network for module in model.modules() if isinstance(module, (Segmenter, Detector))]


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias


HEAD_REWRITES: tuple[Callable[[nn.Module], int], ...] = (
    fold_batchnorm_into_head_convolutions,
    merge_repvgg_branches,
    make_pooling_static,
    make_deformable_attention_static,
    merge_queries_and_keys,
    make_task_models_static,
)
