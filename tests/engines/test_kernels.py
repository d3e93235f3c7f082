"""What a kernel is for is told from the names that TensorRT's compiler gives: real ones, of FasterViT's plans."""

from __future__ import annotations

import re

import pytest

from fastervit_trt.engines.kernels import EngineKernels, Kernel, KernelTensor, Kind, kind_of_generated

CAST = Kernel(Kind.CAST, "__myl_Cast", "__myl_Cast_0x1a", ("Cast",), ("model/Cast_0",))
GEMM = Kernel(Kind.GEMM, "fully_connected", None, ("Fc",), ("head/Gemm_0",))
FUSED = Kernel(Kind.GEMM, "__myl_FcAdd", "__myl_FcAdd_0x2b", ("Fc", "Add"), ())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_gemm_mha_v2", Kind.ATTENTION),
        ("__myl_FcAddAddDivErfAddMulMul", Kind.GEMM),
        ("__myl_CastMulCastFc", Kind.GEMM),
        ("__myl_CorrDivErfAddMulMul", Kind.CONVOLUTION),
        ("__myl_DeconvAdd", Kind.CONVOLUTION),
        ("__myl_AddAddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd", Kind.NORMALISATION),
        ("__myl_TranReshTranReshTranMoveReshTranReshConcAddSlicSqrtEtc", Kind.NORMALISATION),
        ("__myl_AddMaxrSubExpSumDivMul", Kind.SOFTMAX),
        ("__myl_SlicReshAddMaxrSubExpSumDiv", Kind.SOFTMAX),
        ("__myl_MulSum", Kind.REDUCTION),
        ("__myl_MulAddAddReshTranReshTranReshMean", Kind.REDUCTION),
        ("__myl_ReshTranSlicSlicTranSlic", Kind.MOVEMENT),
        ("__myl_MulAddReshTranSlicSlicTranSlic", Kind.MOVEMENT),
        ("__myl_MoveReplConc", Kind.MOVEMENT),
        ("__myl_Move", Kind.MOVEMENT),
        ("__myl_CastMove", Kind.MOVEMENT),
        ("__myl_Cast", Kind.CAST),
        ("__myl_CastCast", Kind.CAST),
        ("__myl_MulMinMaxRounCast", Kind.POINTWISE),
        ("__myl_CastMulCast", Kind.POINTWISE),
        ("__myl_MulAddDivCastErfCastAddMulMulMulMinMaxRounCast", Kind.POINTWISE),
    ],
)
def test_kinds_of_generated_kernels(name: str, kind: Kind) -> None:
    operations = tuple(re.findall("[A-Z][a-z0-9]*", name.removesuffix("Etc")))
    assert kind_of_generated(name, operations) is kind


@pytest.mark.parametrize(
    ("shape", "constant", "matrix"),
    [
        ((None, 64), False, True),
        ((1, 64), False, True),  # activations of one row
        ((64,), False, False),
        ((64, 192), True, True),
        ((4, 4, 3, 3), True, True),
        ((16, 1, 3, 3), True, True),  # of a grouped convolution
        ((1, 64), True, False),  # a bias
        ((1, 64, 1, 1), True, False),  # a scale per channel
        ((1,), True, False),
        ((), True, False),
    ],
)
def test_what_can_be_an_operand_of_a_product(shape: tuple[int | None, ...], constant: bool, matrix: bool) -> None:
    assert KernelTensor("x", "fp16", shape, constant).is_matrix is matrix


def test_launches_are_counted_by_kind_by_name_and_by_source() -> None:
    kernels = EngineKernels((CAST, GEMM, FUSED, GEMM, CAST), ("sm89",))
    assert (kernels.launches, kernels.generated, kernels.distinct_generated) == (5, 3, 2)
    assert (kernels.count(Kind.GEMM), kernels.count(Kind.CAST), kernels.count(Kind.PLUGIN)) == (3, 2, 0)
    assert kernels.names(Kind.GEMM) == {"fully_connected": 2, "__myl_FcAdd": 1}
