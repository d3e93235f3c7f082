"""A typed module in, an ONNX graph out whose nodes are named after the model's blocks."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import TypedModel

__all__ = ["INPUT", "OUTPUT", "onnx_from_torch", "save_onnx"]

INPUT, OUTPUT = "images", "logits"  # a backbone has outputs "stage0" … "stage3" instead

# protobuf refuses messages of 2 GiB, and holds several copies of what it does take; past this the weights go into
# model.onnx.data beside the graph.
_EXTERNAL_DATA_BYTES = 1_000_000_000


def onnx_from_torch(
    model: TypedModel, input_shape: tuple[int, int, int], batch: BatchRange, outputs: Sequence[str] = (OUTPUT,)
) -> ir.Model:
    """Trace ``model`` through the dynamo exporter for images (batch, *input_shape).

    Node names are ``stages.2.blocks.0.attn/MatMul_1``: the block as in the checkpoint (``levels`` reads ``stages``),
    the operator, a running number within the block.

    Raises:
        FasterViTError: the exporter cannot express the model.
    """
    # 0 and 1 would be specialised by the tracer, so a dynamic batch is traced with 2.
    example = torch.zeros(2 if batch.dynamic else batch.optimum, *input_shape)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch.dynamic else None
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=model.precision.opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise FasterViTError(
            f"torch {torch.__version__} cannot export this model to ONNX opset {model.precision.opset}: {reason}; "
            "report it with the model name and versions"
        ) from error
    assert program is not None
    graph = program.model
    _name_nodes_after_blocks(graph)
    _strip_private_metadata(graph)
    graph.producer_name = "fastervit-trt"
    return graph


def save_onnx(model: ir.Model, folder: Path) -> list[Path]:
    """Write ``model.onnx`` (and ``model.onnx.data`` when weights exceed what protobuf holds); the files written."""
    path = folder / "model.onnx"
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size < _EXTERNAL_DATA_BYTES:
        ir.save(model, path)
        return [path]
    ir.save(model, path, external_data="model.onnx.data")
    return [path, folder / "model.onnx.data"]


def _name_nodes_after_blocks(model: ir.Model) -> None:
    counts: Counter[str] = Counter()
    for node in model.graph:
        block = _block_of(node)
        stem = f"{block}/{node.op_type}"
        node.name = f"{stem}_{counts[stem]}"
        counts[stem] += 1
        node.metadata_props["fastervit.block"] = block


def _block_of(node: ir.Node) -> str:
    """The innermost module that produced ``node``; a node made by the optimiser takes its first producer's."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        # ['', 'model', 'model.levels.2', …, 'matmul_3']: modules from the outside in, then the operation itself
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope.startswith("model")]
        path = modules[-1] if modules else ""
        return path.removeprefix("model").removeprefix(".").replace("levels.", "stages.", 1) or "model"
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and "fastervit.block" in producer.metadata_props:
            return str(producer.metadata_props["fastervit.block"])
    return "model"


def _strip_private_metadata(model: ir.Model) -> None:
    """Drop what the exporter records about the machine and source files (stack traces hold local paths)."""
    for node in model.graph:
        block = node.metadata_props["fastervit.block"]
        node.metadata_props.clear()
        node.metadata_props["fastervit.block"] = block
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about an absent torchvision and about its own internals; neither concerns the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
