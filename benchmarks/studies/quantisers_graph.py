"""Graphs for benchmarks/studies/quantisers.py: quantised as this project does, run as written, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fastervit_trt.export.graph import BLOCK, INPUT
from fastervit_trt.export.precision import Fp8, Fp16, Fp32, Int8
from fastervit_trt.export.quantisation.qdq import insert_qdq
from fastervit_trt.export.quantisation.ranges import CalibrationKey, RangeRow, Ranges

__all__ = ["excluded_nodes", "largest_inputs", "logits", "quantise", "structure"]

_MATRIX = ("Conv", "Gemm", "MatMul")
_HIGH_PRECISION = ("patch_embed.", "head/")  # names of the nodes of stem and head begin so


def excluded_nodes(source: Path) -> list[str]:
    """The nodes of stem and head."""
    return [str(node.name) for node in ir.load(source).graph if str(node.name).startswith(_HIGH_PRECISION)]


def quantise(source: Path, target: Path, kind: str, ranges: dict[str, float]) -> None:
    """What this project does with the same layers and ranges: convolutions and linear layers read 8 bits."""
    model = ir.load(source)
    targets = {str(node.metadata_props[BLOCK]): str(node.inputs[0].name) for node in _targets(model) if node.inputs[0]}
    wide = {v.dtype for v in model.graph.initializers.values()}
    base = Fp16() if ir.DataType.FLOAT16 in wide else Fp32()
    precision = Int8(base=base, calibrator="max") if kind == "int8" else Fp8(base=base, calibrator="max")
    rows = {block: RangeRow(*[ranges[name]] * len(fields(RangeRow))) for block, name in targets.items()}
    insert_qdq(model, list(targets), precision, Ranges(CalibrationKey("", "", "", "", "", 0), rows))
    ir.save(model, target)


def _targets(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type in ("Conv", "Gemm") and not str(n.name).startswith(_HIGH_PRECISION)]


def largest_inputs(source: Path, images: np.ndarray, scratch: Path) -> dict[str, float]:
    """Largest magnitude over the calibration images of everything :func:`quantise` quantises."""
    model = ir.load(source)
    names = list(dict.fromkeys(str(node.inputs[0].name) for node in _targets(model) if node.inputs[0] is not None))
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [values[name] for name in names]
    ir.save(model, scratch / "ranges.onnx")
    largest = np.zeros(len(names))
    for outputs in _run(scratch / "ranges.onnx", images):
        largest = np.maximum(largest, [float(np.abs(output).max()) for output in outputs])
    return dict(zip(names, largest.tolist(), strict=True))


def _run(path: Path, images: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The outputs of 32 images after the other, every node computed as written.

    ONNX Runtime 1.31's optimisations move Q/DQ over other nodes: FP8 graphs are then refused, or come out wrong.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for start in range(0, len(images), 32):
        yield session.run(None, {INPUT: images[start : start + 32]})


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """The first output for every image."""
    return np.concatenate([outputs[0] for outputs in _run(path, images)])


def structure(source: Path, result: Path) -> dict[str, Any]:
    """What became of the graph."""
    before, after = ir.load(source), ir.load(result)
    nodes = [*after.graph, *(node for function in after.functions.values() for node in function)]
    counts, stray = Counter[str](), Counter[str]()
    int32_biases = 0
    for node in nodes:
        read = [_dequantised(value) for value in node.inputs]
        sources = [q.inputs[0] for q in read if q is not None]
        int32_biases += sum(value is not None and value.dtype is ir.DataType.INT32 for value in sources)
        if node.op_type in _MATRIX:
            counts[node.op_type] += read[0] is not None and read[1] is not None
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast") and any(read):
            stray[node.op_type] += 1
    scales = [ir.convenience.get_const_tensor(n.inputs[1]) for n in nodes if n.op_type == "DequantizeLinear"]
    blocks = {node.name: node.metadata_props.get(BLOCK) for node in after.graph}
    names = [str(node.name) for node in before.graph]
    return {
        "file_bytes": result.stat().st_size,
        "opset": after.opset_imports.get(""),
        "matrix_nodes": sum(node.op_type in _MATRIX for node in nodes),
        "conv": counts["Conv"],
        "gemm": counts["Gemm"],
        "matmul": counts["MatMul"],
        "per_channel": sum(scale is not None and scale.size > 1 for scale in scales),
        "wide_weights": sum(n.op_type == "QuantizeLinear" and n.inputs[0].const_value is not None for n in nodes),
        "stray": " ".join(f"{name}:{count}" for name, count in sorted(stray.items())),
        "int32_biases": int32_biases,
        "names_kept": round(sum(name in blocks for name in names) / len(names), 3),
        "blocks_kept": round(sum(blocks.get(name) is not None for name in names) / len(names), 3),
        "functions": len(after.functions),
    }


def _dequantised(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that ``value`` comes from, possibly through a cast or a transposition."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Transpose") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None
