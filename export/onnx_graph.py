"""A typed module in, an ONNX graph out whose nodes are named after the model's blocks."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.exposed import hide_raw_outputs
from fastervit_trt.export.functions import add_functions, exporter_translations
from fastervit_trt.export.fusion import block_of_module, check_operators, record_operators
from fastervit_trt.export.graph import BLOCK, INPUT, OUTPUT, inline_functions
from fastervit_trt.export.typed_model import TypedModel, TypedTaskModel

__all__ = ["export_failure", "onnx_from_torch", "quiet_exporter"]


def onnx_from_torch(
    model: TypedModel,
    input_shape: tuple[int, int, int],
    batch: BatchRange,
    outputs: Sequence[str] = (OUTPUT,),
    *,
    inline: bool = False,
    rewrite: Callable[[ir.Model], None] = lambda graph: None,
) -> ir.Model:
    """Trace ``model`` through the dynamo exporter for images (batch, *input_shape).

    Node names are ``stages.2.blocks.0.attn/MatMul_1``: the block as in the checkpoint (``levels`` reads ``stages``),
    the operator, a running number within the block.

    Args:
        inline: write out what the fused operators mean instead of calling them, for runtimes that know no functions or
            put them before plugins (TensorRT 10.3).
        rewrite: changes the graph in place while its operators are still whole.

    Raises:
        FasterViTError: the exporter cannot express the model.
    """
    # 0 and 1 would be specialised by the tracer, so a dynamic batch is traced with 2.
    example = torch.zeros(2 if batch.dynamic else batch.optimum, *input_shape)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch.dynamic else None
    opset = model.precision.opset
    raw = model.raw_names if isinstance(model, TypedTaskModel) else ()
    names = {"input_names": [INPUT], "output_names": [*outputs, *raw]}
    graph = _exported(model, (example,), opset, dynamic_shapes=shapes, **names)
    _check_batch(graph, dynamic=batch.dynamic)
    for node in graph.graph:
        node.metadata_props[BLOCK] = _block_of(node)
    check_operators(model.model, graph)
    _strip_private_metadata(graph)
    record_operators(graph)
    hide_raw_outputs(graph, len(raw))
    add_functions(graph, partial(_trace_operator, opset=opset))
    _name_nodes(graph)
    rewrite(graph)
    if inline:
        inline_functions(graph)
    _name_nodes(graph)
    graph.producer_name = "fastervit-trt"
    return graph


def _check_batch(graph: ir.Model, *, dynamic: bool) -> None:
    """The exporter falls back to a fixed batch, without a word, where something on the way fixes it."""
    for value in graph.graph.outputs:
        if dynamic and (value.shape is None or isinstance(value.shape[0], int)):
            raise FasterViTError(
                f"torch {torch.__version__} exports output '{value.name}' for a fixed batch only; use a static "
                "--batch, and report this with the model name and versions"
            )


def _exported(module: nn.Module, examples: tuple[torch.Tensor, ...], opset: int, **options: Any) -> ir.Model:
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=exporter_translations(),
                verbose=False,
                **options,
            )
    except torch.onnx.OnnxExporterError as error:
        raise FasterViTError(
            f"torch {torch.__version__} cannot export this model to ONNX opset {opset}: {export_failure(error)}; "
            "report it with the model name and versions"
        ) from error
    assert program is not None
    return program.model


def export_failure(error: BaseException) -> str:
    """The reason in an exporter's many lines: the exception it started from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


class _Definition(nn.Module):
    """A function as a module, which is what the exporter takes."""

    def __init__(self, definition: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.definition = definition

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.definition(*tensors)


def _trace_operator(
    definition: Callable[..., torch.Tensor], examples: Sequence[torch.Tensor], batched: Sequence[bool], opset: int
) -> ir.Model:
    """The graph of an operator's definition; the batch is in the leading axes of the ``batched`` examples."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if dynamic else None for dynamic in batched)
    model = _exported(_Definition(definition), tuple(examples), opset, dynamic_shapes=(shapes,))
    for node in model.graph:
        node.metadata_props[BLOCK] = ""
    _name_nodes(model)
    _strip_private_metadata(model)
    return model


def _name_nodes(model: ir.Model) -> None:
    counts: Counter[str] = Counter()
    for node in model.graph:
        stem = f"{node.metadata_props[BLOCK]}/{node.op_type}".removeprefix("/")
        node.name = f"{stem}_{counts[stem]}"
        counts[stem] += 1


def _block_of(node: ir.Node) -> str:
    """The innermost module that produced ``node``; a node made by the optimiser takes its first producer's."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        # ['', 'model', 'model.levels.2', …, 'matmul_3']: modules from the outside in, then the operation itself
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope.startswith("model")]
        path = modules[-1] if modules else ""
        return block_of_module(path.removeprefix("model").removeprefix("."))
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and BLOCK in producer.metadata_props:
            return str(producer.metadata_props[BLOCK])
    return "model"


def _strip_private_metadata(model: ir.Model) -> None:
    """Drop what the exporter records about the machine and source files (stack traces hold local paths)."""
    for node in model.graph:
        block = node.metadata_props[BLOCK]
        node.metadata_props.clear()
        node.metadata_props[BLOCK] = block
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Within, PyTorch's exporter and compiler keep to themselves what they think of torchvision and their internals."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
