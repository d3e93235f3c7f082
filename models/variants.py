"""The variants table: each row states only what differs from its neighbours. Facts: FasterViT paper and model cards."""

from __future__ import annotations

from dataclasses import replace

from fastervit_trt.models.config import FasterViTConfig, Preprocessing, Variant
from fastervit_trt.models.tasks.heads import DetectionHead, SegmentationHead

__all__ = ["VARIANTS"]

_LARGE = FasterViTConfig(
    depths=(3, 3, 12, 5),
    num_heads=(4, 8, 16, 32),
    dim=196,
    in_dim=64,
    layer_scale=1e-5,
    do_propagation=True,
    drop_path_rate=0.3,
)

_LARGE_21K = replace(_LARGE, hat=(False, False, False, False), drop_path_rate=0.42)

_IMAGENET = {
    "faster_vit_0_224": FasterViTConfig(depths=(2, 3, 6, 5), num_heads=(2, 4, 8, 16), dim=64, in_dim=64),
    "faster_vit_1_224": FasterViTConfig(depths=(1, 3, 8, 5), num_heads=(2, 4, 8, 16), dim=80, in_dim=32),
    "faster_vit_2_224": FasterViTConfig(depths=(3, 3, 8, 5), num_heads=(2, 4, 8, 16), dim=96, in_dim=64),
    "faster_vit_3_224": replace(_LARGE, num_heads=(2, 4, 8, 16), dim=128),
    "faster_vit_4_224": _LARGE,
    "faster_vit_5_224": replace(_LARGE, dim=320),
    "faster_vit_6_224": replace(_LARGE, dim=320, depths=(3, 3, 16, 8), drop_path_rate=0.5),
    # ImageNet-21k pre-trained. One window covers the whole map, so there are no carriers and nothing to propagate.
    "faster_vit_4_21k_224": replace(_LARGE_21K, resolution=(224, 224), window_size=(7, 7, 14, 7)),
    "faster_vit_4_21k_384": replace(_LARGE_21K, resolution=(384, 384), window_size=(7, 7, 24, 12)),
    "faster_vit_4_21k_512": replace(_LARGE_21K, resolution=(512, 512), window_size=(7, 7, 32, 16)),
    "faster_vit_4_21k_768": replace(_LARGE_21K, resolution=(768, 768), window_size=(7, 7, 48, 24)),
}

# Any resolution: the same networks with their own default size, which is only where they start: every size works.
# The published checkpoints are those of the twins.
_ANY_RES_SIZE = (576, 960)
_ANY_RES = {
    f"{name}_any_res" if "21k" in name else name.replace("_224", "_any_res"): replace(
        config,
        resolution=(541, 960) if name == "faster_vit_2_224" else _ANY_RES_SIZE,
        drop_path_rate=0.3 if "21k" in name else config.drop_path_rate,
    )
    for name, config in _IMAGENET.items()
}

# As published: crop fraction 1, centre crop, but for these.
_PREPROCESSING = {
    "faster_vit_0_224": Preprocessing(crop_pct=0.875),
    "faster_vit_4_21k_224": Preprocessing(crop_pct=0.95, crop_mode="squash"),
    "faster_vit_4_21k_384": Preprocessing(crop_mode="squash"),
    "faster_vit_4_21k_512": Preprocessing(crop_mode="squash"),
    "faster_vit_4_21k_768": Preprocessing(crop_pct=0.93, crop_mode="squash"),
}


def _preprocessing(name: str) -> Preprocessing:
    twin = name.removesuffix("_any_res") if "21k" in name else name.replace("_any_res", "_224")
    return _PREPROCESSING.get(twin, Preprocessing())


# Small models trained on scikit-learn's handwritten digits (models/digits), with the attention geometry of the real
# ones at 224: in stage 2 four windows of 49 tokens with 4 carriers each, in stage 3 one window; position MLPs.
_DIGITS_M = FasterViTConfig(
    depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4), dim=8, in_dim=8, drop_path_rate=0.0, num_classes=10
)
_DIGITS = {
    "faster_vit_digits_s": replace(_DIGITS_M, dim=4, in_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 2)),
    "faster_vit_digits_m": _DIGITS_M,
    "faster_vit_digits_l": replace(_DIGITS_M, dim=16, in_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 1, 2, 4)),
}

# A detector and a segmenter trained on scenes of such digits (models/scenes). At 128 pixels stage 2 has four windows of
# 16 tokens with 4 carriers each, and stage 3 one window.
_SCENES_CONFIG = FasterViTConfig(
    depths=(1, 2, 2, 1),
    num_heads=(1, 1, 2, 4),
    dim=16,
    in_dim=16,
    window_size=(7, 7, 4, 4),
    drop_path_rate=0.0,
    resolution=(128, 128),
    num_classes=10,
)
_SCENES = {
    "faster_vit_scenes_detector": Variant(
        _SCENES_CONFIG,
        head=DetectionHead(
            hidden_size=64, feedforward=128, decoder_layers=2, heads=4, queries=30, expansion=0.5, denoising=20
        ),
    ),
    "faster_vit_scenes_segmenter": Variant(
        replace(_SCENES_CONFIG, num_classes=11),  # background and ten digits
        head=SegmentationHead(hidden_size=48, pool_scales=(1, 2, 4)),
    ),
}

VARIANTS: dict[str, Variant] = {
    **{name: Variant(config, _preprocessing(name)) for name, config in {**_IMAGENET, **_ANY_RES}.items()},
    **{
        name: Variant(
            config, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), shipped_weights=f"{name}.safetensors"
        )
        for name, config in _DIGITS.items()
    },
    **{
        name: replace(
            variant,
            preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_mode="squash"),
            shipped_weights=f"{name}.safetensors",
        )
        for name, variant in _SCENES.items()
    },
}
