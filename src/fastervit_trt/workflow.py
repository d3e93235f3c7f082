"""The whole way from weights to an export folder: model → verified ONNX → engines → manifest."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from fastervit_trt.artifacts import Manifest, file_entry, new_file, new_folder, write_csv
from fastervit_trt.building import EngineResult, Graph, make_engine
from fastervit_trt.calibrating import CalibrationRequest, ranges_provider
from fastervit_trt.console import step
from fastervit_trt.engine_choice import EngineChoice
from fastervit_trt.engines.signing import sign_record
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange, Outputs, run_padded
from fastervit_trt.export.deploy import get_fuse
from fastervit_trt.export.graph import INPUT
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.pipeline import ExportedGraph, export_graph
from fastervit_trt.export.precision import Precision, Quantised
from fastervit_trt.export.quantisation.assignment import Assignment
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.host import release_memory, versions
from fastervit_trt.judging import Judgement, check_classes, check_gate, judge
from fastervit_trt.metering import Data, open_data
from fastervit_trt.mixing import MixedRequest, search_assignment
from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.fastervit import Trunk
from fastervit_trt.models.source import WeightSource, build_model, resolve_source, save_model

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.model import TaskModel

__all__ = ["ExportRequest", "export_model"]

_NVIDIA_NOTICE = (
    "NVIDIA publishes its FasterViT weights under the NVIDIA Source Code License-NC (research and evaluation only); "
    "an export of them carries that licence"
)


@dataclass(frozen=True)
class ExportRequest:
    """One export, as asked for on the command line."""

    model: ModelSpec
    weights: WeightSource
    precision: Precision
    batch: BatchRange
    engines: EngineChoice
    output: Path
    fuse: str = "window-attention"  # what becomes one operator in every window
    pad_heads_to: int | None = None  # multiple of head dims
    inline: bool = False  # a flat graph without fused operators
    calibration: CalibrationRequest = field(default_factory=CalibrationRequest)
    validation: str | None = None  # what judges the written graph: "digits", "scenes" or a folder
    max_accuracy_drop: float | None = None  # percentage points
    mixed: MixedRequest | None = None
    save_checkpoint: Path | None = None  # write the weights as loaded to this .safetensors file, too
    overwrite: bool = False


def export_model(request: ExportRequest) -> Manifest:
    """Write the export folder of ``request``, whole or not at all.

    Raises:
        FasterViTError: anything the user can act on; nothing is left behind.
    """
    fuse = get_fuse(request.fuse)
    validation = _check(request)
    spec, config = request.model, request.model.config()
    tolerated: list[str] = []
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(request.output, overwrite=request.overwrite))
        saved = request.save_checkpoint and stack.enter_context(
            new_file(request.save_checkpoint, overwrite=request.overwrite)
        )
        weights = resolve_source(request.weights)

        def load() -> Trunk | TaskModel:
            model, notes = build_model(spec, weights)
            tolerated.extend(notes)
            if saved:
                save_model(model, saved)
            return model

        decision = _Decision(request, weights, validation)
        graph = export_graph(
            load,
            request.precision,
            request.batch,
            folder,
            step,
            fuse=fuse,
            pad_heads_to=request.pad_heads_to,
            inline=request.inline,
            decide=decision,
        )
        release_memory()  # the builder runs beside this process
        judgement = None if validation is None else _judge(request, weights, graph.files[0], validation)
        release_memory()
        tables = decision.write_tables(folder)
        built = _build(request, graph, folder, config)
        written = (*graph.files, *tables, *(path for result in built for path in result.files))
        files = {path.name: file_entry(path) for path in written}
        manifest = Manifest(
            model=spec.name,
            task=spec.chosen_task,
            spec=spec.record(),
            num_classes=config.num_classes,
            resolution=config.resolution,
            precision="mixed" if request.mixed else request.precision.name,
            batch=str(request.batch),
            input={"name": INPUT, "dtype": "float32", "shape": ["batch", config.in_chans, *config.resolution]},
            outputs=[{"name": n, "dtype": "float32", "shape": ["batch", *s]} for n, s in graph.outputs.items()],
            preprocessing=asdict(spec.preprocessing),
            weights={**weights.record(), "tolerated": tolerated},
            graph=graph.facts(),
            verification=asdict(graph.verification),
            golden=graph.golden,
            accuracy=None if judgement is None else judgement.record(),
            engines=[sign_record(result.record, files) for result in built],
            engines_skipped=request.engines.skipped,
            files=files,
            versions=versions(),
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            notices=[_NVIDIA_NOTICE] if weights.kind in ("checkpoint", "official") else [],
        )
        manifest.write(folder)
    decision.forget()
    return manifest


def _check(request: ExportRequest) -> Data | None:
    """Refuse what cannot succeed before anything is computed; the validation data, if there are any."""
    request.engines.check_precision(request.precision)
    if isinstance(request.precision, Quantised):
        request.calibration.check()
    if request.mixed is not None:
        request.mixed.check()
    if request.validation is None:
        if request.max_accuracy_drop is not None or request.mixed is not None:
            raise FasterViTError(
                "accuracy needs labelled images to judge it: give --validation-data DIR (or 'digits', 'scenes')"
            )
        return None
    if request.model.out_indices is not None:
        raise FasterViTError("a backbone has no classes to judge; leave out --validation-data")
    data = open_data(request.model.chosen_task, request.validation)
    check_classes(data, request.model.config())
    return data


class _Decision:
    """What of a deploy form is quantised, in which ranges; remembers the tables of a search."""

    def __init__(self, request: ExportRequest, weights: WeightSource, validation: Data | None) -> None:
        self._request, self._validation = request, validation
        self._ranges: Ranges | None = None
        self._assignment: Assignment | None = None
        deploy = f"fuse={request.fuse}, pad_heads_to={request.pad_heads_to}"
        self._provide = ranges_provider(request.calibration, request.model, weights, deploy)

    def __call__(self, deployed: nn.Module, precision: Quantised) -> tuple[Quantised, Ranges]:
        self._ranges = ranges = self._provide(deployed)
        if self._request.mixed is None:
            return precision, ranges
        assert self._validation is not None
        spec = self._request.model
        how, config = spec.preprocessing, spec.config()
        self._assignment = search_assignment(
            self._request.mixed, deployed, precision, ranges, self._validation, how, config
        )
        return self._assignment.precision, ranges

    def write_tables(self, folder: Path) -> list[Path]:
        """The ranges, and what the search saw, beside the graph."""
        if self._ranges is None:
            return []
        self._ranges.write(folder / "ranges.json")
        if self._assignment is None:
            return [folder / "ranges.json"]
        write_csv(self._assignment.rows, folder / "sensitivity.csv")
        write_csv(self._assignment.candidates, folder / "assignments.csv")
        return [folder / name for name in ("ranges.json", "sensitivity.csv", "assignments.csv")]

    def forget(self) -> None:
        """Remove the record of a search that has led to an export."""
        if self._request.mixed is not None and self._request.mixed.record is not None:
            self._request.mixed.record.unlink(missing_ok=True)


def _judge(request: ExportRequest, weights: WeightSource, path: Path, data: Data) -> Judgement:
    """Accuracy of the written file.

    Raises:
        FasterViTError: it lost more than is allowed.
    """
    model, _ = build_model(request.model, weights)
    session = OnnxCpuSession(path)

    def artifact(images: np.ndarray) -> Outputs:
        return run_padded(session, request.batch, images)

    judgement = judge(artifact, model, data, request.model.preprocessing, request.model.config())
    allowed = request.max_accuracy_drop
    if allowed is None and request.mixed is not None:
        allowed = request.mixed.budget_points
    if allowed is not None:
        check_gate(judgement, allowed, request.precision.name)
    return judgement


def _build(request: ExportRequest, graph: ExportedGraph, folder: Path, config: FasterViTConfig) -> list[EngineResult]:
    source = Graph(
        onnx=graph.files[0],
        precision="mixed" if request.mixed else request.precision.name,
        input_name=INPUT,
        image_shape=(config.in_chans, *config.resolution),
        batch=request.batch,
        outputs=tuple(graph.outputs),
        quantised=graph.quantisation is not None,
    )
    return [make_engine(source, engine, folder) for engine in request.engines.requests]
