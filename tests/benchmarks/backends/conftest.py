"""Requests for exports of the smallest digits model, real digits, and how far a precision may be off on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends.runner import Request
from fastervit_trt.export.precision import get_float
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models.datasets import open_dataset
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.source import WeightSource, build_model
from tests.conftest import on_one_thread

NAME = "faster_vit_digits_s"
_FP32_BUDGET = 1e-5  # of the largest logit: sums in another order


@dataclass(frozen=True)
class Digits:
    """Eleven held-out digits: no multiple of any batch; and what PyTorch fp32 makes of them."""

    images: np.ndarray  # (11, 3, 224, 224)
    reference: np.ndarray  # (11, 10)
    allowed: dict[str, float]  # error of logits, by precision: twice PyTorch's own, and one rounding of the largest

    def error(self, logits: np.ndarray) -> float:
        assert logits.shape == self.reference.shape
        assert logits.dtype == np.float32
        return float(np.abs(logits - self.reference).max())


@pytest.fixture(scope="package")
@torch.no_grad()
def digits(exports: Path) -> Digits:
    how = get_variant(NAME).preprocessing
    ((images, _),) = islice(open_dataset("digits").batches(11, how, (224, 224)), 1)
    source = WeightSource.from_record(Manifest.read(exports / "fp32").weights)

    def logits(precision: str) -> np.ndarray:
        model = build_model(ModelSpec(NAME), source)[0]
        return np.asarray(TypedModel(model, get_float(precision))(torch.from_numpy(images)))

    with on_one_thread():
        found = {precision: logits(precision) for precision in ("fp32", "fp16", "bf16")}
    reference = found["fp32"]
    largest = float(np.abs(reference).max())
    allowed = {"fp32": _FP32_BUDGET * largest}
    for precision in ("fp16", "bf16"):
        own = float(np.abs(found[precision] - reference).max())
        allowed[precision] = 2 * own + get_float(precision).rounding * largest
    return Digits(images, reference, allowed)


@pytest.fixture
def ask(exports: Path) -> Callable[..., Request]:
    """``ask("fp32", streams=2)``: batches of 4 on two threads, unless said otherwise."""

    def request(export: str, **options: Any) -> Request:
        folder = exports / export
        return Request(folder, Manifest.read(folder), **{"batch": 4, "threads": 2, **options})

    return request
