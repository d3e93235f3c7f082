"""Position modules: small MLPs over coordinates that yield a table (FasterViT §3, continuous position bias of Swin v2).

Both modules depend on nothing but their weights, so their output is a constant of a trained model:
``export.deploy`` evaluates them once. State-dict names and buffers are those of the official checkpoints.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["AttentionPositionBias", "PositionModule", "TokenPositionEmbedding"]

_HIDDEN = 512  # width of every position MLP in the published models


def _position_mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs, bias=False))


def _grid(ys: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    """(len(ys), len(xs), 2) of (y, x) pairs."""
    return torch.stack(torch.meshgrid(ys, xs, indexing="ij"), dim=-1)


class PositionModule(nn.Module, ABC):
    """A module whose ``forward()`` takes nothing and yields a position table.

    ``relative_bias`` holds the table as the checkpoint stored it: the official "deploy" buffer. It is loaded and
    kept for compatibility; the table itself always comes from the MLP, so a fresh model is never silently biasless.
    """

    relative_bias: torch.Tensor
    cpb_mlp: nn.Sequential

    @abstractmethod
    def forward(self) -> torch.Tensor: ...

    @property
    def _first(self) -> nn.Linear:
        layer = self.cpb_mlp[0]
        assert isinstance(layer, nn.Linear)
        return layer


class TokenPositionEmbedding(PositionModule):
    """Absolute embedding of a square token grid: table (1, tokens, C). Official ``PosEmbMLPSwinv1D``."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.side = math.isqrt(tokens)
        self.cpb_mlp = _position_mlp(dim)
        self.register_buffer("relative_bias", torch.zeros(1, tokens, dim))

    def forward(self) -> torch.Tensor:
        weight = self._first.weight
        half = max(self.side // 2, 1)  # a 1x1 grid has only the origin; the reference divides by zero there
        axis = (torch.arange(self.side, device=weight.device, dtype=torch.float32) - self.side // 2) / half
        coords_N2 = _grid(axis, axis).reshape(-1, 2).to(weight.dtype)
        return self.cpb_mlp(coords_N2).unsqueeze(0)  # 1, N, C


class AttentionPositionBias(PositionModule):
    """Additive attention bias (1, heads, tokens, tokens). Official ``PosEmbMLPSwinv2D``.

    bias = 16 · sigmoid(MLP(sign(d) · log2(1 + |8 d / (side - 1)|) / log2 8)) gathered by relative offset d; tokens
    beyond ``side²`` (carriers, which come first) get rows and columns of zeros.
    """

    relative_coords_table: torch.Tensor
    relative_position_index: torch.Tensor

    def __init__(self, side: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.extra = tokens - side * side
        self.cpb_mlp = _position_mlp(heads)
        offsets = torch.arange(-(side - 1), side, dtype=torch.float32) / max(side - 1, 1) * 8
        offsets = torch.sign(offsets) * torch.log2(offsets.abs() + 1) / math.log2(8)
        self.register_buffer("relative_coords_table", _grid(offsets, offsets).unsqueeze(0))  # 1, 2s-1, 2s-1, 2
        self.register_buffer("relative_position_index", _relative_index(side))  # s², s²
        self.register_buffer("relative_bias", torch.zeros(1, heads, tokens, tokens))

    def forward(self) -> torch.Tensor:
        index = self.relative_position_index
        table = self.cpb_mlp(self.relative_coords_table.to(self._first.weight.dtype)).reshape(-1, self.heads)
        bias = table[index.reshape(-1)].reshape(*index.shape, self.heads).permute(2, 0, 1)
        bias = 16 * torch.sigmoid(bias)
        return F.pad(bias, (self.extra, 0, self.extra, 0)).unsqueeze(0)  # 1, h, N, N


def _relative_index(side: int) -> torch.Tensor:
    """Row-major index into the (2s-1)² offset table for every (query, key) pair of an s x s window."""
    positions = _grid(torch.arange(side), torch.arange(side)).reshape(-1, 2)
    offset = positions[:, None] - positions[None, :] + (side - 1)  # s², s², 2
    return offset[..., 0] * (2 * side - 1) + offset[..., 1]
