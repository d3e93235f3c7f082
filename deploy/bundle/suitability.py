"""An export and a target in; why they do not fit, which engines run there, and what has to be changed, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import GRAPH_FILE, fused_calls

__all__ = ["Portable", "calls_plugins", "check_export", "portable_engines"]


@dataclass(frozen=True)
class Portable:
    """Records of the engines that run on a target, and why the others do not, by file."""

    engines: tuple[dict[str, Any], ...]
    left_out: Mapping[str, str]


def check_export(folder: Path, manifest: Manifest, target: Target) -> None:
    """Refuse an export that the target cannot run, before anything is written.

    Raises:
        FasterViTError: says how to export it.
    """
    if manifest.golden is None:
        raise FasterViTError(
            f"'{folder}' has no golden set to verify a deployment with: it was written by an earlier version; export "
            "the model again"
        )
    quantisation = manifest.graph.get("quantisation")
    form = None if quantisation is None else quantisation.get("form")
    if form is not None and target.runtime != "onnxruntime":
        raise FasterViTError(
            f"'{folder / GRAPH_FILE}' is made for {form} alone, {target.name} runs {_spoken(target)}; export the model "
            "again without --target"
        )
    names = {manifest.precision} if quantisation is None else {quantisation["type"], quantisation["base"]}
    if lacking := sorted(names - set(target.precisions)):
        raise FasterViTError(
            f"'{folder}' is in {', '.join(lacking)}, which {target.title} lacks; export the model with --precision "
            f"{' or '.join(target.precisions)}"
        )


def portable_engines(manifest: Manifest, target: Target, *, flattened: bool, library: str | None) -> Portable:
    """The engines that may be loaded on ``target``; its own check on arrival is stricter, since it sees the machine.

    Args:
        flattened: the graph was rewritten for the target, so that no engine was built from it.
        library: SHA-256 of the plugin library that goes along, if one does.
    """
    kept, left_out = [], {}
    for record in manifest.engines:
        reason = _why_not(record, target, library)
        if reason is None and flattened:
            reason = "the graph is written flat for the target, and the engine was built from another"
        if reason is None:
            kept.append(record)
        else:
            left_out[str(record["file"])] = reason
    return Portable(tuple(kept), left_out)


def calls_plugins(graph: Path) -> bool:
    """Whether a graph has operators that the plugin library serves."""
    return any("plugin_namespace" in call.attributes for call in fused_calls(ir.load(graph)))


def _why_not(record: Mapping[str, Any], target: Target, library: str | None) -> str | None:
    if record["runtime"] != target.runtime:
        return f"{target.name} runs {_spoken(target)}"
    if record["version"] not in target.versions:
        return f"built with {record['version']}, {target.name} has {target.versions}"
    if record["platform"] not in target.platforms:
        return f"built on {record['platform']}, {target.name} is {' or '.join(target.platforms)}"
    anywhere = record["hardware_compatibility"] == "ampere+"  # no target is older
    if record["compute_capability"] != target.capability and not anywhere:
        return f"for compute capability {record['compute_capability']}, {target.name} has {target.capability}"
    gpu = record["gpu"]  # None: built ahead of time, for every GPU of the capability
    if gpu is not None and not anywhere and not target.names(gpu):
        return f"timed on {gpu}, which is not {target.name}"
    plugins = record["plugins"]
    if plugins is not None and plugins["sha256"] != library:
        return "the plugin library that it needs does not go along"
    return None


def _spoken(target: Target) -> str:
    return {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}[target.runtime]
