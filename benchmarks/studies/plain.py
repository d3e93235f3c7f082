"""A model without this project, for comparison: fresh weights, and PyTorch's exporter on the training form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import INPUT, OUTPUT
from fastervit_trt.export.onnx_graph import export_failure, quiet_exporter
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.fastervit import Trunk
from fastervit_trt.models.source import WeightSource, build_model

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.model import TaskModel

__all__ = ["plain_export", "random_model", "random_of"]


def random_model(name: str) -> Trunk:
    """The classifier ``name``, as :func:`random_of`.

    Raises:
        FasterViTError: unknown variant.
    """
    model = random_of(ModelSpec(name))
    assert isinstance(model, Trunk)
    return model


@torch.no_grad()
def random_of(spec: ModelSpec) -> Trunk | TaskModel:
    """A model with random weights, biases among them: fresh ones are zero, and exporters drop zeros.

    Raises:
        FasterViTError: an impossible spec, or transformers is not installed and it needs that.
    """
    model = build_model(spec, WeightSource.random())[0]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    if not isinstance(model, Trunk):
        _enliven(model, generator)
    return model


def _enliven(model: TaskModel, generator: torch.Generator) -> None:
    """transformers starts linear layers of heads so near to zero that the image hardly shows in what they yield."""
    from fastervit_trt.models.tasks.settling import settle_norms

    backbone = set(model.backbone.modules())
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in backbone:
            module.weight.normal_(std=module.in_features**-0.5, generator=generator)  # as large as what goes in
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settle_norms(model)


def plain_export(model: nn.Module, input_shape: tuple[int, int, int], batch: int | None, **options: Any) -> ir.Model:
    """What ``torch.onnx.export`` makes of ``model`` as it is.

    Args:
        batch: None: dynamic.

    Raises:
        FasterViTError: it cannot.
    """
    # 0 and 1 would be specialised by the tracer, so a dynamic batch is traced with 2.
    example = torch.zeros(batch or 2, *input_shape)
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
                **options,
            )
    except torch.onnx.OnnxExporterError as error:
        raise FasterViTError(f"torch.onnx.export: {export_failure(error)}") from error
    assert program is not None
    return program.model
