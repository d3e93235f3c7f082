from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from fastervit_trt.export import graph
from fastervit_trt.export.onnx_cpu import OnnxCpuSession, widened_bfloat16


def test_the_widened_twin_rounds_every_intermediate_to_bfloat16(exports: Path) -> None:
    """Every value that was bfloat16 stays representable in bfloat16, in a graph that ONNX Runtime optimises."""
    model = ir.load(exports / "bf16" / "model.onnx")
    narrow = [v.name for n in model.graph for v in n.outputs if v.dtype is ir.DataType.BFLOAT16]
    twin = widened_bfloat16(model)
    assert not any(v.dtype is ir.DataType.BFLOAT16 for v in twin.graph.initializers.values())
    rounded = [n.outputs[0] for n in twin.graph if n.name and n.name.endswith("/widen")]
    assert len(rounded) > len(narrow) / 3  # the rest only move data
    probes = rounded[:: len(rounded) // 25]
    for value in probes:
        twin.graph.outputs.append(value)
    session = onnxruntime.InferenceSession(ir.to_proto(twin).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    for value, array in zip(probes, session.run(None, {"images": x})[1:], strict=True):
        assert np.array_equal(array, array.astype(ml_dtypes.bfloat16).astype(np.float32)), value.name
        assert array.std() > 0


def test_a_twin_too_large_for_one_message_keeps_its_weights_beside_it(
    exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 FasterViT-5 and -6 exceed what protobuf holds."""
    path = exports / "bf16" / "model.onnx"
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    (expected,) = OnnxCpuSession(path)(x)
    monkeypatch.setattr(graph, "_EXTERNAL_DATA_BYTES", 1000)
    session = OnnxCpuSession(path)
    assert session.emulated
    assert np.array_equal(session(x)[0], expected)
