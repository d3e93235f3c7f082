"""The deploy form: an ordinary module with the same outputs and less to compute.

Each rewrite is exact algebra on a trained model (fp32, to rounding) and says how many places it changed. They run in
fp32, before any lower precision is chosen, so folded weights and tables are rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.packed import PackedHATBlock, PackedHATStage, carriers_in_window_order, returning_carriers
from fastervit_trt.models.conv import ConvBlock, PatchEmbed
from fastervit_trt.models.fastervit import FasterViT, Trunk
from fastervit_trt.models.hat import HATBlock, HATStage, WindowAttention
from fastervit_trt.models.position import PositionModule

__all__ = [
    "REWRITES",
    "BakedTable",
    "DeployReport",
    "Fuse",
    "absorb_carrier_permutations",
    "bake_position_tables",
    "deploy_form",
    "fold_attention_scale_into_q",
    "fold_batchnorm_into_convolutions",
    "fold_final_batchnorm_into_head",
    "fold_layer_scale",
    "fuse_attention_halves",
    "get_fuse",
    "pack_carriers_into_windows",
    "pad_head_dims",
]

# What becomes one operator in every window: softmax(q kᵀ + bias) v, between linear layers that compilers and
# quantisation know; or everything from LayerNorm to residual.
Fuse = Literal["window-attention", "attention-half"]
_FUSE: dict[str, Fuse] = {fuse: fuse for fuse in get_args(Fuse)}


@dataclass(frozen=True)
class DeployReport:
    """How many places each rewrite changed, e.g. ``{"bake_position_tables": 34}`` for FasterViT-0."""

    changes: dict[str, int]
    parameters_before: int
    parameters_after: int


class BakedTable(nn.Module):
    """A position table as a constant, in place of the MLP that makes it."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self) -> torch.Tensor:
        return self.table


@torch.no_grad()
def deploy_form(
    model: nn.Module, *, fuse: Fuse = "window-attention", pad_heads_to: int | None = None
) -> tuple[nn.Module, DeployReport]:
    """A rewritten copy of ``model`` in eval mode, and the evidence of what changed. The original is left alone.

    Works on any module; the copy shares the tensors it does not change. ``forward`` gives the same outputs; of
    FasterViT, ``forward_features`` no longer applies the final BatchNorm, which the head holds.

    Args:
        fuse: what becomes one operator in every window.
        pad_heads_to: pad head dims with zeros to a multiple of this (FasterViT-4: 49 → 56 for 8), where a target's
            tensor cores gain by it; more arithmetic everywhere else, so not by default.

    Raises:
        FasterViTError: there is no such ``fuse`` or multiple.
    """
    fuse = get_fuse(fuse)
    tensors = (*model.parameters(), *model.buffers())
    # In a holder, so that a rewrite can replace the model itself.
    holder = nn.Sequential(copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})).eval()
    changes = {rewrite.__name__: rewrite(holder) for rewrite in (*REWRITES, *_head_rewrites(holder))}
    if pad_heads_to is not None:
        changes[pad_head_dims.__name__] = pad_head_dims(holder, pad_heads_to)
    changes[pack_carriers_into_windows.__name__] = pack_carriers_into_windows(holder)
    if fuse == "attention-half":
        changes[fuse_attention_halves.__name__] = fuse_attention_halves(holder)
    return holder[0], DeployReport(changes, _parameters(model), _parameters(holder))


def _head_rewrites(model: nn.Module) -> tuple[Callable[[nn.Module], int], ...]:
    """Those of transformers' heads, where there are any: only then is transformers needed."""
    if all(isinstance(module, Trunk) or not hasattr(module, "network") for module in model.modules()):
        return ()
    from fastervit_trt.export.heads.rewrites import HEAD_REWRITES

    return HEAD_REWRITES


def get_fuse(name: str) -> Fuse:
    """``name``, if it is one of :data:`Fuse`.

    Raises:
        FasterViTError: it is not.
    """
    if name not in _FUSE:
        raise FasterViTError(f"'{name}' is nothing to fuse in a window; choose one of {', '.join(_FUSE)}")
    return _FUSE[name]


def fold_batchnorm_into_convolutions(model: nn.Module) -> int:
    """conv → BN becomes one convolution, in the stem and in every convolution block."""
    folded = 0
    for module in model.modules():
        if isinstance(module, PatchEmbed):
            folded += _fold(module.conv_down, "0", "1") + _fold(module.conv_down, "3", "4")
        elif isinstance(module, ConvBlock):
            folded += _fold(module, "conv1", "norm1") + _fold(module, "conv2", "norm2")
    return folded


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> int:
    conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
    if not isinstance(norm, nn.BatchNorm2d):
        return 0
    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
    setattr(parent, norm_name, nn.Identity())
    return 1


def fold_final_batchnorm_into_head(model: nn.Module) -> int:
    """BN → mean → linear becomes mean → linear: BN is affine per channel and commutes with the mean.

    A head that is no linear layer keeps its BatchNorm.
    """
    folded = 0
    for classifier in model.modules():
        if not isinstance(classifier, FasterViT) or not isinstance(classifier.norm, nn.BatchNorm2d):
            continue
        norm, head = classifier.norm, classifier.head
        if type(head) is not nn.Linear:
            continue
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        bias = head.weight @ shift
        classifier.head = _linear(head.weight * scale, bias if head.bias is None else head.bias + bias)
        classifier.norm = nn.Identity()  # type: ignore[assignment]
        folded += 1
    return folded


def bake_position_tables(model: nn.Module) -> int:
    """Every position MLP depends on its weights only: evaluate it once and keep the table."""
    return _replace(model, lambda module: BakedTable(module()) if isinstance(module, PositionModule) else None)


def fold_attention_scale_into_q(model: nn.Module) -> int:
    """softmax(q kᵀ · s) = softmax((s q) kᵀ): scale the rows of the QKV projection that make q."""
    folded = 0
    for module in model.modules():
        if isinstance(module, WindowAttention) and module.scale != 1.0:
            rows = torch.ones(module.qkv.out_features)
            rows[: module.qkv.in_features] = module.scale
            module.qkv = _scaled_linear(module.qkv, rows)
            module.scale = 1.0
            folded += 1
    return folded


def fold_layer_scale(model: nn.Module) -> int:
    """γ · (W x + b) = (γ W) x + γ b: every γ goes into the projection before it."""
    folded = 0
    for block in model.modules():
        if not isinstance(block, HATBlock):
            continue
        if block.propagate and block.propagation_gamma is None:
            block.propagation_gamma = block.gamma1  # it also scales what the last block hands to the tokens
        for gamma_name, owner, linear_name in (
            ("gamma1", getattr(block, "hat_attn", None), "proj"),
            ("gamma2", getattr(block, "hat_mlp", None), "fc2"),
            ("gamma3", block.attn, "proj"),
            ("gamma4", block.mlp, "fc2"),
        ):
            gamma = getattr(block, gamma_name, None)
            if gamma is not None and owner is not None:
                setattr(owner, linear_name, _scaled_linear(getattr(owner, linear_name), gamma))
                setattr(block, gamma_name, None)
                folded += 1
    return folded


def absorb_carrier_permutations(model: nn.Module) -> int:
    """Attention does not care for the order of its tokens: reorder the carriers' constant tables, not the carriers.

    Only where carriers come back to their own windows. On non-square grids in the reference's order they do not, and
    one permutation has to stay (of two). Needs baked position tables.
    """
    absorbed = 0
    for block in model.modules():
        if not isinstance(block, HATBlock) or not block.geometry.has_carriers or block.tables_in_window_order:
            continue
        bias, embedding, geometry = block.hat_attn.pos_emb_funct, block.hat_pos_embed, block.geometry
        if not isinstance(bias, BakedTable) or returning_carriers(geometry, block.carrier_order) is not None:
            continue
        order = carriers_in_window_order(geometry)
        block.hat_attn.pos_emb_funct = BakedTable(bias.table[:, :, order][:, :, :, order])
        if isinstance(embedding, BakedTable) and geometry.square:  # elsewhere it is not used
            block.hat_pos_embed = BakedTable(embedding.table[:, order])
        block.tables_in_window_order = True
        absorbed += 1
    return absorbed


def pad_head_dims(model: nn.Module, multiple: int) -> int:
    """Zero rows in q, k, v and zero columns in the projection, up to a ``multiple`` of channels per head.

    Needs the attention scale in q: it belongs to the head dim before padding.

    Raises:
        FasterViTError: no such multiple.
    """
    if multiple < 1:
        raise FasterViTError(f"head dims cannot be padded to a multiple of {multiple}; choose 8 for tensor cores")
    padded = 0
    for module in model.modules():
        if not isinstance(module, WindowAttention) or module.scale != 1.0:
            continue
        dim = module.qkv.out_features // 3 // module.heads
        extra = -dim % multiple
        if not extra:
            continue
        shape = (3, module.heads, dim)
        weight = F.pad(module.qkv.weight.reshape(*shape, -1), (0, 0, 0, extra)).flatten(0, 2)
        bias = F.pad(module.qkv.bias.reshape(shape), (0, extra)).flatten()
        out = F.pad(module.proj.weight.reshape(-1, module.heads, dim), (0, extra)).flatten(1)
        module.qkv = _linear(weight, bias)
        module.proj = _linear(out, module.proj.bias)
        padded += 1
    return padded


def pack_carriers_into_windows(model: nn.Module) -> int:
    """Every HAT stage keeps its carriers as the first rows of their windows, on the fused operators. Last of all."""
    return _replace(model, lambda module: PackedHATStage(module) if isinstance(module, HATStage) else None)


def fuse_attention_halves(model: nn.Module) -> int:
    """x + proj(attention(qkv(norm(x)))) of every window in one operator. Of packed stages only."""
    return sum(module.fuse_attention_half() for module in model.modules() if isinstance(module, PackedHATBlock))


def _replace(model: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put what ``make`` makes of a module within ``model`` in its place, None: it stays; how many were replaced."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (replacement := make(child)) is not None:
                setattr(parent, name, replacement)
                replaced += 1
    return replaced


def _scaled_linear(linear: nn.Linear, rows: torch.Tensor) -> nn.Linear:
    """A new layer whose outputs are those of ``linear`` times ``rows`` (out_features,)."""
    return _linear(linear.weight * rows[:, None], linear.bias * rows)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


REWRITES: tuple[Callable[[nn.Module], int], ...] = (
    fold_batchnorm_into_convolutions,
    fold_final_batchnorm_into_head,
    bake_position_tables,
    fold_attention_scale_into_q,
    fold_layer_scale,
    absorb_carrier_permutations,
)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
