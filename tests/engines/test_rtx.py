"""Real TensorRT-RTX builds: ahead of time, for GPUs that are not here."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import onnx
import pytest

from fastervit_trt.engines import build as build_module
from fastervit_trt.engines.build import BuildRequest, BuiltEngine, build_engine
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, check_precision, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import Bf16, Fp8, Fp16, Int8

builds = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))

BATCH, SHAPE = BatchRange(1, 4, 8), (3, 224, 224)


def build(onnx_path: Path, plan: Path, capability: str = "8.9", batch: BatchRange = BATCH) -> BuiltEngine:
    return build_rtx_engine(onnx_path, plan, RtxTarget.parse(capability), batch, "images", SHAPE)


@builds
@pytest.mark.parametrize(
    ("precision", "capability"), [("fp32", "8.6"), ("fp16", "7.5"), ("fp16", "8.9"), ("fp16", "12.0"), ("bf16", "8.9")]
)
def test_builds_for_the_capability_asked(exports: Path, tmp_path: Path, precision: str, capability: str) -> None:
    seen: list[tuple[str, int, int]] = []
    plan = tmp_path / "model.engine"
    target = RtxTarget.parse(capability)
    request = BuildRequest(
        exports / precision / "model.onnx", plan, "tensorrt-rtx", precision, "images", SHAPE, (BATCH,), capability
    )
    engine = build_engine(request, lambda *step: seen.append(step))
    assert engine.version == importlib.metadata.version("tensorrt-rtx")
    assert engine.layers > 100
    assert 100 < engine.peak_rss_mib < 8000
    assert {phase for phase, _, _ in seen} >= {"parsing", "Building engine"}
    content = plan.read_bytes()
    # attention is one fused kernel in half precision; the plan names the generation it was compiled for
    assert bool(re.search(rb"_gemm_mha_v2", content)) == (precision != "fp32")
    assert re.search(rf"sm_?{target.major}{target.minor}".encode(), content)


@builds
def test_static_batch_needs_no_profile(exports: Path, tmp_path: Path) -> None:
    graph = onnx.load(exports / "fp16" / "model.onnx")
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(graph, tmp_path / "static.onnx")
    assert build(tmp_path / "static.onnx", tmp_path / "e", batch=BatchRange(4, 4, 4)).path.stat().st_size > 100_000


@builds
@pytest.mark.parametrize(
    ("operator", "block"),
    [("Gelu", "stages.2.blocks.0.hat_mlp.act"), ("LayerNormalization", "stages.3.blocks.0.norm1")],
)
def test_a_refused_node_is_named_with_its_block(exports: Path, tmp_path: Path, operator: str, block: str) -> None:
    graph = onnx.load(exports / "fp16" / "model.onnx")
    node = next(n for n in graph.graph.node if n.op_type == operator and n.name.startswith(f"{block}/"))
    node.op_type = "NoSuchOperator"
    onnx.save(graph, tmp_path / "broken.onnx")
    with pytest.raises(FasterViTError) as caught:
        build(tmp_path / "broken.onnx", tmp_path / "e")
    message = str(caught.value)
    assert f"parser refuses NoSuchOperator in {block} (node '{node.name}')" in message
    assert "--compute-capability none" in message
    assert not (tmp_path / "e").exists()


@builds
def test_an_operator_within_a_function_is_refused_with_the_block_of_the_call(exports: Path, tmp_path: Path) -> None:
    graph = onnx.load(exports / "fp16" / "model.onnx")
    (function,) = [f for f in graph.functions if f.name == "WindowAttention"]
    next(n for n in function.node if n.op_type == "Softmax").op_type = "NoSuchOperator"
    onnx.save(graph, tmp_path / "broken.onnx")
    node = "stages.2.blocks.0.attn/WindowAttention_0/Softmax_0"
    with pytest.raises(FasterViTError, match=rf"refuses NoSuchOperator in stages.2.blocks.0.attn \(node '{node}'\)"):
        build(tmp_path / "broken.onnx", tmp_path / "e")


@builds
def test_mixed_types_are_refused_with_the_block(exports: Path, tmp_path: Path) -> None:
    graph = onnx.load(exports / "fp16" / "model.onnx")
    cast = next(n for n in graph.graph.node if n.op_type == "Cast" and n.input[0] == "images")
    cast.attribute[0].i = onnx.TensorProto.FLOAT  # fp32 activations meet fp16 weights
    onnx.save(graph, tmp_path / "mixed.onnx")
    with pytest.raises(FasterViTError, match=r"in patch_embed\.conv_down\.0 .*must be of same type"):
        build(tmp_path / "mixed.onnx", tmp_path / "e")


@builds
def test_a_dying_worker_is_an_error_not_a_crash(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module.sys, "executable", "/bin/false")
    with pytest.raises(FasterViTError, match=r"ended without an answer \(exit code 1\)"):
        build(exports / "fp16" / "model.onnx", tmp_path / "e")


@pytest.mark.parametrize("text", ["8.9", "89", "sm89", "SM89"])
def test_capabilities_are_read_as_people_write_them(text: str) -> None:
    assert RtxTarget.parse(text) == RtxTarget(8, 9)


@pytest.mark.parametrize("text", ["9.0", "8.7", "sm110", "", "all"])
def test_other_gpus_are_refused(text: str) -> None:
    with pytest.raises(FasterViTError, match=r"it builds for 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        RtxTarget.parse(text)


def test_turing_has_no_bf16() -> None:
    with pytest.raises(FasterViTError, match="no bf16"):
        check_precision("7.5", Bf16())
    check_precision("7.5", Fp16())


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6"])
def test_fp8_is_refused_where_no_hardware_has_it(capability: str) -> None:
    with pytest.raises(FasterViTError) as refused:
        check_precision(capability, Fp8())
    assert str(refused.value) == (
        f"compute capability {capability} has no fp8; use --precision int8 or fp16, or 8.9 and later"
    )
    check_precision(capability, Int8())


def test_what_surrounds_8_bits_needs_hardware_too() -> None:
    with pytest.raises(FasterViTError, match=r"capability 7\.5 has no bf16; use --precision fp16, or 8\.0 and later"):
        check_precision("7.5", Int8(base=Bf16()))
    for capability in ("8.9", "12.0", "12.1"):
        check_precision(capability, Fp8())
