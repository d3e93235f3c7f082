"""Rows in, rows out that say why 8 bits are not faster than the same model in 16 or 32 bits, where they are not.

On a CPU the reason is read off the graph that ONNX Runtime makes of the file; what stands against 8 bits in the
TensorRT engines of an export is in its manifest, read off their plans when they were built.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.engines.explain import Finding, explain
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.export.onnx_cpu import OnnxCpuSession

__all__ = ["explain_slow_rows", "products_on_cpu"]

# Products as ONNX Runtime's CPU provider names them once it has optimised a graph.
_IN_8_BITS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}
)
_IN_FLOATS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention"}
)


def explain_slow_rows(rows: Sequence[BenchmarkRow], folders: Sequence[Path]) -> list[BenchmarkRow]:
    """``rows`` with ``slower_because`` and ``engines_against_8_bits``; ``folders`` are their exports, in order."""
    manifests = {folder: Manifest.read(folder) for folder in dict.fromkeys(folders)}
    floats = [row for row, folder in zip(rows, folders, strict=True) if not _quantised(manifests[folder])]
    explained = []
    for row, folder in zip(rows, folders, strict=True):
        manifest = manifests[folder]
        if not (row.measured and _quantised(manifest)):
            explained.append(row)
            continue
        peer = _fastest_float(floats, row)
        because = "" if peer is None else _because(row, peer, manifest, folder)
        explained.append(replace(row, slower_because=because, engines_against_8_bits=_engines(manifest)))
    return explained


def products_on_cpu(path: Path) -> tuple[int, int]:
    """How many matrix products and convolutions ONNX Runtime's CPU provider runs in 8 bits, and in floating point.

    Raises:
        FasterViTError: it refuses the graph.
    """
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        OnnxCpuSession(path, optimised=optimised)
        operators = Counter(node.op_type for node in onnx.load(optimised, load_external_data=False).graph.node)
    return (sum(operators[name] for name in _IN_8_BITS), sum(operators[name] for name in _IN_FLOATS))


def _quantised(manifest: Manifest) -> bool:
    return manifest.graph["quantisation"] is not None


def _fastest_float(floats: Sequence[BenchmarkRow], row: BenchmarkRow) -> BenchmarkRow | None:
    """The fastest of the same weights in 16 or 32 bits in the same condition, if it is at least as fast as ``row``."""
    same = [r for r in floats if r.measured and r.speed_is_meaningful and _like(r) == _like(row)]
    fastest = max(same, key=_speed, default=None)
    return fastest if fastest is not None and _speed(fastest) >= _speed(row) else None


def _like(row: BenchmarkRow) -> tuple[object, ...]:
    model, _, *condition = row.condition
    return (model, *condition, row.weights_sha256, row.device)


def _speed(row: BenchmarkRow) -> float:
    return row.throughput_img_per_s or 0.0


def _because(row: BenchmarkRow, peer: BenchmarkRow, manifest: Manifest, folder: Path) -> str:
    reasons = [f"{_speed(row) / _speed(peer):.2f} times as fast as {peer.precision}"]
    if row.backend == "ort-cpu":
        reasons += _on_cpu(manifest, folder / GRAPH_FILE)
    for engine in manifest.engines:
        if engine.get("file") == row.artifact:
            reasons += [str(Finding(**finding)) for finding in engine["against_8_bits"]]
    return "; ".join(reasons)


def _on_cpu(manifest: Manifest, onnx_path: Path) -> list[str]:
    reasons = []
    try:
        narrow, wide = products_on_cpu(onnx_path)
        reasons.append(f"ONNX Runtime's CPU provider runs {narrow} of {narrow + wide} products in 8 bits")
    except FasterViTError as error:
        reasons.append(str(error))
    if manifest.graph["quantisation"]["form"] is None:
        reasons += [finding.reason for finding in explain(onnx_path) if "multiplications" in finding.reason]
        reasons.append(
            "this form is for TensorRT; --precision int8 --target cpu writes the one this runtime is fast on"
        )
    return reasons


def _engines(manifest: Manifest) -> str:
    lines = []
    for engine in manifest.engines:
        findings: list[dict[str, Any]] = engine["against_8_bits"]
        reasons = "; ".join(str(Finding(**finding)) for finding in findings)
        lines.append(f"{engine['runtime']} for {engine['compute_capability']}: {reasons or 'nothing found'}")
    return " | ".join(lines)
