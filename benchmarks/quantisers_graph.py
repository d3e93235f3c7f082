"""Graphs for benchmarks/quantisers.py: Q/DQ put in by hand, run as written, and what a quantiser did, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fastervit_trt.export.fusion import BLOCK
from fastervit_trt.export.onnx_graph import INPUT

__all__ = ["excluded_nodes", "insert_qdq", "largest_inputs", "logits", "structure"]

_MATRIX = ("Conv", "Gemm", "MatMul")
_HIGH_PRECISION = ("patch_embed.", "head/")  # names of the nodes of stem and head begin so


def excluded_nodes(source: Path) -> list[str]:
    """The nodes of stem and head."""
    return [str(node.name) for node in ir.load(source).graph if str(node.name).startswith(_HIGH_PRECISION)]


def insert_qdq(source: Path, target: Path, kind: str, ranges: dict[str, float]) -> None:
    """Convolutions and linear layers of the main graph read 8 bits: inputs per tensor, weights per output channel."""
    model = ir.load(source)
    dtype, largest = (ir.DataType.INT8, 127) if kind == "int8" else (ir.DataType.FLOAT8E4M3FN, 448)
    graph, shared = model.graph, {}

    def constant(name: str, content: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(content, name=name))
        graph.register_initializer(value)
        return value

    for node in _targets(model):
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None and weight.const_value is not None
        wide = weight.const_value.numpy()
        if x not in shared:
            scale = constant(f"{x.name}/scale", np.array(ranges[str(x.name)] / largest, wide.dtype))
            zero = constant(f"{x.name}/zero", np.zeros((), dtype.numpy()))
            narrow = ir.node("QuantizeLinear", [x, scale, zero], name=f"{x.name}/QuantizeLinear")
            shared[x] = ir.node("DequantizeLinear", [narrow.outputs[0], scale, zero], name=f"{x.name}/DequantizeLinear")
            graph.insert_before(node, [narrow, shared[x]])
        rows = node.op_type == "Conv" or ("transB" in node.attributes and node.attributes["transB"].as_int() == 1)
        axis = 0 if rows else 1
        others = tuple(i for i in range(wide.ndim) if i != axis)
        scales = (np.abs(wide).max(others, keepdims=True) / largest).clip(min=2.0**-14).astype(wide.dtype)
        steps = wide.astype(np.float32) / scales.astype(np.float32)
        codes = (steps.round().clip(-127, 127) if kind == "int8" else steps.clip(-448, 448)).astype(dtype.numpy())
        inputs = [constant(f"{weight.name}/{kind}", codes), constant(f"{weight.name}/scale", scales.reshape(-1))]
        read = ir.node("DequantizeLinear", inputs, attributes={"axis": axis}, name=f"{weight.name}/DequantizeLinear")
        graph.insert_before(node, read)
        node.replace_input_with(0, shared[x].outputs[0])
        node.replace_input_with(1, read.outputs[0])
    for value in [v for v in graph.initializers.values() if not v.uses()]:
        graph.initializers.pop(str(value.name))
    ir.save(model, target)


def _targets(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type in ("Conv", "Gemm") and not str(n.name).startswith(_HIGH_PRECISION)]


def largest_inputs(source: Path, images: np.ndarray, scratch: Path) -> dict[str, float]:
    """Largest magnitude over the calibration images of everything :func:`insert_qdq` quantises."""
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
