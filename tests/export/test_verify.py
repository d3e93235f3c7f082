"""Verification passes what is right and stops what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import FLOATS
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.export.verify import Verification, expect, verification_batches, verify_onnx
from fastervit_trt.models import FasterViT
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import build_model, pretrained_source

NAME, SHAPE = "faster_vit_digits_s", (3, 224, 224)


def verify(path: Path, model: FasterViT, precision: str) -> Verification:
    typed = TypedModel(deploy_form(model)[0], FLOATS[precision])
    return verify_onnx(path, expect(model, typed, BatchRange(1, 4, 8), SHAPE))


def with_scaled_weight(source: Path, folder: Path, layer: str, factor: float) -> Path:
    """The graph of ``source``, in which the weight of the first layer whose name ends so is multiplied."""
    graph = onnx.load(source)
    consumers = [
        n for n in graph.graph.node if n.name.split("/")[0].endswith(layer) and n.op_type in ("MatMul", "Gemm")
    ]
    weight = next(w for w in graph.graph.initializer if w.name in consumers[0].input)
    values = numpy_helper.to_array(weight).copy()
    values *= values.dtype.type(factor)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def model() -> FasterViT:
    model, _ = build_model(ModelSpec(NAME), pretrained_source(NAME))
    assert isinstance(model, FasterViT)
    return model


@pytest.mark.parametrize("precision", FLOATS)
def test_what_was_exported_passes_within_a_tight_budget(exports: Path, model: FasterViT, precision: str) -> None:
    result = verify(exports / precision / "model.onnx", model, precision)
    assert result.share_of_budget <= 1
    assert result.batches == (1, 2, 3)
    assert result.compared_values == 60
    assert result.emulated == (precision == "bf16")
    assert result.abs_error < {"fp32": 1e-5, "fp16": 1e-2, "bf16": 0.2}[precision]
    assert result.worst_output == "logits"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layer", ["head", "blocks.0.attn.qkv", "blocks.0.mlp.fc1"])
def test_a_changed_weight_is_caught(
    exports: Path, tmp_path: Path, model: FasterViT, precision: str, layer: str
) -> None:
    path = with_scaled_weight(exports / precision / "model.onnx", tmp_path, layer, 1.25)
    with pytest.raises(FasterViTError, match=r"differs from PyTorch; worst point: logits\[\d, \d\] of \w+ images"):
        verify(path, model, precision)


@torch.no_grad()
def test_overflow_in_fp16_is_named_with_its_block(tmp_path: Path, model: FasterViT) -> None:
    model.levels[3].blocks[0].mlp.fc1.weight *= 1e7  # type: ignore[index, union-attr, operator]
    typed = TypedModel(deploy_form(model)[0], FLOATS["fp16"])
    batch = BatchRange(1, 4, 8)
    (path,) = save_onnx(onnx_from_torch(typed, SHAPE, batch), tmp_path)
    with pytest.raises(FasterViTError) as refused:
        verify_onnx(path, expect(model, typed, batch, SHAPE))
    assert str(refused.value) == (
        "verification failed: 60 outputs of the fp16 graph are not finite, from stages.3.blocks.0.mlp.fc1 (Gemm) on; "
        "activations leave the range of fp16, export with --precision bf16 or fp32"
    )


@torch.no_grad()
def test_overflow_that_onnx_runtime_hides_is_refused(exports: Path, tmp_path: Path, model: FasterViT) -> None:
    """Scores of 7e4, of the smooth images only: ONNX Runtime takes their softmax in float32, on hardware it is NaN."""
    model.levels[3].blocks[0].attn.qkv.weight *= 170  # type: ignore[index, union-attr, operator]
    path = with_scaled_weight(exports / "fp16" / "model.onnx", tmp_path, "stages.3.blocks.0.attn.qkv", 170)
    images = [images for _, images in verification_batches(BatchRange(1, 4, 8), SHAPE)]
    assert all(np.isfinite(OnnxCpuSession(path)(x)[0]).all() for x in images)
    with pytest.raises(FasterViTError) as refused:
        verify(path, model, "fp16")
    assert str(refused.value) == (
        "verification failed: outputs of the fp16 graph are not finite where every result is rounded, as hardware "
        "does, from stages.3.blocks.0.attn (MatMul) on; activations leave the range of fp16, export with --precision "
        "bf16 or fp32"
    )


def test_nobody_is_sent_to_a_wider_type_where_there_is_none(exports: Path, tmp_path: Path, model: FasterViT) -> None:
    path = with_scaled_weight(exports / "fp32" / "model.onnx", tmp_path, "head", np.nan)
    with pytest.raises(
        FasterViTError, match=r"60 .* fp32 .* from head \(Gemm\) on; look for weights there that are not"
    ):
        verify(path, model, "fp32")


def test_an_invalid_graph_is_refused(exports: Path, tmp_path: Path, model: FasterViT) -> None:
    graph = onnx.load(exports / "fp32" / "model.onnx")
    graph.graph.node[5].input[0] = "nobody_makes_this"
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(FasterViTError, match="the written graph is invalid"):
        verify(tmp_path / "model.onnx", model, "fp32")


@pytest.mark.parametrize(
    ("batch", "sizes"), [("1:8:32", [1, 2, 3]), ("1:2:2", [1, 2]), ("4", [4, 4, 4]), ("32", [32, 32])]
)
def test_several_batches_of_different_kinds(batch: str, sizes: list[int]) -> None:
    made = list(verification_batches(BatchRange.parse(batch), (3, 32, 48)))
    assert [images.shape for _, images in made] == [(size, 3, 32, 48) for size in sizes]
    assert len({kind for kind, _ in made}) == len(made)
    assert all(images.dtype == np.float32 for _, images in made)
