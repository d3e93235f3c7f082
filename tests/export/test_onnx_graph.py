from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastervit_trt.export import graph
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import FLOATS
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models import create_model
from tests.conftest import ROOT

TYPES = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize("precision", FLOATS)
def test_the_graph_is_typed_throughout_between_float32_ends(exports: Path, precision: str) -> None:
    model = onnx.load(exports / precision / "model.onnx")
    weights = [w for w in model.graph.initializer if w.data_type != onnx.TensorProto.INT64]
    assert len(weights) > 40
    assert {w.data_type for w in weights if len(w.dims) > 0} == {TYPES[precision]}
    ends = [*model.graph.input, *model.graph.output]
    assert {v.type.tensor_type.elem_type for v in ends} == {onnx.TensorProto.FLOAT}


def test_nodes_are_named_after_the_blocks_of_the_model(exports: Path) -> None:
    nodes = onnx.load(exports / "fp16" / "model.onnx").graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    blocks = {name.split("/")[0] for name in names}
    assert {"patch_embed.conv_down.0", "stages.2.blocks.0.hat_attn", "stages.3.blocks.0.attn.qkv", "head"} <= blocks
    unplaced = [name for name in names if name.startswith("model/")]
    assert len(unplaced) <= 4  # the casts at both ends
    (attention,) = [n for n in nodes if n.op_type == "WindowAttention" and n.name.startswith("stages.3.blocks.0")]
    assert attention.name == "stages.3.blocks.0.attn/WindowAttention_0"


def test_nothing_private_is_written(exports: Path) -> None:
    content = (exports / "fp16" / "model.onnx").read_bytes()
    for secret in (str(ROOT), str(Path(torch.__file__).parent), "stack_trace", "pkg.torch", ".py"):
        assert secret.encode() not in content


def test_position_tables_and_batchnorm_are_constants(exports: Path) -> None:
    kinds = {node.op_type for node in onnx.load(exports / "fp32" / "model.onnx").graph.node}
    assert not kinds & {"BatchNormalization", "Sigmoid", "Pad", "Log"}


@pytest.mark.parametrize("text", ["3", "1:2:5"])
def test_static_and_dynamic_batches(tmp_path: Path, text: str) -> None:
    batch, model = BatchRange.parse(text), create_model("faster_vit_digits_s").eval()
    typed = TypedModel(deploy_form(model)[0], FLOATS["fp32"])
    (path,) = save_onnx(onnx_from_torch(typed, (3, 224, 224), batch), tmp_path)
    session = OnnxCpuSession(path)
    for size in range(batch.minimum, batch.maximum + 1):
        images = np.random.default_rng(size).standard_normal((size, 3, 224, 224)).astype(np.float32)
        with torch.inference_mode():
            np.testing.assert_allclose(session(images)[0], model(torch.from_numpy(images)).numpy(), atol=2e-5)
    first = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
    assert bool(first.dim_param) == batch.dynamic


def test_large_weights_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_EXTERNAL_DATA_BYTES", 1000)
    model = create_model("faster_vit_digits_s").eval()
    typed = TypedModel(deploy_form(model)[0], FLOATS["fp32"])
    files = save_onnx(onnx_from_torch(typed, (3, 224, 224), BatchRange(1, 1, 1)), tmp_path)
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data"]
    assert files[0].stat().st_size < 200_000
    x = np.zeros((1, 3, 224, 224), dtype=np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(OnnxCpuSession(files[0])(x)[0], model(torch.from_numpy(x)).numpy(), atol=2e-5)


def test_a_graph_is_flattened_without_pytorch(exports: Path) -> None:
    """What builds engines on a device reads graphs in a process of its own, which PyTorch would make larger."""
    program = """
import sys
import onnx_ir as ir
from fastervit_trt.export.graph import inline_functions
model = ir.load(sys.argv[1])
inline_functions(model)
assert not model.functions and len(model.graph) > 100
assert "torch" not in sys.modules
"""
    path = exports / "fp16" / "model.onnx"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
