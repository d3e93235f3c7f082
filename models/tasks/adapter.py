"""A FasterViT as transformers knows backbones, the only thing its heads ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from fastervit_trt.models.fastervit import FasterViTBackbone

__all__ = ["MapsConfig", "maps_config", "set_trunk"]

_STAGES = 4


class MapsConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """Channels of every stage, and which stages yield their maps."""

    model_type = "fastervit"

    def __init__(self, channels: Sequence[int] = (), out_indices: Sequence[int] = (0, 1, 2, 3), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage_names = [f"stage{i}" for i in range(_STAGES)]
        self.channels = list(channels)
        self.set_output_features_output_indices(out_features=None, out_indices=list(out_indices))


class FasterViTMaps(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """The maps of ``trunk``, which is put in after construction so that transformers does not initialise it anew."""

    config_class = MapsConfig
    has_attentions = False
    trunk: FasterViTBackbone

    def __init__(self, config: MapsConfig) -> None:
        super().__init__(config)
        self.num_features = list(config.channels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        return BackboneOutput(feature_maps=self.trunk(pixel_values))


def maps_config(trunk: FasterViTBackbone) -> MapsConfig:
    """What transformers has to know of ``trunk`` to build a head for it."""
    return MapsConfig([trunk.config.stage_dim(i) for i in range(_STAGES)], trunk.out_indices)


def set_trunk(maps: torch.nn.Module, trunk: FasterViTBackbone) -> None:
    """Give the backbone that transformers built its network."""
    assert isinstance(maps, FasterViTMaps)
    maps.trunk = trunk


AutoConfig.register(MapsConfig.model_type, MapsConfig, exist_ok=True)
AutoBackbone.register(MapsConfig, FasterViTMaps, exist_ok=True)
