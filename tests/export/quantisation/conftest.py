"""One thread for all of this folder, and a trained model with its ranges."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import nn

from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.ranges import CalibrationKey, Ranges
from fastervit_trt.export.quantisation.sensitivity import Labelled
from fastervit_trt.models.datasets import open_calibration_images, open_dataset
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.source import build_model, pretrained_source

NAME = "faster_vit_digits_s"


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Tensors are small: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def digits_s() -> nn.Module:
    """The smallest digits model in deploy form, fp32."""
    return deploy_form(build_model(ModelSpec(NAME), pretrained_source(NAME))[0])[0]


@pytest.fixture(scope="package")
def digits_ranges(digits_s: nn.Module) -> Ranges:
    """Its ranges on 64 training images."""
    how, key = get_variant(NAME).preprocessing, CalibrationKey("", "", "", "", "", 64)
    return calibrate(digits_s, open_calibration_images("digits", 64).batches(32, how, (224, 224)), key)


@pytest.fixture(scope="package")
def held_out() -> list[Labelled]:
    """64 held-out digits with labels, in two batches."""
    return list(islice(open_dataset("digits").batches(32, get_variant(NAME).preprocessing, (224, 224)), 2))
