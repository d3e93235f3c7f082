"""A name in, a FasterViT out."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig, Variant
from fastervit_trt.models.fastervit import FasterViT
from fastervit_trt.models.variants import VARIANTS

__all__ = ["create_model", "get_variant", "list_models", "resolve_config"]

# Three stride-2 steps after a stride-4 stem: below this the last map would be empty or a single padded token.
_MIN_RESOLUTION = 32
_MAX_RESOLUTION = 8192


def list_models() -> list[str]:
    """Registered variant names."""
    return list(VARIANTS)


def get_variant(name: str) -> Variant:
    """The registered variant called ``name``.

    Raises:
        FasterViTError: unknown name; the message suggests the closest registered ones.
    """
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4) or list(VARIANTS)[:3]
        raise FasterViTError(f"unknown model '{name}'; closest names: {', '.join(close)}")
    return VARIANTS[name]


def resolve_config(name: str, resolution: int | tuple[int, int] | None = None, **overrides: Any) -> FasterViTConfig:
    """The variant's configuration with ``resolution`` (pixels, or (H, W)) and other fields replaced.

    Raises:
        FasterViTError: unknown name, impossible resolution or class count.
    """
    config = get_variant(name).config
    if resolution is not None:
        size = (resolution, resolution) if isinstance(resolution, int) else (int(resolution[0]), int(resolution[1]))
        if min(size) < _MIN_RESOLUTION or max(size) > _MAX_RESOLUTION:
            raise FasterViTError(
                f"resolution {size[0]}x{size[1]} is impossible for {name}: both sides must lie in "
                f"[{_MIN_RESOLUTION}, {_MAX_RESOLUTION}] pixels (the network's stride is {_MIN_RESOLUTION})"
            )
        overrides["resolution"] = size
    if overrides.get("num_classes", 1) < 1:
        raise FasterViTError(f"num_classes must be at least 1, not {overrides['num_classes']}")
    return replace(config, **overrides)


def create_model(name: str, resolution: int | tuple[int, int] | None = None, **overrides: Any) -> FasterViT:
    """A FasterViT with random weights: ``create_model("faster_vit_1_224", num_classes=10)``.

    Args:
        name: a registered variant, see :func:`list_models`.
        resolution: input size in pixels, one side or (H, W); the variant's own by default.
        **overrides: any other field of :class:`FasterViTConfig`.

    Raises:
        FasterViTError: unknown name, impossible resolution or class count.
    """
    return FasterViT(resolve_config(name, resolution, **overrides))
