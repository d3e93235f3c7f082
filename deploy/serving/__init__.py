"""A bundle in, a KServe v2 endpoint over HTTP on ONNX Runtime out: for trying a bundle where no Triton is."""

from fastervit_trt.deploy.serving.server import serve

__all__ = ["serve"]
