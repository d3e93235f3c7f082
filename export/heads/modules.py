"""Parts of transformers' heads in another form: the same algebra in operators that every runtime has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["DeformableAttention", "PixelsAround", "PooledBins", "SelfAttention"]


class PooledBins(nn.Module):
    """Adaptive average pooling of maps of one size: (B, C, H, W) → (B, C, s, s), as (B, C, H·W) x (H·W, s²)."""

    bins: torch.Tensor

    def __init__(self, size: tuple[int, int], side: int) -> None:
        super().__init__()
        self.side = side
        positions = torch.eye(size[0] * size[1]).reshape(-1, *size)
        self.register_buffer("bins", F.adaptive_avg_pool2d(positions, side).flatten(1))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return (x_BCHW.flatten(2) @ self.bins).unflatten(2, (self.side, self.side))


class PixelsAround(nn.Module):
    """The four pixels around each point of some maps, in a table of the pixels of all images, maps and heads.

    Points (B, Q, heads, P, 2) as shares of width and height → rows (B, Q, heads, P, 4) of the table (B, positions,
    heads), and what each counts for in bilinear interpolation: nothing where it is not in the map.

    Args:
        sizes: (height, width) of each map; the table has them one after the other.
        points: how many of the P points are in each map.
    """

    sides: torch.Tensor
    beside: torch.Tensor
    steps: torch.Tensor
    corners: torch.Tensor

    def __init__(self, sizes: Sequence[tuple[int, int]], points: Sequence[int], heads: int) -> None:
        super().__init__()
        areas = [height * width for height, width in sizes]
        self.rows = heads * sum(areas)  # of one image
        counts = torch.tensor(points)
        sides = torch.tensor(sizes).flip(1).repeat_interleave(counts, dim=0)  # (P, 2): width, height
        beside = (sides > 1).long()  # is there a second pixel
        steps = heads * torch.stack((torch.ones_like(sides[:, 0]), sides[:, 0]), dim=1)  # to the next pixel, in rows
        x, y = (beside * steps).unbind(1)
        corners = torch.stack((torch.zeros_like(x), x, y, x + y), dim=1)  # (P, 4)
        starts = heads * torch.tensor([0, *accumulate(areas)])[:-1].repeat_interleave(counts)
        firsts = torch.arange(heads)[:, None] + starts  # (heads, P)
        # Whole numbers, which no precision rounds.
        for name, table in {"sides": sides, "beside": beside, "steps": steps}.items():
            self.register_buffer(name, table)
        self.register_buffer("corners", firsts[:, :, None] + corners)

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sides, beside = self.sides.float(), self.beside.float()
        at = points * sides - 0.5  # a whole number is the centre of a pixel
        first = torch.minimum(at.floor().clamp(min=0), sides - 1 - beside)
        away = at - first
        near = torch.stack((1 - away.abs(), beside - (away - 1).abs()), dim=-1).relu()  # of both pixels along an axis
        shares = (near[..., 1, :, None] * near[..., 0, None, :]).flatten(-2)
        row = (first * self.steps.float()).sum(-1).long()
        rows = torch.maximum(row[..., None] + self.corners, self.corners)  # NaN as a whole number is far below 0
        image = torch.arange(points.shape[0], device=points.device) * self.rows
        return rows + image[:, None, None, None, None], shares


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (arXiv 2010.04159, equation 2) of RT-DETRv2 for maps of known sizes.

    Every query looks at a few points around its box on every map, between pixels; the scales of the offsets are in the
    weights. Drop-in for transformers' module: (B, Q, D) queries, (B, positions, D) maps in a row, (B, Q, 1, 4) boxes
    as centre and size → (B, Q, D), and the weights of the points.
    """

    def __init__(self, original: Any, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.heads = int(original.n_heads)
        self.around = PixelsAround(sizes, original.n_points_list, self.heads)
        # Offsets are in shares of the box, per point.
        rows = (original.offset_scale * original.n_points_scale).repeat(self.heads).repeat_interleave(2)
        offsets: nn.Linear = original.sampling_offsets
        self.sampling_offsets = nn.Linear(offsets.in_features, offsets.out_features, device="meta")
        self.sampling_offsets.weight = nn.Parameter(offsets.weight * rows[:, None])
        self.sampling_offsets.bias = nn.Parameter(offsets.bias * rows)
        self.attention_weights, self.value_proj, self.output_proj = (
            original.attention_weights,
            original.value_proj,
            original.output_proj,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert encoder_hidden_states is not None and position_embeddings is not None and reference_points is not None
        queries = hidden_states + position_embeddings
        offsets = self.sampling_offsets(queries).unflatten(2, (self.heads, -1, 2)).float()
        weights = self.attention_weights(queries).unflatten(2, (self.heads, -1)).softmax(-1)
        boxes = reference_points[:, :, :, None].float()  # (B, Q, 1, 1, 4)
        rows, shares = self.around(boxes[..., :2] + offsets * boxes[..., 2:])
        values = self.value_proj(encoder_hidden_states).unflatten(2, (self.heads, -1)).flatten(0, 2)
        found = F.embedding(rows, values).flatten(3, 4)  # (B, Q, heads, 4·P, D/heads)
        per_row = (weights[..., None] * shares.to(weights.dtype)).flatten(3)
        summed = per_row[:, :, :, None] @ found  # (B, Q, heads, 1, D/heads)
        return self.output_proj(summed.flatten(2)), weights


class SelfAttention(nn.Module):
    """RT-DETR's self-attention: positions go into queries and keys, not into values.

    Queries and keys, which are made of the same, in one product; their scale is in the weights. Drop-in for
    transformers' module: (B, N, D) → (B, N, D), and no weights.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        q, k = original.q_proj, original.k_proj
        assert isinstance(q, nn.Linear) and isinstance(k, nn.Linear)
        self.heads = q.out_features // int(original.head_dim)
        scale = float(original.scaling)
        self.qk = nn.Linear(q.in_features, 2 * q.out_features, device="meta")
        self.qk.weight = nn.Parameter(torch.cat([q.weight * scale, k.weight]))
        self.qk.bias = nn.Parameter(torch.cat([q.bias * scale, k.bias]))
        self.v_proj, self.o_proj = original.v_proj, original.o_proj

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        with_positions = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        q, k = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.qk(with_positions).chunk(2, dim=2))
        v = self.v_proj(hidden_states).unflatten(2, (self.heads, -1)).transpose(1, 2)
        weights = (q @ k.transpose(2, 3)).softmax(dim=3)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), None
