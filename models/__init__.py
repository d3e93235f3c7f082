"""FasterViT models in plain PyTorch: variants, construction, checkpoints."""

from fastervit_trt.models.config import FasterViTConfig, Preprocessing
from fastervit_trt.models.factory import create_model, get_variant, list_models, resolve_config
from fastervit_trt.models.fastervit import FasterViT, FasterViTBackbone, FeatureInfo
from fastervit_trt.models.hat import HATBlock, HATStage

__all__ = [
    "FasterViT",
    "FasterViTBackbone",
    "FasterViTConfig",
    "FeatureInfo",
    "HATBlock",
    "HATStage",
    "Preprocessing",
    "create_model",
    "get_variant",
    "list_models",
    "resolve_config",
]
