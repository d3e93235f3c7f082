"""FasterViT (arXiv 2306.06189) in plain PyTorch: image in, class logits out, with the official state-dict layout.

stem → conv stage → conv stage → HAT stage → HAT stage → BatchNorm → mean over the map → linear head
       (each of the first three stages ends in a stride-2 downsample that doubles the channels)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig, with_resolution
from fastervit_trt.models.conv import ConvBlock, Downsample, PatchEmbed
from fastervit_trt.models.hat import HATStage

__all__ = ["ConvStage", "FasterViT", "FasterViTBackbone", "FeatureInfo", "Trunk"]


class ConvStage(nn.Module):
    """Residual convolution blocks, then the downsampler: (B, C, H, W) → (B, 2C, ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, dim: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(dim, rate) for rate in drop_path)
        self.downsample: nn.Module | None = Downsample(dim)

    def forward(self, x_BCHW: torch.Tensor, *, downsample: bool = True) -> torch.Tensor:
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.downsample(x_BCHW) if downsample and self.downsample is not None else x_BCHW


class Trunk(nn.Module):
    """Stem and stages, with the keys of the official checkpoints; what classifier and backbone share."""

    def __init__(self, config: FasterViTConfig, stages: int = 4) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_chans, config.in_dim, config.dim)
        self.levels = nn.ModuleList(_stages(config)[:stages])

    def set_resolution(self, resolution: tuple[int, int]) -> None:
        """Serve images of another size (H, W): position tables are made anew from their MLPs, parameters are kept.

        Raises:
            FasterViTError: impossible size, or one that needs parameters this model was built without (carriers or
                their position embedding, where the construction size had none); the model is then as before.
        """
        config = with_resolution(self.config, resolution)
        try:
            self._retarget(config)
        except FasterViTError:
            self._retarget(self.config)
            raise
        self.config = config

    def reset_derived_buffers(self) -> None:
        """Make every buffer that follows from the configuration anew, e.g. after construction without memory."""
        self._retarget(self.config)

    def _retarget(self, config: FasterViTConfig) -> None:
        for i, level in enumerate(self.levels):
            retarget = getattr(level, "retarget", None)  # of HAT stages, in whatever form
            if callable(retarget):
                retarget(config.geometry(i))


class FasterViT(Trunk):
    """(B, in_chans, H, W) float images, H x W = ``config.resolution`` → (B, num_classes) logits."""

    def __init__(self, config: FasterViTConfig) -> None:
        super().__init__(config)
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


@dataclass(frozen=True)
class FeatureInfo:
    """One output of the backbone form."""

    stage: int
    channels: int
    stride: int  # input pixels per map pixel


class FasterViTBackbone(Trunk):
    """(B, in_chans, H, W) → the maps of the chosen stages, each before its downsample: (B, dim·2^i, ⌈H/2^(i+2)⌉, …).

    Stages after the last chosen one are not built. ``feature_info`` describes the outputs in order.

    Raises:
        FasterViTError: ``out_indices`` empty, unordered or out of range.
    """

    def __init__(self, config: FasterViTConfig, out_indices: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        if not out_indices or list(out_indices) != sorted(set(out_indices)) or not set(out_indices) <= set(range(4)):
            raise FasterViTError(f"out_indices {tuple(out_indices)} must be increasing stage numbers from 0 to 3")
        super().__init__(config, stages=out_indices[-1] + 1)
        self.out_indices = tuple(out_indices)
        self.levels[-1].downsample = None  # type: ignore[assignment]
        self.feature_info = tuple(FeatureInfo(i, config.stage_dim(i), 4 * 2**i) for i in out_indices)
        self.apply(_init_linear)

    def forward(self, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, maps = self.patch_embed(x_BCHW), []
        for i, level in enumerate(self.levels):
            x = level(x, downsample=False)
            if i in self.out_indices:
                maps.append(x)
            if isinstance(level.downsample, nn.Module):
                x = level.downsample(x)
        return tuple(maps)


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
