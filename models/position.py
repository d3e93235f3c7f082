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

from fastervit_trt.errors import FasterViTError

__all__ = ["AttentionPositionBias", "PositionModule", "TokenPositionEmbedding"]

_HIDDEN = 512  # width of every position MLP in the published models


def _position_mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs, bias=False))


def _grid(ys: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    """(len(ys), len(xs), 2) of (y, x) pairs."""
    return torch.stack(torch.meshgrid(ys, xs, indexing="ij"), dim=-1)


class PositionModule(nn.Module, ABC):
    """A module whose ``forward()`` takes nothing and yields a position table.

    The table comes from the MLP, so a fresh model is never silently without bias. ``relative_bias`` is the table as a
    checkpoint stored it (the published "deploy" buffer): kept for compatibility, and used only when the checkpoint
    dropped the MLP (:meth:`keep_stored_table`).
    """

    relative_bias: torch.Tensor
    cpb_mlp: nn.Sequential | None

    def forward(self) -> torch.Tensor:
        return self.relative_bias if self.cpb_mlp is None else self.table(self.cpb_mlp)

    @abstractmethod
    def table(self, mlp: nn.Sequential) -> torch.Tensor:
        """The table ``mlp`` yields for this module's token grid."""

    @abstractmethod
    def resize(self, side: int, tokens: int) -> None:
        """Make this module's buffers anew for a ``side`` x ``side`` grid within ``tokens`` tokens.

        Raises:
            FasterViTError: the grid changes and the MLP that could describe it is gone.
        """

    def keep_stored_table(self) -> None:
        """Drop the MLP and use ``relative_bias`` from now on, as checkpoints saved in deploy form require."""
        self.cpb_mlp = None

    def refresh_stored_table(self) -> None:
        """Write the current table into ``relative_bias``, for readers that use the buffer."""
        with torch.no_grad():
            self.relative_bias = self()

    def _check_resizable(self) -> None:
        if self.cpb_mlp is None:
            raise FasterViTError(
                "this model's position MLPs were dropped when its checkpoint was saved in deploy form, so its tables "
                "fit only the resolution it was saved at; load the full checkpoint"
            )


class TokenPositionEmbedding(PositionModule):
    """Absolute embedding of a square token grid: table (1, tokens, C). Official ``PosEmbMLPSwinv1D``."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.cpb_mlp = _position_mlp(dim)
        self.dim = dim
        self.side = side
        self.register_buffer("relative_bias", torch.zeros(1, side * side, dim))

    def resize(self, side: int, tokens: int) -> None:
        assert tokens == side * side
        if side != self.side:
            self._check_resizable()
        if self.cpb_mlp is not None:
            self.side = side
            self.relative_bias = self.relative_bias.new_zeros(1, tokens, self.dim)

    def table(self, mlp: nn.Sequential) -> torch.Tensor:
        weight = _first_weight(mlp)
        half = max(self.side // 2, 1)  # a 1x1 grid has only the origin; the reference divides by zero there
        axis = (torch.arange(self.side, device=weight.device, dtype=torch.float32) - self.side // 2) / half
        coords_N2 = _grid(axis, axis).reshape(-1, 2).to(weight.dtype)
        return mlp(coords_N2).unsqueeze(0)  # 1, N, C


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
        self.cpb_mlp = _position_mlp(heads)
        for name in ("relative_coords_table", "relative_position_index", "relative_bias"):
            self.register_buffer(name, torch.empty(0))
        self._make_buffers(side, tokens)

    def resize(self, side: int, tokens: int) -> None:
        if self.cpb_mlp is None and tokens != self.relative_bias.shape[-1]:
            self._check_resizable()
        if self.cpb_mlp is not None:
            self._make_buffers(side, tokens)

    def table(self, mlp: nn.Sequential) -> torch.Tensor:
        index = self.relative_position_index
        table = mlp(self.relative_coords_table.to(_first_weight(mlp).dtype)).reshape(-1, self.heads)
        bias = table[index.reshape(-1)].reshape(*index.shape, self.heads).permute(2, 0, 1)
        bias = 16 * torch.sigmoid(bias)
        return F.pad(bias, (self.extra, 0, self.extra, 0)).unsqueeze(0)  # 1, h, N, N

    def _make_buffers(self, side: int, tokens: int) -> None:
        device = self.relative_bias.device
        self.extra = tokens - side * side
        offsets = torch.arange(-(side - 1), side, device=device, dtype=torch.float32) / max(side - 1, 1) * 8
        offsets = torch.sign(offsets) * torch.log2(offsets.abs() + 1) / math.log2(8)
        self.relative_coords_table = _grid(offsets, offsets).unsqueeze(0)  # 1, 2s-1, 2s-1, 2
        self.relative_position_index = _relative_index(side, device)  # s², s²
        self.relative_bias = torch.zeros(1, self.heads, tokens, tokens, device=device)


def _first_weight(mlp: nn.Sequential) -> torch.Tensor:
    layer = mlp[0]
    assert isinstance(layer, nn.Linear)
    return layer.weight


def _relative_index(side: int, device: torch.device) -> torch.Tensor:
    """Row-major index into the (2s-1)² offset table for every (query, key) pair of an s x s window."""
    axis = torch.arange(side, device=device)
    positions = _grid(axis, axis).reshape(-1, 2)
    offset = positions[:, None] - positions[None, :] + (side - 1)  # s², s², 2
    return offset[..., 0] * (2 * side - 1) + offset[..., 1]
