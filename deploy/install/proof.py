"""An engine or graph in, proof of the precision it computes in out: its audit, or what ONNX Runtime makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastervit_trt.artifacts import Manifest
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.export.onnx_cpu import OnnxCpuSession

__all__ = ["PrecisionProof", "prove"]

# Operators that multiply by weights, in ONNX and as ONNX Runtime fuses them.
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_SPOKEN = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8", "UINT8": "int8"}
_SPOKEN |= {"FLOAT8E4M3FN": "fp8", "DOUBLE": "fp64"}


@dataclass(frozen=True)
class PrecisionProof:
    """What computes in which type.

    Attributes:
        state: "proven", "emulated" (right results, in another type) or "not proven".
        products: convolutions and matrix products by type: an engine's shares of multiplications, or counts.
        text: one line.
    """

    state: Literal["proven", "emulated", "not proven"]
    products: Mapping[str, float]
    text: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


def prove(folder: Path, manifest: Manifest, file: str) -> PrecisionProof:
    """Proof for ``file`` of an export folder: an engine, or the graph in ONNX Runtime's CPU provider."""
    record = next((record for record in manifest.engines if record.get("file") == file), None)
    return _of_graph(folder / GRAPH_FILE, manifest) if record is None else _of_engine(record)


def _of_engine(record: Mapping[str, Any]) -> PrecisionProof:
    audit = record["audit"]
    shares = {kind: float(share) for kind, share in audit["multiplications"].items()}
    said = ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items())
    state: Literal["proven", "not proven"] = "proven" if audit["proven"] else "not proven"
    return PrecisionProof(state, shares, f"multiplications {said or 'unknown'}, by the engine's own account")


def _of_graph(graph: Path, manifest: Manifest) -> PrecisionProof:
    """What ONNX Runtime made of the graph: its optimised form says which weights are multiplied in which type."""
    products = _optimised_products(graph)
    said = ", ".join(f"{count} in {kind}" for kind, count in products.items())
    quantisation = manifest.graph.get("quantisation")
    if quantisation is not None:
        kind, blocks = str(quantisation["type"]).removesuffix("-cpu"), len(quantisation["blocks"])
        done = products.get(kind, 0)
        text = f"{said} products with weights; {blocks} blocks are quantised"
        if done >= blocks:
            return PrecisionProof("proven", products, text)
        return PrecisionProof("emulated", products, f"{text}, ONNX Runtime's CPU computes the others in fp32")
    if set(products) == {manifest.precision}:
        return PrecisionProof("proven", products, f"{said} products with weights")
    return PrecisionProof(
        "emulated", products, f"{said} products with weights: ONNX Runtime's CPU has none in {manifest.precision}"
    )


def _optimised_products(graph: Path) -> dict[str, float]:
    import onnx

    with tempfile.TemporaryDirectory(prefix="fastervit-proof-") as scratch:
        optimised = Path(scratch) / GRAPH_FILE
        OnnxCpuSession(graph, optimised=optimised)
        model = onnx.load(optimised, load_external_data=False)
    types = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if any(name in node.op_type for name in _PRODUCTS):
            weights = [types[name] for name in node.input[1:] if name in types]
            if weights:  # the widest says nothing: scales and biases are floats beside int8 weights
                narrow = next((kind for kind in weights if kind in ("INT8", "UINT8", "FLOAT8E4M3FN")), weights[0])
                counts[_SPOKEN.get(narrow, narrow.lower())] += 1
    return dict(counts)
