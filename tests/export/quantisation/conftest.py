"""One thread for all of this folder, and a trained model with its ranges."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from fastervit_trt.export import pipeline
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.onnx_graph import _name_nodes, onnx_from_torch
from fastervit_trt.export.pipeline import ExportedGraph, export_graph
from fastervit_trt.export.precision import Precision
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.ranges import CalibrationKey, Ranges
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.metering import Data, Meter, meter, numbered_batches
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import open_calibration_images, open_dataset
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.source import build_model, pretrained_source
from tests.conftest import on_one_thread

pytest.register_assert_rewrite("tests.export.quantisation.graphs")

NAME, SHAPE = "faster_vit_digits_s", (3, 224, 224)
Rewrite = Callable[[ir.Model], None]


@pytest.fixture(scope="module", autouse=True)
def _quick(module_on_one_thread: None) -> None:
    """Tensors are small here."""


@pytest.fixture(scope="package")
def digits_s() -> nn.Module:
    """The smallest digits model in deploy form, fp32."""
    return deploy_form(build_model(ModelSpec(NAME), pretrained_source(NAME))[0])[0]


@pytest.fixture(scope="package")
def digits_ranges(digits_s: nn.Module) -> Ranges:
    """Its ranges on 64 training images."""
    how, key = get_variant(NAME).preprocessing, CalibrationKey("", "", "", "", "", 64)
    with on_one_thread():  # a fixture of the package is made before those of the module
        return calibrate(digits_s, open_calibration_images("digits", 64).batches(32, how, SHAPE[1:]), key)


class HeldOut:
    """Data, its first images in two batches with their numbers, and what judges outputs for them."""

    def __init__(self, data: Data, how: Preprocessing, resolution: tuple[int, int], size: int) -> None:
        self.data = data
        self.images = list(islice(numbered_batches(data, size, how, resolution), 2))

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return self.images

    def meter(self) -> Meter:
        return meter(self.data)


@pytest.fixture(scope="package")
def held_out() -> HeldOut:
    """64 held-out digits."""
    return HeldOut(open_dataset("digits"), get_variant(NAME).preprocessing, (SHAPE[1], SHAPE[2]), 32)


class QuantisedExports:
    """Exports of the smallest digits model for batches 1:4:8, each made and verified when it is first asked for.

    Tracing takes nearly all of the time and depends on the base type alone: it is done once for each.
    """

    def __init__(self, ranges: Ranges, root: Path) -> None:
        self.ranges, self.root = ranges, root
        self.traced: dict[str, ir.Model] = {}
        self._numbers = count()
        self._made = cache(self.make)

    def __call__(self, precision: Precision) -> ExportedGraph:
        return self._made(precision)

    def make(self, precision: Precision, ranges: Ranges | None = None) -> ExportedGraph:
        """A new export, with other ranges if given."""
        folder = self.root / str(next(self._numbers))
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "onnx_from_torch", self._from_torch)
            return export_graph(
                lambda: build_model(ModelSpec(NAME), pretrained_source(NAME))[0],
                precision,
                BatchRange(1, 4, 8),
                folder,
                decide=lambda deployed, precision: (precision, ranges or self.ranges),
            )

    def _from_torch(self, model: TypedModel, *where: Any, rewrite: Rewrite, **options: Any) -> ir.Model:
        name = model.precision.name
        if name in self.traced:
            graph = self.traced[name].clone()
            rewrite(graph)
            _name_nodes(graph)
            return graph

        def kept_and_rewritten(graph: ir.Model) -> None:
            self.traced[name] = graph.clone()
            rewrite(graph)

        return onnx_from_torch(model, *where, rewrite=kept_and_rewritten, **options)


@pytest.fixture(scope="package")
def quantised_exports(digits_ranges: Ranges, tmp_path_factory: pytest.TempPathFactory) -> QuantisedExports:
    """``quantised_exports(Int8(attention=True))``: the verified export in a precision."""
    return QuantisedExports(digits_ranges, tmp_path_factory.mktemp("quantised"))
