"""The export stage as one function: a model and its choices in, a verified ``model.onnx`` with its facts out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import DeployReport, deploy_form
from fastervit_trt.export.onnx_graph import INPUT, OUTPUT, onnx_from_torch, save_onnx
from fastervit_trt.export.precision import Precision, TypedModel
from fastervit_trt.export.verify import Verification, verify_onnx
from fastervit_trt.models.fastervit import FasterViT

__all__ = ["ExportedGraph", "export_graph"]

Step = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class ExportedGraph:
    """The files of a verified ONNX graph and the evidence about it."""

    files: tuple[Path, ...]
    opset: int
    nodes: int
    deploy: DeployReport
    verification: Verification

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "opset": self.opset,
            "nodes": self.nodes,
            "input": INPUT,
            "output": OUTPUT,
            "deploy": asdict(self.deploy),
        }


def export_graph(
    model: FasterViT,
    precision: Precision,
    batch: BatchRange,
    folder: Path,
    step: Step = lambda description: nullcontext(),
) -> ExportedGraph:
    """Write ``folder/model.onnx`` for ``model`` (fp32, eval) in ``precision`` and verify the written file.

    Args:
        step: wraps each long step, for progress.

    Raises:
        FasterViTError: export or verification failed; ``folder`` may then hold an unverified file.
    """
    config = model.config
    with step("deploy form"):
        deployed, report = deploy_form(model)
        typed = TypedModel(deployed, precision)
    with step(f"tracing to ONNX, {precision.name}"):
        graph = onnx_from_torch(typed, config.resolution, config.in_chans, batch)
        nodes = len(graph.graph)
        files = save_onnx(graph, folder)
        del graph
    with step("verifying with ONNX Runtime"):
        shape = (config.in_chans, *config.resolution)
        verification = verify_onnx(files[0], model, typed, batch, shape)
    return ExportedGraph(tuple(files), precision.opset, nodes, report, verification)
