"""Hierarchical attention (HAT), FasterViT (arXiv 2306.06189) §3, "Hierarchical Attention".

    carriers:  ct ← AvgPool(DWConv(x)), a few tokens that summarise each window
    block:     ct ← ct + γ₁·MHSA(LN(ct));  ct ← ct + γ₂·MLP(LN(ct))          all carriers of an image, global
               [ct; x] ← [ct; x] + γ₃·MHSA(LN([ct; x]));  … + γ₄·MLP(LN(…))   each window with its own carriers

Letters as in ``geometry``. Attribute names are the keys of the official checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.conv import DropPath
from fastervit_trt.models.geometry import (
    CarrierOrder,
    StageGeometry,
    carriers_to_raster,
    carriers_to_windows,
    window_partition,
    window_reverse,
)
from fastervit_trt.models.position import AttentionPositionBias, TokenPositionEmbedding

__all__ = ["HATBlock", "HATStage", "Mlp", "TokenInitializer", "WindowAttention"]


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))) over the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class WindowAttention(nn.Module):
    """softmax(q kᵀ / √Dh + bias) v over (Wn, N, C), with a position bias per head and token pair.

    ``side`` is the square grid the bias describes; tokens beyond ``side²`` come first and carry no bias.
    """

    def __init__(self, dim: int, heads: int, side: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.pos_emb_funct = AttentionPositionBias(side, heads, tokens)

    def forward(self, tok_WnNC: torch.Tensor) -> torch.Tensor:
        tokens = tok_WnNC.shape[1]
        channels = self.qkv.out_features // 3  # more than C where the deploy form pads the heads
        shape = (-1, tokens, self.heads, channels // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(tok_WnNC).split(channels, dim=-1))
        scores = q @ k.transpose(-2, -1)  # Wn, h, N, N
        if self.scale != 1.0:  # 1 where the deploy form has it in q
            scores = scores * self.scale
        scores = scores + self.pos_emb_funct()
        context = scores.softmax(dim=-1) @ v  # Wn, h, N, Dh
        return self.proj(context.transpose(1, 2).reshape(-1, tokens, channels))


class TokenInitializer(nn.Module):
    """Carrier tokens from the map they summarise: (B, C, H, W) → (B, G, C), grouped by window (§3).

    Pooling windows overlap where the map does not divide evenly (14 → 4: kernel 5, stride 3).
    """

    def __init__(self, dim: int, geometry: StageGeometry) -> None:
        super().__init__()
        self.ct_size = geometry.ct_size
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        # Official checkpoints store this convolution under both names.
        self.to_global_feature = nn.Sequential(OrderedDict(pos=self.pos_embed, pool=_carrier_pool(geometry)))

    def retarget(self, geometry: StageGeometry) -> None:
        self.to_global_feature.pool = _carrier_pool(geometry)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        ct_BCHW = self.to_global_feature(x_BCHW)
        channels, rows, cols = ct_BCHW.shape[1:]
        return window_partition(ct_BCHW, self.ct_size).reshape(-1, rows * cols, channels)


class HATBlock(nn.Module):
    """One hierarchical attention block on windows (Wn, T, C) and carriers (B, G, C); shapes kept.

    Without carriers (one window, or a stage without HAT) it is plain window attention and the carrier argument is
    passed through. ``propagate`` (last block of a stage in FasterViT-3…6) adds each window's carriers, upsampled by
    nearest neighbour and scaled by γ₁, to its tokens.

    Carriers visit raster order for their global attention and return to window order. The published code exchanges
    height and width on the way back, which scrambles carriers between windows unless the grid of windows is square;
    official weights were trained with it on non-square inputs, so ``carrier_order="reference"`` (default) keeps it bit
    for bit. ``"corrected"`` returns every carrier to its own window: right for models trained here.

    Raises:
        FasterViTError: ``dim`` is no multiple of ``heads``, or an unknown ``carrier_order``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        geometry: StageGeometry,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        propagate: bool = False,
        carrier_order: CarrierOrder = "reference",
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.carrier_order = carrier_order
        self.propagate = propagate and geometry.has_carriers
        # Of the deploy form only: γ₁ of the propagation, once the other is folded; and whether the carriers' position
        # tables are in window order, so that carriers need not visit raster order.
        self.propagation_gamma: nn.Parameter | None = None
        self.tables_in_window_order = False
        hidden = int(dim * mlp_ratio)
        if heads < 1 or dim % heads:
            raise FasterViTError(f"{dim} channels cannot be split into {heads} heads; choose heads that divide them")
        if carrier_order not in get_args(CarrierOrder):
            raise FasterViTError(f"carrier order '{carrier_order}' must be one of {', '.join(get_args(CarrierOrder))}")

        self.pos_embed = TokenPositionEmbedding(dim, geometry.window)
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = WindowAttention(dim, heads, geometry.window, geometry.tokens)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, hidden)
        self.gamma3 = _layer_scale(dim, layer_scale)
        self.gamma4 = _layer_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)
        self.owns_carriers = geometry.has_carriers
        if not self.owns_carriers:
            return

        # The carrier grid of a non-square map has no side; the reference then takes the largest square that fits
        # and pads the bias with zeros, and omits the position embedding.
        self.hat_norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.hat_attn = WindowAttention(dim, heads, geometry.carrier_side, geometry.carriers)
        self.hat_norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.hat_mlp = Mlp(dim, hidden)
        self.hat_pos_embed = TokenPositionEmbedding(dim, geometry.carrier_side) if geometry.square else None
        self.gamma1 = _layer_scale(dim, layer_scale)
        self.gamma2 = _layer_scale(dim, layer_scale)
        self.upsample_index: torch.Tensor
        self.register_buffer("upsample_index", _nearest_index(geometry.ct_size, geometry.window), persistent=False)

    def retarget(self, geometry: StageGeometry) -> None:
        """Serve another map: position tables are made anew from their MLPs, parameters stay what they are.

        Carriers that the new map does not need are left out of the computation, not out of the state dict.

        Raises:
            FasterViTError: the new map needs parameters that this block was built without.
        """
        if geometry.has_carriers and not self.owns_carriers:
            raise _needs_rebuild("carrier tokens", self.geometry, geometry)
        if geometry.has_carriers and geometry.square and self.hat_pos_embed is None:
            raise _needs_rebuild("a carrier position embedding", self.geometry, geometry)
        self.geometry = geometry
        self.pos_embed.resize(geometry.window, geometry.window**2)
        self.attn.pos_emb_funct.resize(geometry.window, geometry.tokens)
        if geometry.has_carriers:
            self.hat_attn.pos_emb_funct.resize(geometry.carrier_side, geometry.carriers)
            if self.hat_pos_embed is not None and geometry.square:
                self.hat_pos_embed.resize(geometry.carrier_side, geometry.carriers)
        if self.owns_carriers:
            self.upsample_index = _nearest_index(geometry.ct_size, geometry.window).to(self.upsample_index.device)

    def forward(self, tok_WnTC: torch.Tensor, ct_BGC: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        tok = tok_WnTC + self.pos_embed()
        if ct_BGC is None:
            return self._window_attention(tok), None

        channels, per_window = tok.shape[-1], self.geometry.carriers_per_window
        ct = self._carrier_attention(ct_BGC).reshape(-1, per_window, channels)
        tok = self._window_attention(torch.cat([ct, tok], dim=1))  # Wn, carriers + T, C
        ct, tok = tok[:, :per_window], tok[:, per_window:]
        if self.propagate:
            gamma = self.gamma1 if self.propagation_gamma is None else self.propagation_gamma
            tok = tok + _scaled(ct[:, self.upsample_index], gamma)
        return tok, ct.reshape(-1, self.geometry.carriers, channels)

    def _carrier_attention(self, ct_BGC: torch.Tensor) -> torch.Tensor:
        geometry = self.geometry
        ct = ct_BGC
        if not self.tables_in_window_order:
            ct = carriers_to_raster(ct, geometry.ct_size, geometry.grid)
        if self.hat_pos_embed is not None and geometry.square:
            ct = ct + self.hat_pos_embed()
        ct = ct + self.drop_path(_scaled(self.hat_attn(self.hat_norm1(ct)), self.gamma1))
        ct = ct + self.drop_path(_scaled(self.hat_mlp(self.hat_norm2(ct)), self.gamma2))
        if self.tables_in_window_order:
            return ct
        return carriers_to_windows(ct, geometry.ct_size, geometry.grid, self.carrier_order)

    def _window_attention(self, tok: torch.Tensor) -> torch.Tensor:
        tok = tok + self.drop_path(_scaled(self.attn(self.norm1(tok)), self.gamma3))
        return tok + self.drop_path(_scaled(self.mlp(self.norm2(tok)), self.gamma4))


class HATStage(nn.Module):
    """A stack of HAT blocks on a map: (B, C, H, W) → (B, C, H, W) for the H, W of ``geometry``.

    Partition into windows, carriers from the map, blocks, reverse. Maps that are no multiple of the window are
    padded with zeros on the right and bottom and cropped afterwards; padded tokens take part in attention, as in
    the published any-resolution models.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        geometry: StageGeometry,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: list[float] | None = None,
        propagate: bool = False,
        carrier_order: CarrierOrder = "reference",
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        rates = drop_path or [0.0] * depth
        self.blocks = nn.ModuleList(
            HATBlock(
                dim,
                heads,
                geometry,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=rates[i],
                propagate=propagate and i == depth - 1,
                carrier_order=carrier_order,
            )
            for i in range(depth)
        )
        self.downsample = downsample
        self.global_tokenizer = TokenInitializer(dim, geometry) if geometry.has_carriers else None

    @classmethod
    def on_map(
        cls,
        dim: int,
        depth: int,
        heads: int,
        size: tuple[int, int],
        *,
        window: int = 7,
        ct_size: int = 2,
        **options: Any,
    ) -> HATStage:
        """A stage to put into a network of one's own, on maps (B, dim, H, W) with H, W = ``size``.

        Args:
            window: side of a window in tokens; maps that are no multiple of it are padded.
            ct_size: side of a window's carrier grid.
            **options: as for the constructor. Carriers return to their own windows (``carrier_order="corrected"``)
                unless told otherwise, as there are no published weights to be compatible with.

        Raises:
            FasterViTError: window larger than the map, carrier grid larger than the window, heads that do not fit.
        """
        size = (int(size[0]), int(size[1]))
        if window > min(size):
            raise FasterViTError(f"window {window} exceeds the {size[0]}x{size[1]} map; choose at most {min(size)}")
        geometry = StageGeometry(size, window, ct_size, hat=True)
        return cls(dim, depth, heads, geometry, **{"carrier_order": "corrected", **options})

    def set_resolution(self, size: tuple[int, int]) -> None:
        """Serve maps of another size (H, W), see :meth:`HATBlock.retarget`.

        Raises:
            FasterViTError: the new size needs parameters that this stage was built without; it is then as before.
        """
        geometry = self.geometry
        try:
            self.retarget(replace(geometry, size=(int(size[0]), int(size[1]))))
        except FasterViTError:
            self.retarget(geometry)
            raise

    def retarget(self, geometry: StageGeometry) -> None:
        for block in self.blocks:
            assert isinstance(block, HATBlock)
            block.retarget(geometry)
        if self.global_tokenizer is not None and geometry.has_carriers:
            self.global_tokenizer.retarget(geometry)
        self.geometry = geometry

    def forward(self, x_BCHW: torch.Tensor, *, downsample: bool = True) -> torch.Tensor:
        """(B, C, H, W) → the same shape, or what the stage's downsample makes of it where there is one.

        Raises:
            FasterViTError: a map of another size than the stage serves.
        """
        geometry = self.geometry
        geometry.check(x_BCHW)
        x = geometry.pad(x_BCHW)
        ct = self.global_tokenizer(x) if self.global_tokenizer is not None and geometry.has_carriers else None
        tok = window_partition(x, geometry.window)
        for block in self.blocks:
            tok, ct = block(tok, ct)
        x = geometry.crop(window_reverse(tok, geometry.window, geometry.grid))
        return self.downsample(x) if downsample and self.downsample is not None else x


def _carrier_pool(geometry: StageGeometry) -> nn.AvgPool2d:
    outputs = [n * geometry.ct_size for n in geometry.grid]
    stride = [size // out for size, out in zip(geometry.padded, outputs, strict=True)]
    kernel = [s - (o - 1) * t for s, o, t in zip(geometry.padded, outputs, stride, strict=True)]
    return nn.AvgPool2d((kernel[0], kernel[1]), stride=(stride[0], stride[1]))


def _needs_rebuild(what: str, old: StageGeometry, new: StageGeometry) -> FasterViTError:
    return FasterViTError(
        f"a {new.size[0]}x{new.size[1]} map needs {what}, which this model was built without (for "
        f"{old.size[0]}x{old.size[1]}); create it at the new resolution and load its checkpoint there"
    )


def _layer_scale(dim: int, init: float | None) -> nn.Parameter | None:
    return None if init is None else nn.Parameter(torch.full((dim,), float(init)))


def _scaled(branch: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    return branch if gamma is None else gamma * branch


def _nearest_index(ct_size: int, window: int) -> torch.Tensor:
    """For each token of a window, the carrier that nearest-neighbour upsampling copies into it: (window²,)."""
    axis = torch.arange(window) * ct_size // window
    return (axis[:, None] * ct_size + axis[None, :]).reshape(-1)
