"""What of a deploy form can be computed in 8 bits: the convolutions and linear layers that stand alone, by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.export.packed import PackedAttentionHalf, PackedCarrierAttention, PackedWindowAttention

__all__ = ["Operand", "left_out", "operands", "unit_of", "window_attentions"]

_STEM, _HEAD = "patch_embed", "head"  # the first sees pixels, the last makes logits: little to gain, much to lose


@dataclass(frozen=True)
class Operand:
    """One layer whose input and weights may be quantised."""

    block: str  # as nodes of the graph are named: "stages.2.blocks.0.attn.qkv"
    unit: str  # what is switched as one: "stages.2.blocks.0.attn"
    kind: Literal["convolution", "linear"]
    module: nn.Conv2d | nn.Linear


def operands(model: nn.Module) -> list[Operand]:
    """The layers of a deploy form that are quantised by default, in the order of its modules."""
    skipped = left_out(model)
    found = []
    for name, module in model.named_modules():
        block = block_of_module(name)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and block not in skipped:
            kind: Literal["convolution", "linear"] = "linear" if isinstance(module, nn.Linear) else "convolution"
            found.append(Operand(block, unit_of(block), kind, module))
    return found


def left_out(model: nn.Module) -> dict[str, str]:
    """Block → why it stays as it is, of the convolutions and linear layers that are not quantised."""
    within = {
        id(part)
        for module in model.modules()
        if isinstance(module, (PackedCarrierAttention, PackedAttentionHalf))
        for part in (module.qkv, module.proj)
    }
    reasons = {}
    for name, module in model.named_modules():
        block = block_of_module(name)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if id(module) in within:
            reasons[block] = "within a fused operator"
        elif block.split(".")[0] in (_STEM, _HEAD):
            reasons[block] = "stem or head"
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            reasons[block] = "grouped convolution: one multiplication per weight and position, nothing to gain"
    return reasons


def window_attentions(model: nn.Module) -> dict[str, PackedWindowAttention]:
    """The window attentions by block."""
    return {
        block_of_module(name): module
        for name, module in model.named_modules()
        if isinstance(module, PackedWindowAttention)
    }


def unit_of(block: str) -> str:
    """``stages.2.blocks.0.attn.qkv`` → ``stages.2.blocks.0.attn``; what shares data is switched together."""
    return block.removesuffix(".reduction.0") if block.endswith(".reduction.0") else block.rpartition(".")[0] or block
