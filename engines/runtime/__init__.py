"""Everything that runs images behind one interface: TensorRT, TensorRT-RTX, ONNX Runtime on the GPU and on the CPU."""

from fastervit_trt.engines.runtime.engine import Engine

__all__ = ["Engine"]
