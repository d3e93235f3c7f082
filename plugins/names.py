"""What the fused operators are called outside PyTorch; without PyTorch, for what runs on a device."""

from __future__ import annotations

__all__ = ["DOMAIN", "PLUGIN_VERSION"]

DOMAIN = "fastervit"  # of ONNX and of torch.library, and the plugin namespace of TensorRT
PLUGIN_VERSION = "1"
