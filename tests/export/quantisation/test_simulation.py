"""The graph computes what PyTorch does while it is simulated, and the model is as before afterwards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import Fp32, Int8, Quantised
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.simulation import simulated
from tests.export.quantisation.conftest import HeldOut, QuantisedExports
from tests.export.quantisation.graphs import FORMS


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_computes_what_the_simulation_does(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    digits_ranges: Ranges,
    held_out: HeldOut,
    form: str,
) -> None:
    export, images = quantised_exports(FORMS[form]), held_out.images[0][0]
    assert export.verification.batches == (1, 2, 3)
    assert export.verification.share_of_budget <= 1
    with torch.inference_mode(), simulated(digits_s, FORMS[form], digits_ranges):
        expected = digits_s(torch.from_numpy(images[:12])).numpy()
    bounds = np.cumsum([0, 1, 3, 8])
    session = OnnxCpuSession(export.files[0])
    found = np.concatenate([session(images[a:b])[0] for a, b in itertools.pairwise(bounds)])
    assert np.abs(found - expected).max() <= export.verification.budget
    # the budget is small enough to mean something
    assert export.verification.budget < {"int8": 0.1, "fp8": 0.2}[FORMS[form].name] * np.abs(expected).max()


@pytest.mark.parametrize(
    "precision", [Int8(base=Fp32()), Int8(base=Fp32(), attention=True)], ids=["plain", "attention"]
)
def test_around_float32_most_images_agree_to_the_last_digits(
    quantised_exports: QuantisedExports,
    digits_s: nn.Module,
    digits_ranges: Ranges,
    held_out: HeldOut,
    precision: Quantised,
) -> None:
    """Where no value falls between two steps, graph and simulation differ by float32's own rounding alone."""
    images = held_out.images[0][0][:24]
    session = OnnxCpuSession(quantised_exports(precision).files[0])
    found = np.concatenate([session(images[i : i + 8])[0] for i in range(0, 24, 8)])
    with torch.inference_mode():
        exact = digits_s(torch.from_numpy(images)).numpy()
        with simulated(digits_s, precision, digits_ranges):
            expected = digits_s(torch.from_numpy(images)).numpy()
    assert np.median(np.abs(found - expected).max(1)) < 1e-5
    assert np.median(np.abs(exact - expected).max(1)) > 1e-2


def test_the_simulation_leaves_the_model_as_it_was(
    digits_s: nn.Module, digits_ranges: Ranges, held_out: HeldOut
) -> None:
    images = torch.from_numpy(held_out.images[0][0][:2])
    with torch.inference_mode():
        before = digits_s(images)
        for form in ("int8, all", "fp8"):
            with simulated(digits_s, FORMS[form], digits_ranges):
                assert not torch.equal(digits_s(images), before)
            assert torch.equal(digits_s(images), before)
