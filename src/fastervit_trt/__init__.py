"""FasterViT to the limit of NVIDIA inference hardware: checkpoint → ONNX → engine → measured report."""

__version__ = "0.1.0"
