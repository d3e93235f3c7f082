"""From a FasterViT to a typed, verified ONNX graph."""
