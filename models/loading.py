"""A state dict into a model, strictly; what may differ without changing the function is tolerated and listed.

Tolerated, because the model computes the same without it or can make it itself:
    * derived tables (``relative_bias``, ``relative_coords_table``, ``relative_position_index``) of another window or
      resolution, or left out: made anew;
    * position MLPs left out by files saved in deploy form: their stored tables are used;
    * carriers, or their position embedding, that the model's resolution has no use for;
    * one of the two names of the tokenizer's convolution left out;
    * a linear head inside a container (``head.1.weight``);
    * for the backbone form: head, final norm and the stages it was built without.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.checkpoint import StateDict
from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.fastervit import FasterViTBackbone, Trunk
from fastervit_trt.models.hat import HATStage
from fastervit_trt.models.position import PositionModule
from fastervit_trt.models.variants import VARIANTS

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.model import TaskModel

__all__ = ["load_state_dict", "looks_like"]

_SHOWN = 3  # differing keys named in an error
_DERIVED = ("relative_bias", "relative_coords_table", "relative_position_index")


def load_state_dict(model: Trunk | TaskModel, state: StateDict, where: str, *, assign: bool = False) -> list[str]:
    """Put ``state`` into ``model``: every key used, none left over, every shape equal, but for what is tolerated.

    Args:
        where: what to call the source in an error, usually the file.
        assign: let the model keep the tensors of ``state`` (of the model's type) instead of copying them.

    Returns:
        The differences that were tolerated, a line each.

    Raises:
        FasterViTError: names the first differing keys with both shapes, the variant the file looks like, or the class
            count to ask for.
    """
    trunk, prefix = _trunk_of(model)
    within = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    _check_head(prefix, within, where)
    tolerated = [note for allowance in _ALLOWANCES for note in allowance(trunk, within)]
    state = {key: value for key, value in state.items() if not key.startswith(prefix)}
    state |= {prefix + key: value for key, value in within.items()}
    own = model.state_dict()
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    if wrong and not missing and not unexpected and all(key.startswith("head.") for key in wrong):
        classes = state["head.bias"].shape[0]
        raise FasterViTError(
            f"checkpoint '{where}' has {classes} classes, the model {own['head.bias'].shape[0]}; "
            f"pass --num-classes {classes}"
        )
    problems = [f"{key} is {_shape(state[key])} in the file and {_shape(own[key])} in the model" for key in wrong]
    problems += [f"{key} {_shape(own[key])} is missing from the file" for key in missing]
    problems += [f"{key} {_shape(state[key])} is not in the model" for key in unexpected]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        name = looks_like(state)
        advice = f"it looks like {name}" if name else "choose the --model and --resolution it was trained as"
        raise FasterViTError(
            f"checkpoint '{where}' does not fit the model: {'; '.join(problems[:_SHOWN])}{more}; {advice}"
        )
    if assign:
        state = {key: value.to(own[key].dtype) for key, value in state.items()}
    model.load_state_dict(state, strict=True, assign=assign)
    return tolerated


def _trunk_of(model: nn.Module) -> tuple[Trunk, str]:
    """The FasterViT within ``model``, and what its keys begin with there."""
    name, trunk = next((name, module) for name, module in model.named_modules() if isinstance(module, Trunk))
    return trunk, f"{name}." if name else ""


def _check_head(prefix: str, within: StateDict, where: str) -> None:
    if prefix and not within:
        raise FasterViTError(
            f"checkpoint '{where}' has no detector or segmenter in it, whose keys begin with {prefix}…; train one on a "
            "backbone: create_model(…, task=…).backbone takes the weights of a classifier"
        )


def looks_like(state: StateDict) -> str | None:
    """The registered variant whose architecture ``state`` has, or None."""
    return next((name for name, variant in VARIANTS.items() if _fits(variant.config, state)), None)


def _fits(config: FasterViTConfig, state: StateDict) -> bool:
    def size(key: str, axis: int = 0) -> int | None:
        return state[key].shape[axis] if key in state else None

    depths = tuple(
        sum(1 for k in state if re.fullmatch(rf"levels\.{i}\.blocks\.\d+\.norm1\.weight", k)) for i in range(4)
    )
    heads = size("levels.2.blocks.0.attn.pos_emb_funct.cpb_mlp.2.weight")
    window = size("levels.2.blocks.0.attn.pos_emb_funct.relative_position_index")
    return (
        (size("patch_embed.conv_down.3.weight"), size("patch_embed.conv_down.0.weight")) == (config.dim, config.in_dim)
        and depths == config.depths
        and heads in (None, config.num_heads[2])
        and window in (None, config.window_size[2] ** 2)
        and ("levels.2.blocks.0.gamma3" in state) == (config.layer_scale is not None)
        and ("levels.2.blocks.0.hat_attn.qkv.weight" in state) == config.geometry(2).has_carriers
    )


def _read_head_in_container(model: Trunk, state: StateDict) -> list[str]:
    nested = [key for key in state if re.fullmatch(r"head\..+\.(weight|bias)", key)]
    if sorted(key.rsplit(".", 1)[1] for key in nested) != ["bias", "weight"] or "head.weight" in state:
        return []
    for key in nested:
        state[f"head.{key.rsplit('.', 1)[1]}"] = state.pop(key)
    return [f"{nested[0].rsplit('.', 1)[0]} is read as head"]


def _complete_tokenizer(model: Trunk, state: StateDict) -> list[str]:
    names = (".global_tokenizer.pos_embed.", ".global_tokenizer.to_global_feature.pos.")
    completed = 0
    for key in list(state):
        for name, other in (names, names[::-1]):
            if name in key and key.replace(name, other) not in state:
                state[key.replace(name, other)] = state[key]
                completed += 1
    return ["the tokenizer's convolution is stored under one of its two names"] if completed else []


def _drop_what_the_resolution_leaves_unused(model: Trunk, state: StateDict) -> list[str]:
    unused: set[str] = set()
    for i, level in enumerate(model.levels):
        if not isinstance(level, HATStage) or not level.geometry.hat:
            continue
        pattern = rf"levels\.{i}\.(global_tokenizer|blocks\.\d+\.(hat_\w+|gamma1|gamma2))\b"
        if level.geometry.has_carriers:
            pattern = rf"levels\.{i}\.blocks\.\d+\.hat_pos_embed\b"
        unused |= {key for key in state if re.match(pattern, key)} - set(model.state_dict())
    if not unused:
        return []
    for key in unused:
        del state[key]
    height, width = model.config.resolution
    return [f"{len(unused)} tensors of carriers have no use at {height}x{width}, first {min(unused)}"]


def _drop_what_the_backbone_lacks(model: Trunk, state: StateDict) -> list[str]:
    if not isinstance(model, FasterViTBackbone):
        return []
    stages = len(model.levels)
    pattern = rf"(head|norm)\.|levels\.({stages - 1}\.downsample|[{stages}-9])\."
    unused = [key for key in state if re.match(pattern, key)]
    for key in unused:
        del state[key]
    return [f"{len(unused)} tensors outside the backbone are left out, first {unused[0]}"] if unused else []


def _settle_position_modules(model: Trunk, state: StateDict) -> list[str]:
    """Derived tables are made by the model; where the file has a table but no MLP, the table is used."""
    own, renewed, stored = model.state_dict(), [], []
    for name, module in model.named_modules():
        if not isinstance(module, PositionModule):
            continue
        table = state.get(f"{name}.relative_bias")
        if table is not None and not any(key.startswith(f"{name}.cpb_mlp.") for key in state):
            _use_stored_table(name, module, table)
            stored.append(name)
        for key in (f"{name}.{kind}" for kind in _DERIVED):
            differs = key in own and (key not in state or state[key].shape != own[key].shape)
            if differs and not (name in stored and key.endswith("relative_bias")):
                state[key] = own[key]
                renewed.append(key)
    notes = [f"{len(renewed)} position tables are made anew, first {renewed[0]}"] if renewed else []
    return notes + (
        [f"{len(stored)} position modules have only their stored table, first {stored[0]}"] if stored else []
    )


def _use_stored_table(name: str, module: PositionModule, table: torch.Tensor) -> None:
    own = module.relative_bias
    if table.shape != own.shape:
        raise FasterViTError(
            f"{name} has no MLP in this checkpoint, and its stored table {_shape(table)} is not of the model's size "
            f"{_shape(own)}; use the resolution it was saved at, or the full checkpoint"
        )
    if not table.any():
        raise FasterViTError(
            f"{name} has no MLP in this checkpoint, and its stored table is all zeros: it was saved in deploy form "
            "before any forward pass; use the full checkpoint"
        )
    module.keep_stored_table()


_ALLOWANCES: tuple[Callable[[Trunk, StateDict], list[str]], ...] = (
    _read_head_in_container,
    _complete_tokenizer,
    _drop_what_the_resolution_leaves_unused,
    _drop_what_the_backbone_lacks,
    _settle_position_modules,
)


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
