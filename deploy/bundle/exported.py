"""An export in, what a target gets of it out: its graph, held to the golden set, and the engines that run there."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from fastervit_trt.artifacts import Manifest, file_entry, sha256_file
from fastervit_trt.deploy.bundle.suitability import Portable, portable_engines
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engines.audit_files import audit_name
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.golden import Golden, GoldenComparison
from fastervit_trt.export.graph import GRAPH_FILE, inline_functions, save_onnx

__all__ = ["check_golden", "write_export"]


def write_export(
    source: Path, manifest: Manifest, target: Target, folder: Path, library: Path | None
) -> tuple[Manifest, Portable]:
    """Write ``folder``: the export's graph, flat where ``target`` needs that, and the engines that run there.

    Args:
        source: the export, whose files are those of ``manifest``.
        library: the plugin library that goes along, if one does.
    """
    folder.mkdir()
    flatten = target.flat and bool(ir.load(source / GRAPH_FILE).functions)
    sha256 = None if library is None else sha256_file(library)
    portable = portable_engines(manifest, target, flattened=flatten, library=sha256)
    engines = {str(record["file"]) for record in manifest.engines}
    left_out = {name for file in engines & portable.left_out.keys() for name in (file, audit_name(file))}
    for name in manifest.files.keys() - left_out:
        shutil.copyfile(source / name, folder / name)
    exported = replace(
        manifest,
        engines=list(portable.engines),
        engines_skipped=manifest.engines_skipped if portable.engines else f"none runs on {target.name}",
        files={name: entry for name, entry in manifest.files.items() if name not in left_out},
    )
    if flatten:
        exported = _flattened(folder, exported)
    exported.write(folder)
    return exported, portable


def _flattened(folder: Path, manifest: Manifest) -> Manifest:
    """The same with a graph that calls no functions, for parsers that take those before plugins."""
    graph = ir.load(folder / GRAPH_FILE)
    inline_functions(graph)
    before = [name for name in manifest.files if name.startswith(GRAPH_FILE)]
    with tempfile.TemporaryDirectory(prefix=".flat-", dir=folder) as scratch:  # weights may be read from the old file
        written = [path.name for path in save_onnx(graph, Path(scratch))]
        for name in before:
            (folder / name).unlink()
        for name in written:
            (Path(scratch) / name).replace(folder / name)
    files = {name: entry for name, entry in manifest.files.items() if name not in before}
    files = {**{name: file_entry(folder / name) for name in written}, **files}
    fusion = {**manifest.graph["fusion"], "operators": {}, "nodes": len(graph.graph), "unserved": {}}
    return replace(manifest, files=files, graph={**manifest.graph, "fusion": fusion})


def check_golden(export: Path, manifest: Manifest) -> GoldenComparison | None:
    """The graph that goes along, run here, against the golden set; None where there is no ONNX Runtime to run it.

    Raises:
        FasterViTError: they differ by more than the budget.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    assert manifest.golden is not None
    golden = Golden.read(export, manifest.golden)
    with Engine.load(export, backend="ort-cpu") as engine:
        comparison = golden.compare(engine.outputs, engine(golden.images))
    if not comparison.passed:
        raise FasterViTError(
            f"the graph does not compute what its golden set says, {comparison}; export the model again"
        )
    return comparison
