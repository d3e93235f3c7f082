"""Builds that TensorRT-RTX really refuses, told in the model's words with what to do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fastervit_trt.engines.build import build_engine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.errors import FasterViTError
from tests.engines.builds import SOURCES, builds, rtx_request


@pytest.fixture(scope="module")
def refusal(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What a build of an export says that fails; nothing of it is left."""
    folder = tmp_path_factory.mktemp("refusals")

    def message(
        change: Callable[[onnx.ModelProto], None] | None = None,
        *,
        precision: str = "fp16",
        capability: str = "8.9",
        side: int = 224,
        **options: Any,
    ) -> str:
        path = exports / precision / "model.onnx"
        if change is not None:
            graph = onnx.load(path)
            change(graph)
            path = folder / "changed.onnx"
            onnx.save(graph, path)
        request = rtx_request(
            exports / precision,
            folder / "engines" / "model.engine",
            onnx=path,
            precision=precision,
            image_shape=(3, side, side),
            compute_capability=capability,
            options=BuildOptions(**options),
        )
        request.engine.parent.mkdir(exist_ok=True)
        with pytest.raises(FasterViTError) as refused:
            build_engine(request)
        assert list(request.engine.parent.iterdir()) == []
        assert SOURCES.search(str(refused.value)) is None, refused.value
        return str(refused.value)

    return message


@builds
def test_a_workspace_that_is_too_small_is_to_be_larger(refusal: Callable[..., str]) -> None:
    message = refusal(workspace_mib=1)
    assert message.startswith(
        "TensorRT-RTX cannot build an engine for compute capability 8.9: Tactic Selection: no tactics to implement the "
        "operation within workspace limit."
    )
    assert message.endswith("; allow more: --workspace MIB")


@builds
def test_shared_memory_that_is_too_small_is_to_be_larger(refusal: Callable[..., str]) -> None:
    message = refusal(shared_memory_kib=16)
    assert message == (
        "TensorRT-RTX cannot build an engine for compute capability 8.9: MyelinCheckException: CHECK_GE(smem_limit, "
        "kMinSharedMemory - 1024) failed.; allow more: --shared-memory KIB, at least 48"
    )


@builds
def test_an_operator_it_does_not_know_is_refused_with_its_block(refusal: Callable[..., str]) -> None:
    def unknown(graph: onnx.ModelProto) -> None:
        next(node for node in graph.graph.node if node.op_type == "Gelu").op_type = "Swoosh"

    message = refusal(unknown)
    assert message == (
        "TensorRT-RTX parser refuses Swoosh in stages.0.blocks.0.act1 (node 'stages.0.blocks.0.act1/Gelu_0'): "
        'creator && "Plugin not found, are the plugin name, version, and namespace correct?"; skip engines with '
        "--compute-capability none"
    )


@builds
def test_mixed_types_are_told_with_both_types(refusal: Callable[..., str]) -> None:
    def mixed(graph: onnx.ModelProto) -> None:
        cast = next(node for node in graph.graph.node if node.op_type == "Cast" and node.input[0] == "images")
        cast.attribute[0].i = onnx.TensorProto.FLOAT  # fp32 activations meet fp16 weights

    message = refusal(mixed)
    assert message == (
        "TensorRT-RTX parser refuses Conv in patch_embed.conv_down.0 (node 'patch_embed.conv_down.0/Conv_0'): "
        "patch_embed.conv_down.0/Conv_0: IConvolutionLayer `input` and `kernel` must be of same type. `input` type is "
        "Float but `kernel` is of type Half.; the graph mixes types; export the model again"
    )


@builds
def test_a_type_the_hardware_lacks_asks_for_another_precision(refusal: Callable[..., str]) -> None:
    message = refusal(precision="bf16", capability="7.5")
    assert message.startswith(
        "TensorRT-RTX cannot build an engine for compute capability 7.5: Cannot compile for target"
    )
    assert message.endswith("; try another --precision")


@builds
def test_images_of_another_size_are_told(refusal: Callable[..., str]) -> None:
    message = refusal(side=112)
    assert "profile has min=112, opt=112, max=112 but tensor has 224" in message
