"""What of a deploy form can be computed in 8 bits: the convolutions and linear layers that stand alone, by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fastervit_trt.export.fusion import block_of_module
from fastervit_trt.export.packed import PackedAttentionHalf, PackedCarrierAttention, PackedWindowAttention

__all__ = ["Operand", "left_out", "operands", "unit_of", "window_attentions"]

_STEM, _HEAD = "patch_embed", "head"  # the first sees pixels, the last makes logits: little to gain, much to lose
_BACKBONE = "backbone"  # of detectors and segmenters; all else in them is the head
_LAST = ("decode_head.classifier",)


@dataclass(frozen=True)
class Operand:
    """One layer whose input and weights may be quantised."""

    block: str  # as nodes of the graph are named: "stages.2.blocks.0.attn.qkv"
    unit: str  # what is switched as one: "stages.2.blocks.0.attn"
    kind: Literal["convolution", "linear"]
    module: nn.Conv2d | nn.Linear
    in_head: bool = False  # of a detector or segmenter: quantised only where asked for


def operands(model: nn.Module) -> list[Operand]:
    """The layers of a deploy form that can be quantised, in the order of its modules."""
    skipped, has_head = left_out(model), _has_head(model)
    found = []
    for name, module in model.named_modules():
        block = block_of_module(name)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and block not in skipped:
            kind: Literal["convolution", "linear"] = "linear" if isinstance(module, nn.Linear) else "convolution"
            found.append(Operand(block, unit_of(block), kind, module, has_head and not _in_backbone(block)))
    return found


def left_out(model: nn.Module) -> dict[str, str]:
    """Block → why it stays as it is, of the convolutions and linear layers that are not quantised."""
    within = {
        id(part)
        for module in model.modules()
        if isinstance(module, (PackedCarrierAttention, PackedAttentionHalf))
        for part in (module.qkv, module.proj)
    }
    reasons, has_head = {}, _has_head(model)
    for name, module in model.named_modules():
        block = block_of_module(name)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if id(module) in within:
            reasons[block] = "within a fused operator"
        elif block.removeprefix(f"{_BACKBONE}.").split(".")[0] in (_STEM, _HEAD) or block in _LAST:
            reasons[block] = "stem or head"
        elif has_head and not _in_backbone(block) and isinstance(module, nn.Linear):
            reasons[block] = "linear layer of a detector's head: few rows, and coordinates"
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            reasons[block] = "grouped convolution: one multiplication per weight and position, nothing to gain"
    return reasons


def _has_head(model: nn.Module) -> bool:
    return _BACKBONE in dict(model.named_children())


def _in_backbone(block: str) -> bool:
    return block.startswith(f"{_BACKBONE}.")


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
