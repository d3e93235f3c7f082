"""From an ONNX graph to engines."""
