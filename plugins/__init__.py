"""Fused operators: reference definitions, CUDA kernels and TensorRT plugins."""
