"""The export stage as one function: a model and its choices in, a verified ``model.onnx`` with its facts out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import DeployReport, Fuse, deploy_form
from fastervit_trt.export.fusion import FusionReport
from fastervit_trt.export.golden import Golden
from fastervit_trt.export.graph import OUTPUT, save_onnx
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import Precision, Quantised
from fastervit_trt.export.quantisation.plan import plan_precision
from fastervit_trt.export.quantisation.qdq import QuantisationReport
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.typed_model import typed_model
from fastervit_trt.export.verify import Expectation, Verification, expect, expect_quantised, verify_onnx
from fastervit_trt.models.fastervit import FasterViTBackbone, Trunk
from fastervit_trt.models.tasks.heads import OUTPUTS, Task

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.model import TaskModel

__all__ = ["Decide", "ExportedGraph", "export_graph"]

Step = Callable[[str], AbstractContextManager[Any]]
# A deploy form in fp32 and a precision that leaves something open in, the precision and its ranges out.
Decide = Callable[[nn.Module, Quantised], tuple[Quantised, Ranges]]


@dataclass(frozen=True)
class ExportedGraph:
    """The files of a verified ONNX graph and the evidence about it.

    Attributes:
        files: the graph first.
        golden: the record of what it was verified with, for :class:`Golden`.
    """

    files: tuple[Path, ...]
    opset: int
    fusion: FusionReport
    outputs: dict[str, list[int]]  # name → shape without the batch
    deploy: DeployReport
    quantisation: QuantisationReport | None
    verification: Verification
    golden: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        quantisation = None if self.quantisation is None else asdict(self.quantisation)
        facts = {"opset": self.opset, "fusion": asdict(self.fusion), "deploy": asdict(self.deploy)}
        return {**facts, "quantisation": quantisation}


def export_graph(
    load: Callable[[], Trunk | TaskModel],
    precision: Precision,
    batch: BatchRange,
    folder: Path,
    step: Step = lambda description: nullcontext(),
    *,
    fuse: Fuse = "window-attention",
    pad_heads_to: int | None = None,
    inline: bool = False,
    decide: Decide | None = None,
) -> ExportedGraph:
    """Write ``folder/model.onnx`` in ``precision`` and verify the written file.

    Args:
        load: makes the model (fp32, eval); called once, so that the model can be let go as soon as it is not needed:
            with a billion parameters, the models and the running graph do not fit into memory together.
        step: wraps each long step, for progress.
        fuse: what becomes one operator in every window, as in :func:`deploy_form`.
        pad_heads_to: pad head dims to a multiple of this, as in :func:`deploy_form`.
        inline: write a flat graph without fused operators, as :func:`onnx_from_torch` does.
        decide: says what to quantise in which ranges, given the deploy form; asked if ``precision`` is quantised.

    Raises:
        FasterViTError: export or verification failed; ``folder`` may then hold an unverified file.
    """
    with step("loading the model"):
        model = load()
    shape = (model.config.in_chans, *model.config.resolution)
    names = _output_names(model)
    with step("deploy form"):
        deployed, report = deploy_form(model, fuse=fuse, pad_heads_to=pad_heads_to)
    ranges = None
    if decide is not None and isinstance(precision, Quantised):
        precision, ranges = decide(deployed, precision)
    plan = plan_precision(precision, deployed, ranges)
    with step("reference outputs from PyTorch"):
        if plan.report is not None:
            expectation, typed = expect_quantised(model, deployed, plan, batch, shape)
        else:
            typed = typed_model(deployed, plan.base)
            expectation = expect(model, typed, batch, shape)
    del model, deployed
    with step(f"tracing to ONNX, {precision.name}"):
        graph = onnx_from_torch(typed, shape, batch, names, inline=inline, rewrite=plan.rewrite)
    del typed
    with step("writing the graph"):
        fusion = FusionReport.of(graph)
        files = save_onnx(graph, folder)
    del graph
    with step("verifying with ONNX Runtime"):
        verification = verify_onnx(files[0], expectation)
    golden = _golden(names, expectation)
    outputs = {name: list(array.shape[1:]) for name, array in golden.outputs.items()}
    golden_files, record = golden.write(folder)
    return ExportedGraph(
        (*files, *golden_files), plan.base.opset, fusion, outputs, report, plan.report, verification, record
    )


def _output_names(model: nn.Module) -> list[str]:
    task: Task | None = getattr(model, "task", None)
    if task is not None:
        return list(OUTPUTS[task])
    return [f"stage{i}" for i in model.out_indices] if isinstance(model, FasterViTBackbone) else [OUTPUT]


def _golden(names: list[str], expectation: Expectation) -> Golden:
    decisions = expectation.decisions
    if decisions is None:
        return Golden.of(names, expectation.kinds, expectation.images, expectation.outputs, expectation.budgets())
    images = np.stack([batch[0] for batch in expectation.images])
    outputs = dict(zip(names, decisions.outputs, strict=True))
    return Golden(expectation.kinds, images, outputs, decisions.budgets)
