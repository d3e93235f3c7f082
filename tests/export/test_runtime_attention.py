from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.runtime_attention import use_runtime_attention


@pytest.mark.parametrize("batch", [1, 3])
def test_the_kernel_computes_what_the_function_means(exports: Path, tmp_path: Path, batch: int) -> None:
    path = exports / "fp32" / "model.onnx"
    model = ir.load(path)
    assert use_runtime_attention(model) == 2  # a block with carriers and one without
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Attention") == 2 and "WindowAttention" not in kinds
    ir.save(model, tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
    (expected,), (actual,) = OnnxCpuSession(path)(images), OnnxCpuSession(tmp_path / "model.onnx")(images)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected).max() > 1


def test_other_precisions_keep_their_functions(exports: Path) -> None:
    model = ir.load(exports / "fp16" / "model.onnx")
    assert use_runtime_attention(model) == 0
    assert model.opset_imports[""] == 20
