"""A FasterViT's configuration in, networks of the same width with other attention out, to see what each costs.

All but one keep FasterViT's stem, convolution stages, downsamplers, widths, depths, heads and MLPs, and differ in what
the tokens of its two transformer stages (2 and 3) see:

    fastervit        HAT: windows with carriers in stage 2, windows alone in stage 3 (arXiv 2306.06189, §3)
    windows          windows alone in both: nothing crosses a window's border
    shifted          windows that move by half their side in every other block (Swin, arXiv 2103.14030, §3.2)
    global           the whole map (ViT, arXiv 2010.11929), by PyTorch's fused attention: no scores in memory
    global-explicit  the same, every score written out, as by a runtime without a fused kernel for that size
    vit              no stages: 16x16 patches, one width, the whole map, fused; as many parameters as the FasterViT

Letters as in :mod:`fastervit_trt.models.geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.fastervit import FasterViT
from fastervit_trt.models.geometry import StageGeometry, window_partition, window_reverse
from fastervit_trt.models.hat import HATStage, Mlp, WindowAttention
from fastervit_trt.models.position import TokenPositionEmbedding

__all__ = [
    "NETWORKS",
    "GlobalAttention",
    "GlobalStage",
    "PlainViT",
    "ShiftedStage",
    "make_network",
    "region_mask",
]

_PATCH = 16  # pixels: the side of a patch, and the stride of FasterViT's stage 2
_HEAD_DIM = 64  # of ViT in all its sizes
_DEPTH = 12  # blocks of ViT's base size; the exact number follows from the parameters


class GlobalAttention(nn.Module):
    """softmax(q kᵀ / √Dh) v over all tokens of an image: (B, N, C) → (B, N, C).

    Args:
        explicit: write all h·N² scores to memory instead of leaving the order of work to a fused kernel.
    """

    def __init__(self, dim: int, heads: int, *, explicit: bool) -> None:
        super().__init__()
        self.heads, self.explicit = heads, explicit
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tok_BNC: torch.Tensor) -> torch.Tensor:
        batch, tokens, channels = tok_BNC.shape
        qkv = self.qkv(tok_BNC).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # B, h, N, Dh each
        if self.explicit:
            context = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3) @ v
        else:
            context = F.scaled_dot_product_attention(q, k, v)
        return self.proj(context.transpose(1, 2).reshape(batch, tokens, channels))


class GlobalBlock(nn.Module):
    """tok ← tok + MHSA(LN(tok)); tok ← tok + MLP(LN(tok)), every token with every other."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, *, explicit: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GlobalAttention(dim, heads, explicit=explicit)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tok_BNC: torch.Tensor) -> torch.Tensor:
        tok = tok_BNC + self.attn(self.norm1(tok_BNC))
        return tok + self.mlp(self.norm2(tok))


class GlobalStage(nn.Module):
    """A stage of global attention on a square map: (B, C, H, H) → the same, or what ``downsample`` makes of it."""

    def __init__(self, stage: HATStage, dim: int, heads: int, mlp_ratio: float, *, explicit: bool) -> None:
        super().__init__()
        self.geometry, self.downsample = stage.geometry, stage.downsample
        self.pos_embed = TokenPositionEmbedding(dim, stage.geometry.size[0])
        self.blocks = nn.ModuleList(GlobalBlock(dim, heads, mlp_ratio, explicit=explicit) for _ in stage.blocks)

    def retarget(self, geometry: StageGeometry) -> None:
        self.geometry = geometry
        self.pos_embed.resize(geometry.size[0], math.prod(geometry.size))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        tok = x_BCHW.flatten(2).transpose(1, 2) + self.pos_embed()
        for block in self.blocks:
            tok = block(tok)
        x = tok.transpose(1, 2).reshape(x_BCHW.shape)
        return x if self.downsample is None else self.downsample(x)


class MaskedWindowAttention(WindowAttention):
    """:class:`WindowAttention` in which some tokens of a window do not see each other."""

    def forward(self, tok_WnTC: torch.Tensor, mask_WTT: torch.Tensor | None = None) -> torch.Tensor:
        if mask_WTT is None:
            return super().forward(tok_WnTC)
        windows, tokens, channels = tok_WnTC.shape
        qkv = self.qkv(tok_WnTC).reshape(windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # Wn, h, T, Dh each
        scores = q @ k.transpose(2, 3) * self.scale + self.pos_emb_funct()
        scores = scores.reshape(-1, mask_WTT.shape[0], self.heads, tokens, tokens) + mask_WTT[:, None]
        context = scores.reshape(windows, self.heads, tokens, tokens).softmax(dim=3) @ v
        return self.proj(context.transpose(1, 2).reshape(windows, tokens, channels))


class ShiftedBlock(nn.Module):
    """tok ← tok + MHSA(LN(tok)); tok ← tok + MLP(LN(tok)), each window for itself."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MaskedWindowAttention(dim, heads, window, window * window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tok_WnTC: torch.Tensor, mask_WTT: torch.Tensor | None) -> torch.Tensor:
        tok = tok_WnTC + self.attn(self.norm1(tok_WnTC), mask_WTT)
        return tok + self.mlp(self.norm2(tok))


class ShiftedStage(nn.Module):
    """A stage of windows that move by half their side in every second block: (B, C, H, W) → as :class:`GlobalStage`.

    The map is rolled, so that windows across its border hold tokens of opposite sides; a mask keeps those apart. A map
    of one window is not shifted. Maps that are no multiple of the window are padded as FasterViT's are.
    """

    mask: torch.Tensor

    def __init__(self, stage: HATStage, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.downsample = stage.downsample
        self.blocks = nn.ModuleList(ShiftedBlock(dim, heads, mlp_ratio, stage.geometry.window) for _ in stage.blocks)
        self.register_buffer("mask", torch.empty(0), persistent=False)
        self.retarget(stage.geometry)

    def retarget(self, geometry: StageGeometry) -> None:
        self.geometry = geometry
        self.shift = geometry.window // 2 if geometry.windows > 1 else 0
        self.mask = region_mask(geometry, self.shift).to(self.mask)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        geometry, window = self.geometry, self.geometry.window
        x = geometry.pad(x_BCHW)
        for i, block in enumerate(self.blocks):
            shift = self.shift if i % 2 else 0
            rolled = x.roll((-shift, -shift), dims=(2, 3)) if shift else x
            tok = block(window_partition(rolled, window), self.mask if shift else None)
            x = window_reverse(tok, window, geometry.grid)
            x = x.roll((shift, shift), dims=(2, 3)) if shift else x
        x = geometry.crop(x)
        return x if self.downsample is None else self.downsample(x)


class PlainViT(nn.Module):
    """A vision transformer without stages: (B, in_chans, H, H) → (B, num_classes), from the mean of its tokens."""

    def __init__(self, config: FasterViTConfig, parameters: int) -> None:
        super().__init__()
        dim, depth = _isotropic_size(config, parameters)
        self.config = config
        self.patch_embed = nn.Conv2d(config.in_chans, dim, _PATCH, stride=_PATCH)
        self.pos_embed = TokenPositionEmbedding(dim, self._side(config.resolution))
        blocks = (GlobalBlock(dim, dim // _HEAD_DIM, config.mlp_ratio, explicit=False) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.num_classes)

    def set_resolution(self, resolution: tuple[int, int]) -> None:
        """Serve images of another size; its position table is made anew from its MLP."""
        side = self._side(resolution)
        self.pos_embed.resize(side, side * side)
        self.config = replace(self.config, resolution=resolution)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        missing = -x_BCHW.shape[-1] % _PATCH
        tok = self.patch_embed(F.pad(x_BCHW, (0, missing, 0, missing))).flatten(2).transpose(1, 2)
        tok = self.blocks(tok + self.pos_embed())
        return self.head(self.norm(tok).mean(dim=1))

    def _side(self, resolution: tuple[int, int]) -> int:
        return -(-resolution[0] // _PATCH)


def make_network(name: str, config: FasterViTConfig) -> FasterViT | PlainViT:
    """The network ``name`` of :data:`NETWORKS`, with random weights, in training form, for ``config.resolution``.

    Raises:
        FasterViTError: no such network, or a resolution that is not square.
    """
    if name not in NETWORKS:
        raise FasterViTError(f"there is no network '{name}'; choose from {', '.join(NETWORKS)}")
    if config.resolution[0] != config.resolution[1]:
        raise FasterViTError(
            f"networks are compared on square images, not {config.resolution[0]}x{config.resolution[1]}"
        )
    return NETWORKS[name](config)


def region_mask(geometry: StageGeometry, shift: int) -> torch.Tensor:
    """Added to the scores of rolled windows: 0 where two tokens were neighbours before, -inf where not: (W, T, T).

    Rolled by ``shift``, the last ``shift`` rows and columns of the map come from its other end.
    """
    rows, cols = (_regions(side, shift) for side in geometry.padded)
    region_BCHW = (2 * rows[:, None] + cols[None, :]).reshape(1, 1, *geometry.padded)
    region_WT = window_partition(region_BCHW, geometry.window)[:, :, 0]
    apart = region_WT[:, :, None] != region_WT[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, -math.inf)


def _regions(side: int, shift: int) -> torch.Tensor:
    """1 for what came from the other end of the map, else 0: (side,)."""
    return (torch.arange(side) >= side - shift).int()


def _windows(config: FasterViTConfig) -> FasterViT:
    return FasterViT(replace(config, hat=(False,) * 4))


def _shifted(config: FasterViTConfig) -> FasterViT:
    return _with_stages(config, lambda stage, dim, heads: ShiftedStage(stage, dim, heads, config.mlp_ratio))


def _global(config: FasterViTConfig, *, explicit: bool) -> FasterViT:
    def make(stage: HATStage, dim: int, heads: int) -> GlobalStage:
        return GlobalStage(stage, dim, heads, config.mlp_ratio, explicit=explicit)

    return _with_stages(config, make)


def _with_stages(config: FasterViTConfig, make: Callable[[HATStage, int, int], nn.Module]) -> FasterViT:
    """A FasterViT with what ``make`` makes of a transformer stage, its width and heads in its place."""
    model = _windows(config)
    for i, level in enumerate(model.levels):
        if isinstance(level, HATStage):
            model.levels[i] = make(level, config.stage_dim(i), config.num_heads[i])
    return model


def _vit(config: FasterViTConfig) -> PlainViT:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in FasterViT(config).parameters())
    return PlainViT(config, parameters)


def _isotropic_size(config: FasterViTConfig, parameters: int) -> tuple[int, int]:
    """Width, a multiple of 64, and depth near 12 of a ViT with about so many ``parameters``."""
    of_width_1 = 4 + 2 * config.mlp_ratio  # weights of a block, over its width²
    heads = max(1, round(math.sqrt(parameters / (_DEPTH * of_width_1)) / _HEAD_DIM))
    dim = heads * _HEAD_DIM
    ends = dim * (config.in_chans * _PATCH**2 + config.num_classes)
    return dim, max(1, round((parameters - ends) / (of_width_1 * dim**2)))


NETWORKS: dict[str, Callable[[FasterViTConfig], FasterViT | PlainViT]] = {
    "fastervit": FasterViT,
    "windows": _windows,
    "shifted": _shifted,
    "global": lambda config: _global(config, explicit=False),
    "global-explicit": lambda config: _global(config, explicit=True),
    "vit": _vit,
}
