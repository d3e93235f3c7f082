"""The fused operators of domain ``fastervit``, defined once, in PyTorch (FasterViT, arXiv 2306.06189, §3).

    window_partition        map (and carriers) → tokens by window, position table added
    window_attention        softmax(q kᵀ + bias) v, packed QKV in, context in the projection's layout out
    fused_window_attention  x ← x + MHSA(LN(x)) in each window: the same, from LayerNorm to residual
    carrier_attention       ct ← ct + MHSA(LN(ct)), ct being the strided carrier rows of the windows plus position
    window_reverse          tokens by window → map, carriers dropped or (FasterViT-3…6) propagated into their window

These bodies are the ONNX functions, the fallback where no kernel is, and the oracle of every kernel. They expect the
deploy form: the attention scale lies in q, layer scale in the projections, carrier tables in window order.

Legend: B batch, W windows of one image, Wn = B·W, R carriers of one window (``carriers``), G = W·R carriers of one
image, T tokens of one window without carriers, N = R + T, X rows of any number of windows, C channels, D channels of
all heads, h heads. Tokens are *packed*: ``tok_WnNC`` holds each window's carriers in its first R rows.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

__all__ = ["carrier_attention", "fused_window_attention", "window_attention", "window_partition", "window_reverse"]


def window_partition(
    x_BCHW: torch.Tensor, carriers_BCHW: torch.Tensor | None, table_1NC: torch.Tensor, window: int
) -> torch.Tensor:
    """(B, C, H, W) → (B · windows, R + window², C), tokens row-major within row-major windows.

    Args:
        x_BCHW: height and width are multiples of ``window``.
        carriers_BCHW: one √R x √R patch per window, laid out as the windows are; None: R = 0.
        table_1NC: added to every window.
    """
    tok = _by_window(x_BCHW, window, window)
    if carriers_BCHW is not None:
        rows, cols = x_BCHW.shape[2] // window, x_BCHW.shape[3] // window
        ct = _by_window(carriers_BCHW, carriers_BCHW.shape[2] // rows, carriers_BCHW.shape[3] // cols)
        tok = torch.cat([ct, tok], dim=1)
    return tok + table_1NC


def window_reverse(
    tok_WnNC: torch.Tensor, gamma_C: torch.Tensor | None, carriers: int, window: int, height: int, width: int
) -> torch.Tensor:
    """(B · windows, R + window², C) → (B, C, height, width), the inverse of :func:`window_partition` without carriers.

    Args:
        gamma_C: given, every token also receives ``gamma`` · the carrier that lies over it (nearest neighbour).
        carriers: R, a square number.
        height: multiple of ``window``, as ``width`` is.
    """
    channels = tok_WnNC.shape[2]
    rows, cols = height // window, width // window
    tok = tok_WnNC[:, carriers:] if carriers else tok_WnNC
    if gamma_C is not None:
        tok = tok + gamma_C * tok_WnNC.index_select(1, nearest_carrier(carriers, window, tok.device))
    x = tok.reshape(-1, rows, cols, window, window, channels).transpose(2, 3)
    return x.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def window_attention(qkv_X3D: torch.Tensor, bias_1hNN: torch.Tensor) -> torch.Tensor:
    """(Wn·N, 3·D) → (Wn·N, D): h-head attention within each window of N rows.

    Args:
        qkv_X3D: q, k and v side by side, heads side by side in each; q is scaled.
        bias_1hNN: added to the scores of every window; its shape says how many heads and tokens there are.
    """
    heads, tokens = bias_1hNN.shape[1:3]
    dim = qkv_X3D.shape[1] // 3
    # All heads of q, k and v change places at once: compilers then need one kernel for it instead of three.
    qkv = qkv_X3D.reshape(-1, tokens, 3 * heads, dim // heads).transpose(1, 2)
    q, k, v = qkv.split(heads, dim=1)
    weights = (q @ k.transpose(2, 3) + bias_1hNN).softmax(dim=3)
    return (weights @ v).transpose(1, 2).reshape(-1, dim)


def fused_window_attention(
    x_XC: torch.Tensor,
    norm_weight_C: torch.Tensor,
    norm_bias_C: torch.Tensor,
    qkv_weight_3DC: torch.Tensor,
    qkv_bias_3D: torch.Tensor,
    bias_1hNN: torch.Tensor,
    proj_weight_CD: torch.Tensor,
    proj_bias_C: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """The attention half of a block on windows of N rows: (Wn·N, C) → (Wn·N, C).

    Args:
        bias_1hNN: as of :func:`window_attention`.
        eps: of the LayerNorm.
    """
    normed = F.layer_norm(x_XC, (x_XC.shape[1],), norm_weight_C, norm_bias_C, eps)
    context = window_attention(F.linear(normed, qkv_weight_3DC, qkv_bias_3D), bias_1hNN)
    return x_XC + F.linear(context, proj_weight_CD, proj_bias_C)


def carrier_attention(
    tok_WnNC: torch.Tensor,
    table_1GC: torch.Tensor,
    norm_weight_C: torch.Tensor,
    norm_bias_C: torch.Tensor,
    qkv_weight_3DC: torch.Tensor,
    qkv_bias_3D: torch.Tensor,
    bias_1hGG: torch.Tensor,
    proj_weight_CD: torch.Tensor,
    proj_bias_C: torch.Tensor,
    carriers: int,
    eps: float,
) -> torch.Tensor:
    """The attention half of a block on the carriers, all of an image together: (Wn, N, C) → (Wn·R, C).

    Args:
        tok_WnNC: only the first ``carriers`` = R rows of each window are read.
        table_1GC: position embedding of the carriers, added first.
        eps: of the LayerNorm.
    """
    carriers_of_image, channels = table_1GC.shape[1:]
    ct = (tok_WnNC[:, :carriers].reshape(-1, carriers_of_image, channels) + table_1GC).reshape(-1, channels)
    # Carriers of an image are a window of G rows.
    weights = (norm_weight_C, norm_bias_C, qkv_weight_3DC, qkv_bias_3D, bias_1hGG, proj_weight_CD, proj_bias_C)
    return fused_window_attention(ct, *weights, eps)


def nearest_carrier(carriers: int, window: int, device: torch.device | None = None) -> torch.Tensor:
    """For each token of a window, the carrier that nearest-neighbour upsampling copies into it: (window²,)."""
    side = math.isqrt(carriers)
    axis = [i * side // window for i in range(window)]
    return torch.tensor([y * side + x for y in axis for x in axis], device=device)


def _by_window(x_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    channels, rows, cols = x_BCHW.shape[1], x_BCHW.shape[2] // height, x_BCHW.shape[3] // width
    # Channels last first, which convolutions can yield by themselves; what is left then moves whole rows of channels.
    x = x_BCHW.permute(0, 2, 3, 1).reshape(-1, rows, height, cols, width, channels)
    return x.transpose(2, 3).reshape(-1, height * width, channels)
