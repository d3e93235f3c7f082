"""The deploy form: an ordinary module with the same outputs and less to compute.

Each rewrite is exact algebra on a trained model (fp32, to rounding) and says how many places it changed. They run in
fp32, before any lower precision is chosen, so folded weights and tables are rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastervit_trt.models.conv import ConvBlock, PatchEmbed
from fastervit_trt.models.fastervit import FasterViT
from fastervit_trt.models.position import PositionModule

__all__ = [
    "REWRITES",
    "BakedTable",
    "bake_position_tables",
    "deploy_form",
    "fold_batchnorm_into_convolutions",
    "fold_final_batchnorm_into_head",
]


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
def deploy_form(model: nn.Module) -> tuple[nn.Module, DeployReport]:
    """A rewritten copy of ``model`` in eval mode, and the evidence of what changed. The original is left alone.

    Works on any module; the copy shares the tensors it does not change. ``forward`` gives the same outputs; of
    FasterViT, ``forward_features`` no longer applies the final BatchNorm, which the head holds.
    """
    tensors = (*model.parameters(), *model.buffers())
    deployed = copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors}).eval()
    changes = {rewrite.__name__: rewrite(deployed) for rewrite in REWRITES}
    return deployed, DeployReport(changes, _parameters(model), _parameters(deployed))


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
    """BN → mean → linear becomes mean → linear: BN is affine per channel and commutes with the mean."""
    if not isinstance(model, FasterViT) or not isinstance(model.norm, nn.BatchNorm2d):
        return 0
    norm, head = model.norm, model.head
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    folded = nn.Linear(head.in_features, head.out_features, device="meta")
    folded.weight = nn.Parameter(head.weight * scale)
    folded.bias = nn.Parameter(head.bias + head.weight @ shift)
    model.head = folded
    model.norm = nn.Identity()  # type: ignore[assignment]
    return 1


def bake_position_tables(model: nn.Module) -> int:
    """Every position MLP depends on its weights only: evaluate it once and keep the table."""
    baked = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PositionModule):
                setattr(parent, name, BakedTable(child()))
                baked += 1
    return baked


REWRITES: tuple[Callable[[nn.Module], int], ...] = (
    fold_batchnorm_into_convolutions,
    fold_final_batchnorm_into_head,
    bake_position_tables,
)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
