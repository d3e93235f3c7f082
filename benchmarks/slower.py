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
    explained = []
    for row, folder in zip(rows, folders, strict=True):
        manifest = Manifest.read(folder)
        if manifest.graph["quantisation"] is None:
            explained.append(row)
            continue
        peer = _fastest_float([r for r, f in zip(rows, folders, strict=True) if not _quantised(f)], row)
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


def _quantised(folder: Path) -> bool:
    return Manifest.read(folder).graph["quantisation"] is not None


def _fastest_float(floats: Sequence[BenchmarkRow], row: BenchmarkRow) -> BenchmarkRow | None:
    """The fastest row of the same weights in 16 or 32 bits, if it is at least as fast as ``row``."""
    mine = (row.model, row.weights_sha256, row.resolution)
    same = [r for r in floats if (r.model, r.weights_sha256, r.resolution) == mine]
    fastest = max((r for r in same if r.speed_is_meaningful), key=lambda r: r.throughput_img_per_s, default=None)
    return fastest if fastest is not None and fastest.throughput_img_per_s >= row.throughput_img_per_s else None


def _because(row: BenchmarkRow, peer: BenchmarkRow, manifest: Manifest, folder: Path) -> str:
    times = row.throughput_img_per_s / peer.throughput_img_per_s
    reasons = [f"{times:.2f} times as fast as {peer.precision}"]
    onnx_path = folder / "model.onnx"
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
    return "; ".join(reasons)


def _engines(manifest: Manifest) -> str:
    lines = []
    for engine in manifest.engines:
        findings: list[dict[str, Any]] = engine["against_8_bits"]
        reasons = "; ".join(str(Finding(**finding)) for finding in findings)
        lines.append(f"{engine['runtime']} for {engine['compute_capability']}: {reasons or 'nothing found'}")
    return " | ".join(lines)
