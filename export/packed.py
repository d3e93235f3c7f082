"""A HAT stage in packed layout on the fused operators: the last rewrite of the deploy form.

Every window is N = R + T rows of one tensor (Wn, N, C), its R carriers first. Carriers stay where they are, so that no
block gathers or scatters windows; position tables arrive with the partition and, from the second block on, with the
bias of the MLP before. Letters as in ``plugins.reference``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.geometry import CarrierOrder, StageGeometry, carriers_to_raster, carriers_to_windows
from fastervit_trt.models.hat import HATBlock, HATStage, WindowAttention
from fastervit_trt.plugins import operators  # noqa: F401  registers torch.ops.fastervit

__all__ = [
    "PackedAttentionHalf",
    "PackedHATBlock",
    "PackedHATStage",
    "PackedWindowAttention",
    "carriers_in_window_order",
    "returning_carriers",
]


def carriers_in_window_order(geometry: StageGeometry) -> torch.Tensor:
    """For every carrier in window order, its place in raster order: (G,)."""
    return carriers_to_raster(_numbers(geometry), geometry.ct_size, geometry.grid).flatten().long().argsort()


def returning_carriers(geometry: StageGeometry, order: CarrierOrder) -> torch.Tensor | None:
    """For every carrier place in window order, the carrier that lands there after the global attention: (G,).

    None where each returns to its own: on square grids, and in the corrected order.
    """
    raster = carriers_to_raster(_numbers(geometry), geometry.ct_size, geometry.grid)
    landed = carriers_to_windows(raster, geometry.ct_size, geometry.grid, order).flatten().long()
    return None if torch.equal(landed, torch.arange(geometry.carriers)) else landed


class PackedWindowAttention(nn.Module):
    """The attention half of a window, without norm and residual: rows (Wn·N, C) → (Wn·N, C)."""

    bias: torch.Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.register_buffer("bias", attention.pos_emb_funct())

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.ops.fastervit.window_attention(self.qkv(x_XC), self.bias))


class PackedAttentionHalf(nn.Module):
    """The attention half of a window as one operator, with norm and residual: rows (Wn·N, C) → (Wn·N, C)."""

    bias: torch.Tensor

    def __init__(self, norm: nn.LayerNorm, attention: PackedWindowAttention) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = norm, attention.qkv, attention.proj
        self.register_buffer("bias", attention.bias)

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        norm, qkv, proj = self.norm, self.qkv, self.proj
        weights = (norm.weight, norm.bias, qkv.weight, qkv.bias, self.bias, proj.weight, proj.bias)
        return torch.ops.fastervit.fused_window_attention(x_XC, *weights, norm.eps)


class PackedCarrierAttention(nn.Module):
    """The attention half of the carriers, with norm and residual: tokens (Wn, N, C) → carrier rows (Wn·R, C)."""

    table: torch.Tensor
    bias: torch.Tensor
    returning: torch.Tensor | None

    def __init__(self, block: HATBlock) -> None:
        super().__init__()
        geometry, attention = block.geometry, block.hat_attn
        self.carriers, self.carriers_of_image = geometry.carriers_per_window, geometry.carriers
        self.norm, self.qkv, self.proj = block.hat_norm1, attention.qkv, attention.proj
        table = torch.zeros(1, geometry.carriers, self.norm.weight.shape[0])
        if block.hat_pos_embed is not None and geometry.square:
            table = block.hat_pos_embed()
        bias = attention.pos_emb_funct()
        if not block.tables_in_window_order:
            order = carriers_in_window_order(geometry)
            table, bias = table[:, order], bias[:, :, order][:, :, :, order]
        self.register_buffer("table", table)
        self.register_buffer("bias", bias)
        self.register_buffer("returning", returning_carriers(geometry, block.carrier_order))

    def forward(self, tok_WnNC: torch.Tensor) -> torch.Tensor:
        norm, qkv, proj = self.norm, self.qkv, self.proj
        weights = (norm.weight, norm.bias, qkv.weight, qkv.bias, self.bias, proj.weight, proj.bias)
        ct = torch.ops.fastervit.carrier_attention(tok_WnNC, self.table, *weights, self.carriers, norm.eps)
        if self.returning is None:
            return ct
        channels = ct.shape[1]
        return ct.reshape(-1, self.carriers_of_image, channels).index_select(1, self.returning).reshape(-1, channels)


class PackedHATBlock(nn.Module):
    """Tokens (Wn, N, C) with this block's position table added → tokens with the next block's added."""

    norm1: nn.LayerNorm | None
    attn: PackedWindowAttention | PackedAttentionHalf
    tail: torch.Tensor | None

    def __init__(self, block: HATBlock, next_table_1TC: torch.Tensor | None) -> None:
        super().__init__()
        _check_folded(block)
        geometry = block.geometry
        self.carriers, self.tokens = geometry.carriers_per_window, geometry.tokens
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = PackedWindowAttention(block.attn)
        if geometry.has_carriers:
            self.hat_attn = PackedCarrierAttention(block)
            self.hat_norm2, self.hat_mlp = block.hat_norm2, block.hat_mlp
        tail = None
        if next_table_1TC is not None:
            # x + (W h + b) + table = (x + W h) + (b + table): one addition instead of two
            tail = window_table(next_table_1TC, geometry) + self.mlp.fc2.bias
            self.mlp.fc2 = _without_bias(self.mlp.fc2)
        self.register_buffer("tail", tail)

    def fuse_attention_half(self) -> bool:
        """Make everything from ``norm1`` to the residual one operator; False where it is one already."""
        if not isinstance(self.attn, PackedWindowAttention):
            return False
        assert self.norm1 is not None
        self.attn = PackedAttentionHalf(self.norm1, self.attn)
        self.norm1 = None
        return True

    def forward(self, tok_WnNC: torch.Tensor) -> torch.Tensor:
        channels = tok_WnNC.shape[2]
        if self.carriers:
            ct = self.hat_attn(tok_WnNC)
            ct = (ct + self.hat_mlp(self.hat_norm2(ct))).reshape(-1, self.carriers, channels)
            tok_WnNC = torch.cat([ct, tok_WnNC[:, self.carriers :]], dim=1)
        # Linear layers on rows are one node each in ONNX; on three axes they would be two.
        x = tok_WnNC.reshape(-1, channels)
        x = self.attn(x) if self.norm1 is None else x + self.attn(self.norm1(x))
        tok = (x + self.mlp(self.norm2(x))).reshape(-1, self.tokens, channels)
        return tok if self.tail is None else tok + self.tail


class PackedHATStage(nn.Module):
    """:class:`HATStage` in packed layout: (B, C, H, W) → the same outputs. Takes over the modules of ``stage``.

    Raises:
        FasterViTError: a map of another size than the stage was made for.
    """

    table: torch.Tensor
    gamma: torch.Tensor | None

    def __init__(self, stage: HATStage) -> None:
        super().__init__()
        blocks = [block for block in stage.blocks if isinstance(block, HATBlock)]
        self.geometry, self.downsample = stage.geometry, stage.downsample
        tokenizer = stage.global_tokenizer
        has_carriers = tokenizer is not None and self.geometry.has_carriers
        self.global_tokenizer = tokenizer.to_global_feature if tokenizer is not None and has_carriers else None
        tables = [block.pos_embed() for block in blocks]
        self.register_buffer("table", window_table(tables[0], self.geometry))
        self.blocks = nn.ModuleList(
            PackedHATBlock(block, table) for block, table in zip(blocks, [*tables[1:], None], strict=True)
        )
        self.register_buffer("gamma", _propagation(blocks[-1]))

    def retarget(self, geometry: StageGeometry) -> None:
        if geometry != self.geometry:
            raise FasterViTError(
                f"a deploy form serves one resolution, here {self.geometry.size[0]}x{self.geometry.size[1]} maps; "
                "set the resolution of the model it was made from, then make it again"
            )

    def forward(self, x_BCHW: torch.Tensor, *, downsample: bool = True) -> torch.Tensor:
        geometry = self.geometry
        geometry.check(x_BCHW)
        x = geometry.pad(x_BCHW)
        ct = self.global_tokenizer(x) if self.global_tokenizer is not None else None
        tok = torch.ops.fastervit.window_partition(x, ct, self.table, geometry.window)
        for block in self.blocks:
            tok = block(tok)
        x = torch.ops.fastervit.window_reverse(
            tok, self.gamma, geometry.carriers_per_window, geometry.window, *geometry.padded
        )
        x = geometry.crop(x)
        return self.downsample(x) if downsample and self.downsample is not None else x


def window_table(table_1TC: torch.Tensor, geometry: StageGeometry) -> torch.Tensor:
    """A table for the tokens of a window, with zeros for its carriers: (1, N, C)."""
    return F.pad(table_1TC, (0, 0, geometry.carriers_per_window, 0))


def _check_folded(block: HATBlock) -> None:
    gammas = (getattr(block, name, None) for name in ("gamma1", "gamma2", "gamma3", "gamma4"))
    attentions = (block.attn, *([block.hat_attn] if block.geometry.has_carriers else []))
    unfolded = {
        "fold_layer_scale": any(gamma is not None for gamma in gammas),
        "fold_attention_scale_into_q": any(attention.scale != 1.0 for attention in attentions),
    }
    for rewrite, missing in unfolded.items():
        if missing:
            raise FasterViTError(
                f"packing a HAT stage needs {rewrite} first; call deploy_form, which does all in order"
            )


def _without_bias(linear: nn.Linear) -> nn.Linear:
    bare = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    bare.weight = linear.weight
    return bare


def _propagation(last: HATBlock) -> torch.Tensor | None:
    if not last.propagate:
        return None
    gamma = last.gamma1 if last.propagation_gamma is None else last.propagation_gamma
    return torch.ones_like(last.norm1.weight) if gamma is None else gamma.detach()


def _numbers(geometry: StageGeometry) -> torch.Tensor:
    return torch.arange(geometry.carriers, dtype=torch.float32).reshape(1, -1, 1)
