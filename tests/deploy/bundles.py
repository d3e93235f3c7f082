"""Bundles packed for tests, and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from fastervit_trt.artifacts import Manifest, file_entry
from fastervit_trt.deploy.bundle.contents import declare
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, SIGNATURE_FILE, BundleManifest
from fastervit_trt.deploy.bundle.pack import role_of, sign_folder

__all__ = ["flip_weight", "read_tree", "signed_again"]


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_weight(graph: Path, change: Callable[[np.ndarray], np.ndarray] = np.negative) -> str:
    """Change the largest weight of the last matrix product in place; its name."""
    model = onnx.load(graph)
    matrices = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    name = next(i for node in reversed(model.graph.node) for i in node.input if i in matrices)
    values = numpy_helper.to_array(matrices[name]).copy()
    where = np.unravel_index(np.abs(values.astype(np.float32)).argmax(), values.shape)
    values[where] = change(values[where])
    matrices[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, graph)
    return name


def signed_again(folder: Path) -> None:
    """Make a bundle whose files were changed consistent: hashes in both manifests, and the own key's signature."""
    export = folder / EXPORT_FOLDER
    manifest = Manifest.read(export)
    replace(manifest, files={name: file_entry(export / name) for name in manifest.files}).write(export)
    bundle = BundleManifest.parse((folder / BUNDLE_FILE).read_text(), "test")
    for name in (BUNDLE_FILE, SIGNATURE_FILE):
        (folder / name).unlink()
    sign_folder(folder, replace(bundle, files=declare(folder, role_of)))
