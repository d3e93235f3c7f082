"""FasterViT models in plain PyTorch: variants, construction, checkpoints.

What is listed here is imported when it is asked for: whoever reads images or runs an export needs no PyTorch for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "FasterViT": "fastervit",
    "FasterViTBackbone": "fastervit",
    "FasterViTConfig": "config",
    "FeatureInfo": "fastervit",
    "HATBlock": "hat",
    "HATStage": "hat",
    "Preprocessing": "config",
    "create_model": "factory",
    "get_variant": "factory",
    "list_models": "factory",
    "resolve_config": "factory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
