"""A name in, a FasterViT out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, overload

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig, Variant, with_resolution
from fastervit_trt.models.fastervit import FasterViT, FasterViTBackbone
from fastervit_trt.models.geometry import CarrierOrder
from fastervit_trt.models.variants import VARIANTS

__all__ = ["ModelSpec", "create_model", "get_variant", "list_models", "resolve_config"]


@dataclass(frozen=True)
class ModelSpec:
    """A model as someone asked for it: a registered name and what differs from it. None: as registered."""

    name: str
    resolution: tuple[int, int] | None = None
    num_classes: int | None = None
    window_size: tuple[int, ...] | None = None
    ct_size: int | None = None
    carrier_order: str | None = None
    out_indices: tuple[int, ...] | None = None  # stages of the backbone form; None: the classifier

    def config(self) -> FasterViTConfig:
        """The configuration asked for.

        Raises:
            FasterViTError: as :func:`resolve_config`.
        """
        chosen = ("num_classes", "window_size", "ct_size", "carrier_order")
        overrides = {name: getattr(self, name) for name in chosen if getattr(self, name) is not None}
        return resolve_config(self.name, self.resolution, **overrides)

    def record(self) -> dict[str, Any]:
        """For a manifest: only what was asked for."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ModelSpec:
        asked: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
        return cls(**asked)


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


def resolve_config(name: str, resolution: int | Sequence[int] | None = None, **overrides: Any) -> FasterViTConfig:
    """The variant's configuration with ``resolution`` (pixels, or (H, W)) and other fields replaced.

    Raises:
        FasterViTError: unknown name or field, impossible resolution, windows, carriers or class count.
    """
    config = get_variant(name).config
    known = {f.name for f in fields(FasterViTConfig)}
    unknown = [field for field in overrides if field not in known]
    if unknown:
        raise FasterViTError(f"{name} has no setting '{unknown[0]}'; it has {', '.join(sorted(known))}")
    if overrides.get("carrier_order", "reference") not in get_args(CarrierOrder):
        raise FasterViTError(f"carrier order must be one of {', '.join(get_args(CarrierOrder))}")
    if overrides.get("num_classes", 1) < 1:
        raise FasterViTError(f"num_classes must be at least 1, not {overrides['num_classes']}")
    changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    config = replace(config, **changes)
    if resolution is not None:
        sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
        if len(sides) != 2:
            raise FasterViTError(f"resolution {sides} must be one number or (height, width)")
        config = with_resolution(config, (sides[0], sides[1]))
    _check_windows(config, chosen="window_size" in overrides)
    return config


@overload
def create_model(
    name: str, resolution: int | Sequence[int] | None = None, *, features_only: Literal[False] = False, **overrides: Any
) -> FasterViT: ...


@overload
def create_model(
    name: str,
    resolution: int | Sequence[int] | None = None,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **overrides: Any,
) -> FasterViTBackbone: ...


def create_model(
    name: str,
    resolution: int | Sequence[int] | None = None,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **overrides: Any,
) -> FasterViT | FasterViTBackbone:
    """A FasterViT with random weights: ``create_model("faster_vit_1_224", num_classes=10)``.

    Args:
        name: a registered variant, see :func:`list_models`.
        resolution: input size in pixels, one side or (H, W); the variant's own by default. Any size from 32 works.
        features_only: the backbone form, :class:`FasterViTBackbone`, instead of the classifier.
        out_indices: stages whose maps the backbone yields.
        **overrides: any other field of :class:`FasterViTConfig`.

    Raises:
        FasterViTError: unknown name or field, impossible resolution, windows, carriers, class count or stages.
    """
    config = resolve_config(name, resolution, **overrides)
    return FasterViTBackbone(config, tuple(out_indices)) if features_only else FasterViT(config)


def _check_windows(config: FasterViTConfig, *, chosen: bool) -> None:
    """Published windows may exceed a small map, which is then padded; windows someone chose must fit."""
    if len(config.window_size) != 4:
        raise FasterViTError(f"window_size {config.window_size} must name a window for each of the four stages")
    for stage in (2, 3):
        geometry = config.geometry(stage)  # checks the carriers
        if chosen and geometry.window > min(geometry.size):
            raise FasterViTError(
                f"window {geometry.window} of stage {stage} exceeds its {geometry.size[0]}x{geometry.size[1]} map at "
                f"{config.resolution[0]}x{config.resolution[1]} pixels; choose at most {min(geometry.size)}"
            )
