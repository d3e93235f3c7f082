"""Scales are rounded once, upwards: nothing is clipped for a rounding, and no weight errs by more than half a step."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from fastervit_trt.export.precision import Fp8, Fp16, Fp32, Int8, Quantised
from fastervit_trt.export.quantisation.scales import activation_scale, quantised_weights, weight_scales

PRECISIONS: list[Quantised] = [kind(base=base) for kind in (Int8, Fp8) for base in (Fp16(), Fp32())]
SMALLEST_FP16 = 2.0**-24


def name(precision: Quantised) -> str:
    return f"{precision.name}-{precision.base.name}"


def weights(*shape: int, size: float = 0.05) -> torch.Tensor:
    """Channels of sizes that differ by a factor of a hundred, as after folding BatchNorm."""
    rng = np.random.default_rng(0)
    channels = np.geomspace(0.1, 10, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.from_numpy((rng.standard_normal(shape) * channels * size).astype(np.float32))


def steps(weight: torch.Tensor, axis: int, precision: Quantised) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights in steps as float64, what they stand for)."""
    scales = weight_scales(weight, axis, precision)
    in_steps = quantised_weights(weight, axis, scales, precision)
    assert in_steps.dtype is precision.dtype
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return in_steps.double(), in_steps.double() * scales.double().reshape(shape)


@pytest.mark.parametrize("precision", PRECISIONS, ids=name)
def test_a_range_is_never_clipped_for_the_rounding_of_its_scale(precision: Quantised) -> None:
    """From subnormal scales to the largest activations of float16; up by no more than three roundings."""
    for largest in np.geomspace(1e-7, 6e4, 2000):
        scale = activation_scale(float(largest), precision)
        assert scale.dtype is precision.base.dtype
        exact = float(largest) / precision.largest
        assert exact <= float(scale.double()) <= exact * (1 + 3.01 * precision.base.rounding) + 1.5 * SMALLEST_FP16


@pytest.mark.parametrize("precision", PRECISIONS, ids=name)
def test_scales_that_the_type_has_stay_what_they_are(precision: Quantised) -> None:
    for scale in (2.0**-10, 0.25, 1.0, 3.0):
        assert float(activation_scale(scale * precision.largest, precision)) == scale


@pytest.mark.parametrize("precision", PRECISIONS, ids=name)
def test_nothing_can_be_divided_by_zero(precision: Quantised) -> None:
    assert float(activation_scale(0.0, precision)) > 0
    weight = weights(8, 16)
    weight[3] = 0
    scales = weight_scales(weight, 0, precision)
    assert float(scales.min()) > 0
    in_steps, meant = steps(weight, 0, precision)
    assert not in_steps[3].any()
    assert torch.isfinite(meant).all()


@pytest.mark.parametrize(("shape", "axis"), [((8, 16), 0), ((8, 16), 1), ((8, 4, 3, 3), 0)])
@pytest.mark.parametrize("precision", PRECISIONS, ids=name)
def test_every_output_channel_has_its_own_scale(precision: Quantised, shape: tuple[int, ...], axis: int) -> None:
    weight = weights(*shape)
    scales = weight_scales(weight, axis, precision).double()
    largest = np.abs(np.moveaxis(weight.double().numpy(), axis, 0)).reshape(shape[axis], -1).max(1)
    assert scales.shape == (shape[axis],)
    atol = 1.5 * float(torch.finfo(precision.base.dtype).smallest_normal) * float(torch.finfo(precision.base.dtype).eps)
    exact, rounding = largest / precision.largest, precision.base.rounding
    np.testing.assert_allclose(scales.numpy(), exact, rtol=3.01 * rounding, atol=atol)
    assert (scales.numpy() >= exact).all()
    # each channel uses the whole grid: its largest weight is the last step, or the one before where scales rounded up
    filled = np.moveaxis(steps(weight, axis, precision)[0].abs().numpy(), axis, 0).reshape(shape[axis], -1).max(1)
    assert filled.min() >= precision.largest * (1 - 2.0**-4 if precision.name == "fp8" else 1 - 1 / 127)


@pytest.mark.parametrize("size", [0.05, 1e-6, 1e-9], ids=["usual", "LayerScale of 1e-6 folded in", "below float16"])
@pytest.mark.parametrize("base", [Fp16(), Fp32()], ids=["fp16", "fp32"])
def test_int8_weights_err_by_half_a_step(base: Fp16 | Fp32, size: float) -> None:
    precision, weight = Int8(base=base), weights(8, 32, size=size)
    scales = weight_scales(weight, 0, precision).double()
    in_steps, meant = steps(weight, 0, precision)
    assert float(in_steps.abs().max()) <= 127
    assert bool(((meant - weight.double()).abs() <= scales[:, None] * (0.5 + 1e-12)).all())
    if base == Fp32():  # its scales reach so far down that small weights lose nothing against large ones
        assert float(((meant - weight.double()).abs().amax(1) / weight.double().abs().amax(1)).max()) <= 0.5 / 126


@pytest.mark.parametrize("base", [Fp16(), Fp32()], ids=["fp16", "fp32"])
def test_fp8_weights_are_the_nearest_of_the_type(base: Fp16 | Fp32) -> None:
    precision, weight = Fp8(base=base), weights(8, 32)
    scales = weight_scales(weight, 0, precision)
    in_steps, meant = steps(weight, 0, precision)
    ratio = (weight.double() / scales.double()[:, None]).numpy()
    assert np.array_equal(in_steps.numpy(), ratio.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64))
    # half a unit of three bits of mantissa, or half the smallest step, 2^-9
    bound = np.maximum(np.abs(weight.numpy()) * 2.0**-4, scales.double()[:, None].numpy() * 2.0**-10)
    assert (np.abs(meant.numpy() - weight.numpy()) <= bound * (1 + 1e-6)).all()
