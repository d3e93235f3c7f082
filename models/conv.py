"""The convolutional half of FasterViT (§3): stem, residual convolution blocks, and the downsampler between stages."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ConvBlock", "Downsample", "DropPath", "LayerNorm2d", "PatchEmbed"]


class DropPath(nn.Module):
    """Stochastic depth per sample (arXiv 1603.09382): drops a residual branch while training, identity otherwise."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Stem, (B, in_chans, H, W) → (B, dim, H/4, W/4): two stride-2 3x3 convolutions with BatchNorm and ReLU."""

    def __init__(self, in_chans: int, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, in_dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(in_dim, eps=1e-4),
            nn.ReLU(),
            nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(dim, eps=1e-4),
            nn.ReLU(),
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.conv_down(x_BCHW)


class ConvBlock(nn.Module):
    """x + BN(conv(GELU(BN(conv(x))))), shape kept (§3, "Conv Blocks")."""

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim, eps=1e-5)
        self.act1 = nn.GELU()
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim, eps=1e-5)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        branch = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x_BCHW)))))
        return x_BCHW + self.drop_path(branch)


class Downsample(nn.Module):
    """(B, C, H, W) → (B, 2C, ⌈H/2⌉, ⌈W/2⌉): LayerNorm over channels, then a stride-2 3x3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.reduction = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.reduction(self.norm(x_BCHW))
