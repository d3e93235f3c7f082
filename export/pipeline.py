"""The export stage as one function: a model and its choices in, a verified ``model.onnx`` with its facts out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import DeployReport, Fuse, deploy_form
from fastervit_trt.export.fusion import FusionReport
from fastervit_trt.export.onnx_graph import OUTPUT, onnx_from_torch, save_onnx
from fastervit_trt.export.precision import Precision, TypedModel
from fastervit_trt.export.verify import Verification, expect, verify_onnx
from fastervit_trt.models.fastervit import FasterViTBackbone, Trunk

__all__ = ["ExportedGraph", "export_graph"]

Step = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class ExportedGraph:
    """The files of a verified ONNX graph and the evidence about it."""

    files: tuple[Path, ...]
    opset: int
    fusion: FusionReport
    outputs: dict[str, list[int]]  # name → shape without the batch
    deploy: DeployReport
    verification: Verification

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"opset": self.opset, "fusion": asdict(self.fusion), "deploy": asdict(self.deploy)}


def export_graph(
    load: Callable[[], Trunk],
    precision: Precision,
    batch: BatchRange,
    folder: Path,
    step: Step = lambda description: nullcontext(),
    *,
    fuse: Fuse = "window-attention",
    pad_heads_to: int | None = None,
    inline: bool = False,
) -> ExportedGraph:
    """Write ``folder/model.onnx`` in ``precision`` and verify the written file.

    Args:
        load: makes the model (fp32, eval); called once, so that the model can be let go as soon as it is not needed:
            with a billion parameters, the models and the running graph do not fit into memory together.
        step: wraps each long step, for progress.
        fuse: what becomes one operator in every window, as in :func:`deploy_form`.
        pad_heads_to: pad head dims to a multiple of this, as in :func:`deploy_form`.
        inline: write a flat graph without fused operators, as :func:`onnx_from_torch` does.

    Raises:
        FasterViTError: export or verification failed; ``folder`` may then hold an unverified file.
    """
    with step("loading the model"):
        model = load()
    shape = (model.config.in_chans, *model.config.resolution)
    names = [f"stage{i}" for i in model.out_indices] if isinstance(model, FasterViTBackbone) else [OUTPUT]
    with step("deploy form"):
        deployed, report = deploy_form(model, fuse=fuse, pad_heads_to=pad_heads_to)
        typed = TypedModel(deployed, precision)
    with step("reference outputs from PyTorch"):
        expectation = expect(model, typed, batch, shape)
    del model, deployed
    with step(f"tracing to ONNX, {precision.name}"):
        graph = onnx_from_torch(typed, shape, batch, names, inline=inline)
    del typed
    with step("writing the graph"):
        fusion = FusionReport.of(graph)
        files = save_onnx(graph, folder)
    del graph
    with step("verifying with ONNX Runtime"):
        verification = verify_onnx(files[0], expectation)
    outputs = {name: list(o.shape[1:]) for name, o in zip(names, expectation.outputs[0], strict=True)}
    return ExportedGraph(tuple(files), precision.opset, fusion, outputs, report, verification)
