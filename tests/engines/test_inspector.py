"""What the engine inspector of TensorRT 10 and 11 says of FasterViT's layers (tests/engines/recorded/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.engines.inspector import kernels_of_inspection
from fastervit_trt.engines.kernels import EngineKernels, Kernel, Kind
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.operators import OPERATORS

RECORDED = Path(__file__).parent / "recorded"
ATTENTION = "stages.2.blocks.0.attn"


def recorded(name: str, profile: int = 0) -> EngineKernels:
    return kernels_of_inspection((RECORDED / f"inspector-{name}.json").read_text(), "'engine'", profile)


def kernel_of(layer: dict[str, Any]) -> Kernel:
    text = json.dumps({"Layers": [{"Name": "layer", "LayerType": "kgen", "Inputs": [], "Outputs": [], **layer}]})
    (kernel,) = kernels_of_inspection(text, "'engine'").kernels
    return kernel


def kinds(kernels: EngineKernels) -> list[tuple[str, str]]:
    return [(kernel.kind.value, kernel.name) for kernel in kernels.kernels]


def node_of(kernels: EngineKernels, node: str) -> Kernel:
    (kernel,) = (kernel for kernel in kernels.kernels if node in kernel.nodes and kernel.kind is not Kind.REFORMAT)
    return kernel


def types(kernel: Kernel) -> tuple[list[str], list[str]]:
    return [tensor.type for tensor in kernel.inputs], [tensor.type for tensor in kernel.outputs]


def test_every_layer_of_tensorrt_10_that_launches_a_kernel_has_its_kind() -> None:
    assert kinds(recorded("10")) == [
        ("reformat", "Reformat"),
        ("convolution", "CaskConvolution"),
        ("normalisation", "__myl_ReshTranConcCastMeanSubMulMeanAddSqrtDivMulCastMulAdd"),
        ("gemm", "gemm"),
        ("movement", "__myl_ReshTranMove"),
        ("attention", "_gemm_mha_v2"),
        ("gemm", "__myl_FcMulAdd"),
        ("plugin", "WindowAttention"),
        ("softmax", "__myl_MulAddMaxrSubExpSumDivMul"),
        ("pointwise", "Reformat"),  # for Q/DQ: the graph asks for it
        ("other", "Myelin"),  # opaque
        ("reduction", "CaskPooling"),
        ("gemm", "CaskGemmMatrixMultiply"),
        ("cast", "__myl_Cast"),
    ]


def test_every_layer_of_tensorrt_11_that_launches_a_kernel_has_its_kind() -> None:
    assert kinds(recorded("11")) == [
        ("cast", "__myl_Cast"),
        ("convolution", "correlation"),
        ("other", "custom_layer"),  # of TensorRT's own
        ("gemm", "gemm"),
        ("attention", "_gemm_mha_v2"),
        ("plugin", "WindowAttention"),
        ("plugin", "CarrierAttention"),
        ("reduction", "maxpool"),
        ("movement", "memset"),
        ("reformat", "reformat"),
    ]


@pytest.mark.parametrize("version", ["10", "11"])
def test_a_kernel_names_the_nodes_it_computes(version: str) -> None:
    kernels = recorded(version)
    call = f"{ATTENTION}/WindowAttention_0 (WindowAttention)"
    (attention,) = (kernel for kernel in kernels.kernels if kernel.kind is Kind.ATTENTION)
    assert attention.nodes == tuple(f"{node} | {call}" for node in ("MatMul_1", "Softmax_0", "Add_0", "MatMul_0"))
    conv = node_of(kernels, "patch_embed.conv_down.2/Relu_0")
    assert conv.nodes[0] == "patch_embed.conv_down.0/Conv_0"
    assert conv.source is not None and conv.source.startswith("sm")


def test_types_are_read_from_both_fields_of_tensorrt_10() -> None:
    kernels = recorded("10")
    assert types(node_of(kernels, f"{ATTENTION}.qkv/Gemm_0")) == (["fp16", "fp16", "fp32", "fp32", "fp16"], ["fp16"])
    assert types(node_of(kernels, "stages.2.blocks.1.mlp.fc1/QuantizeLinear_0")) == (["fp16"], ["int8"])
    assert types(node_of(kernels, "model/Cast_1")) == (["fp16"], ["fp32"])


def test_types_are_read_from_tensorrt_11() -> None:
    kernels = recorded("11")
    assert types(node_of(kernels, f"{ATTENTION}.qkv/Gemm_0")) == (["fp8", "fp8", "fp32"], ["bf16"])
    assert types(node_of(kernels, "patch_embed.conv_down.0/Conv_0")) == (["bf16", "bf16"], ["bf16"])


@pytest.mark.parametrize("version", ["10", "11"])
def test_weights_are_operands_and_factors_are_not(version: str) -> None:
    qkv = node_of(recorded(version), f"{ATTENTION}.qkv/Gemm_0")
    operands = [tensor for tensor in qkv.inputs if tensor.is_matrix]
    assert [tensor.constant for tensor in operands] == [False, True]
    assert all(not tensor.is_matrix for tensor in qkv.inputs if tensor.type == "fp32")


def test_a_convolution_of_the_library_tells_the_type_of_its_weights() -> None:
    weights, bias = node_of(recorded("10"), "patch_embed.conv_down.0/Conv_0").inputs[1:]
    assert (weights.type, weights.shape, weights.constant, weights.is_matrix) == ("fp16", (64, 27), True, True)
    assert (bias.type, bias.shape, bias.is_matrix) == ("fp16", (64,), False)


def test_a_reformat_belongs_to_the_layer_it_serves() -> None:
    first = recorded("10").kernels[0]
    assert first.kind is Kind.REFORMAT
    assert first.nodes == ("patch_embed.conv_down.0/Conv_0", "patch_embed.conv_down.2/Relu_0")


def test_a_dynamic_batch_hides_types_of_the_library_but_not_of_its_weights() -> None:
    conv = node_of(recorded("10-dynamic"), "patch_embed.conv_down.0/Conv_0")
    assert types(conv) == (["unknown", "fp16", "fp16"], ["unknown"])
    assert conv.outputs[0].shape == (None, 64, 112, 112)


def test_every_profile_has_its_own_kernels() -> None:
    first, second = recorded("10-dynamic"), recorded("10-dynamic", profile=1)
    assert first.launches == second.launches == 5
    assert (first.count(Kind.ATTENTION), first.count(Kind.SOFTMAX)) == (1, 0)
    assert (second.count(Kind.ATTENTION), second.count(Kind.SOFTMAX)) == (0, 1)
    assert not any("profile" in part for k in second.kernels for part in (k.name, *k.nodes, k.outputs[0].name))
    assert second.kernels[0].nodes == first.kernels[0].nodes
    with pytest.raises(FasterViTError, match=r"'engine' has 2 optimisation profiles, so none has number 2"):
        recorded("10-dynamic", profile=2)


def test_names_of_three_letters_are_the_operations_of_four() -> None:
    names = {kernel.name: kernel for kernel in recorded("10-dynamic").kernels}
    norm, split = names["__myl_AddCasMeaSubMulMeaAddSqrDivMulCasMulAdd"], names["__myl_TraSliSliResTraResMovSli"]
    assert (norm.kind, split.kind) == (Kind.NORMALISATION, Kind.MOVEMENT)
    assert norm.operations[:3] == ("Add", "Cast", "Mean")


@pytest.mark.parametrize(("field", "spelling", "type_"), json.loads((RECORDED / "inspector-types.json").read_text()))
def test_every_spelling_of_a_type_is_read(field: str, spelling: str, type_: str) -> None:
    tensor = {"Name": "x", "Location": "Device", "Dimensions": [8, 64], field: spelling}
    assert types(kernel_of({"Inputs": [tensor], "Outputs": [tensor]})) == ([type_], [type_])


def test_names_lose_what_myelin_and_the_profile_add() -> None:
    assert kernel_of({"Name": "__myl_ReshTran_mye91_myl0_7"}).name == "__myl_ReshTran"
    gemm = {"Name": "stages.2.blocks.0.attn.qkv/Gemm_0+stages.2.blocks.0.attn.qkv/Add_0_myl1_3", "LayerType": "gemm"}
    nodes = ("stages.2.blocks.0.attn.qkv/Gemm_0", "stages.2.blocks.0.attn.qkv/Add_0")
    assert kernel_of(gemm).nodes == nodes
    text = json.dumps({"Layers": [gemm, {**gemm, "Name": f"{gemm['Name']} [profile 1]"}]})
    assert kernels_of_inspection(text, "'engine'", 1) == kernels_of_inspection(text, "'engine'", 0)


def test_numbers_of_the_host_are_no_tensors_of_a_kernel() -> None:
    inputs = [
        {"Name": "shape", "Dimensions": [4], "Format/Datatype": "Int64"},
        {"Name": "x", "Format/Datatype": "Half"},
    ]
    assert types(kernel_of({"Inputs": inputs})) == (["fp16"], [])


def test_the_type_comes_before_the_layout() -> None:
    tensor = {
        "Name": "x",
        "Dimensions": [8, 64],
        "Format": "Row major linear FP32 format (kLINEAR)",
        "Datatype": "Half",
    }
    assert types(kernel_of({"Outputs": [tensor]})) == ([], ["fp16"])


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (
            {"Name": "fmha_myl0_1", "LayerType": "gemm", "TacticName": "fmha_v2_flash_attention_fp16_64_32_sm80"},
            "attention",
        ),
        ({"Name": "x_myl0_1", "TacticName": "_gemv_mha_v1_0x12ab"}, "attention"),
        (
            {
                "Name": "stages.2.blocks.0.hat_attn.qkv/MatMul_0_myl0_4",
                "LayerType": "gemm",
                "TacticName": "sm80_xmma_gemm",
            },
            "gemm",
        ),
        ({"Name": "__myl_ReshTran_mye91_myl0_7"}, "movement"),
        ({"Name": "__myl_bb1_2_ReshTran_myl0_7"}, "movement"),
        ({"Name": "__myl_CastCastAddMaxCast_myl0_7"}, "pointwise"),
        ({"Name": "__myl_MulSum_myl0_0", "TacticName": "__myl_MulSum_0xfa6c1858aea1b13b03f90165d7149ec6"}, "reduction"),
        ({"Name": "x_myl0_0", "TacticName": "__myl_Cast_0xfa6c1858aea1b13b03f90165d7149ec6"}, "cast"),
        ({"Name": "x", "LayerType": "CudaSoftMax"}, "softmax"),
        ({"Name": "x", "LayerType": "CaskGemmConvolution"}, "convolution"),
        ({"Name": "x", "LayerType": "FusedConvActConvolution"}, "convolution"),
        ({"Name": "x", "LayerType": "CaskDeconvolutionV2"}, "convolution"),
        ({"Name": "x", "LayerType": "PointWiseV2"}, "pointwise"),
        ({"Name": "x", "LayerType": "ElementWise"}, "pointwise"),
        ({"Name": "x", "LayerType": "Slice"}, "movement"),
        ({"Name": "x", "LayerType": "Normalization"}, "normalisation"),
        ({"Name": "x", "LayerType": "MyelinReformat"}, "reformat"),
        ({"Name": "x", "LayerType": "Reformat", "Origin": "CONCAT"}, "movement"),
        ({"Name": "x", "LayerType": "PluginV2", "PluginType": "InstanceNormalization_TRT"}, "plugin"),
        ({"Name": "x", "LayerType": "SomethingNew"}, "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["Name"] + "-" + value.get("LayerType", ""),
)
def test_kinds_of_other_layers(layer: dict[str, Any], kind: str) -> None:
    assert kernel_of(layer).kind.value == kind


@pytest.mark.parametrize("operator", [operator.onnx_name for operator in OPERATORS])
def test_every_fused_operator_is_known_as_a_plugin_within_myelin(operator: str) -> None:
    layer = {"Name": "x_myl0_1", "LayerType": "custom_layer", "Metadata": f"[ONNX Layer: stages.2/{operator}_0]"}
    assert (kernel_of(layer).kind, kernel_of(layer).name) == (Kind.PLUGIN, operator)
    within = {**layer, "Metadata": f"[ONNX Layer: Add_0 | stages.2/{operator}_0 ({operator})]"}
    assert kernel_of(within).kind is Kind.OTHER


def test_bare_separators_are_read() -> None:
    """Control characters are not JSON within a string, but may stand there."""
    text = (RECORDED / "inspector-10.json").read_text()
    assert "\\u001e" in text
    assert kernels_of_inspection(text.replace("\\u001e", "\x1e"), "'engine'") == recorded("10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Layers": ["a", "b"], "Bindings": []}', "build it again with detailed profiling verbosity"),
        ('{"Layers": []}', "build it again with detailed profiling verbosity"),
        ("Layers:\na", "gave no list of layers, but 'Layers:"),
        ('{"Bindings": []}', "gave no list of layers"),
        ("[]", "gave no list of layers"),
        ('{"Layers": [{"Name": "cbr", "LayerType": "cjmp"}]}', "depends on its input"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(FasterViTError, match=f"^'engine'.*{message}"):
        kernels_of_inspection(text, "'engine'")
