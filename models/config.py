"""What a FasterViT variant is: its architecture and the preprocessing its weights expect, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.geometry import CarrierOrder, StageGeometry, stage_resolutions

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.heads import DetectionHead, SegmentationHead

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FasterViTConfig",
    "Preprocessing",
    "Variant",
    "parse_resolution",
    "with_resolution",
]

_MIN_RESOLUTION = 32  # the network's stride: below it the last map would stand for less than one pixel
_MAX_RESOLUTION = 8192

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the model's input: resize to ``resolution / crop_pct``, crop, scale to [0, 1], normalise.

    ``crop_mode`` "center" resizes the shorter side and crops the middle; "squash" resizes both sides.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"


@dataclass(frozen=True)
class FasterViTConfig:
    """Architecture of one FasterViT; stages 0 and 1 are convolutions, 2 and 3 hierarchical attention.

    Example (FasterViT-0): ``FasterViTConfig(depths=(2, 3, 6, 5), num_heads=(2, 4, 8, 16), dim=64, in_dim=64)``.
    """

    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]  # of every stage, as published; the first two are not used
    dim: int  # channels of stage 0; doubled by each stage
    in_dim: int  # channels between the two convolutions of the stem
    window_size: tuple[int, int, int, int] = (7, 7, 7, 7)
    ct_size: int = 2  # side of a window's carrier grid
    hat: tuple[bool, bool, bool, bool] = (False, False, True, False)
    mlp_ratio: float = 4.0
    layer_scale: float | None = None  # initial γ, or none
    do_propagation: bool = False
    drop_path_rate: float = 0.2
    resolution: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    in_chans: int = 3
    carrier_order: CarrierOrder = "reference"

    def stage_dim(self, stage: int) -> int:
        return self.dim * 2**stage

    def geometry(self, stage: int) -> StageGeometry:
        size = stage_resolutions(self.resolution)[stage]
        return StageGeometry(size, self.window_size[stage], self.ct_size, self.hat[stage])


def parse_resolution(text: str | None) -> tuple[int, int] | None:
    """``"224"`` or ``"576x960"`` as (H, W); None stays None.

    Raises:
        FasterViTError: neither.
    """
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise FasterViTError(f"resolution '{text}' is neither H nor HxW, e.g. 224 or 576x960")
    return sides[0], sides[-1]


def with_resolution(config: FasterViTConfig, resolution: tuple[int, int]) -> FasterViTConfig:
    """``config`` for images of ``resolution`` (H, W) pixels.

    Raises:
        FasterViTError: a side is smaller than the network's stride, or absurdly large.
    """
    height, width = (int(side) for side in resolution)
    if min(height, width) < _MIN_RESOLUTION or max(height, width) > _MAX_RESOLUTION:
        raise FasterViTError(
            f"resolution {height}x{width} is impossible: both sides must lie in [{_MIN_RESOLUTION}, {_MAX_RESOLUTION}] "
            f"pixels (the network's stride is {_MIN_RESOLUTION})"
        )
    return replace(config, resolution=(height, width))


@dataclass(frozen=True)
class Variant:
    """A registered name: architecture plus preprocessing, and the weights that ship with the package, if any."""

    config: FasterViTConfig
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    shipped_weights: str | None = None  # file name in the folder of weights of models/digits or models/scenes
    head: SegmentationHead | DetectionHead | None = None  # what the shipped weights have on top; None: a classifier
