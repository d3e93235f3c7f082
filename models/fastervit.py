"""FasterViT (arXiv 2306.06189) in plain PyTorch: image in, class logits out, with the official state-dict layout.

stem → conv stage → conv stage → HAT stage → HAT stage → BatchNorm → mean over the map → linear head
       (each of the first three stages ends in a stride-2 downsample that doubles the channels)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.conv import ConvBlock, Downsample, PatchEmbed
from fastervit_trt.models.hat import HATStage

__all__ = ["ConvStage", "FasterViT"]


class ConvStage(nn.Module):
    """Residual convolution blocks, then the downsampler: (B, C, H, W) → (B, 2C, ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, dim: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(dim, rate) for rate in drop_path)
        self.downsample = Downsample(dim)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.downsample(x_BCHW)


class FasterViT(nn.Module):
    """(B, in_chans, H, W) float images, H x W = ``config.resolution`` → (B, num_classes) logits."""

    def __init__(self, config: FasterViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_chans, config.in_dim, config.dim)
        self.levels = nn.ModuleList(_stages(config))
        features = config.stage_dim(3)
        self.norm = nn.BatchNorm2d(features, eps=1e-5)
        self.head = nn.Linear(features, config.num_classes)
        self.apply(_init_linear)

    def forward_features(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, 8·dim, ⌈H/32⌉, ⌈W/32⌉), normalised, not pooled."""
        x = self.patch_embed(x_BCHW)
        for level in self.levels:
            x = level(x)
        return self.norm(x)

    def forward_head(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(x_BCHW.mean(dim=(2, 3)))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x_BCHW))


def _stages(config: FasterViTConfig) -> list[nn.Module]:
    rates = np.linspace(0.0, config.drop_path_rate, sum(config.depths)).tolist()
    stages: list[nn.Module] = []
    for i, depth in enumerate(config.depths):
        start, dim = sum(config.depths[:i]), config.stage_dim(i)
        drop_path = rates[start : start + depth]
        if i < 2:
            stages.append(ConvStage(dim, drop_path))
            continue
        stages.append(
            HATStage(
                dim,
                depth,
                config.num_heads[i],
                config.geometry(i),
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                drop_path=drop_path,
                propagate=config.do_propagation,
                carrier_order=config.carrier_order,
                downsample=Downsample(dim) if i < 3 else None,
            )
        )
    return stages


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
