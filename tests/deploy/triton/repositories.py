"""Bundles in the forms that exports come in, records of TensorRT engines, and what is written of them, run."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.bundle.manifest import EXPORT_FOLDER, Bundle
from fastervit_trt.deploy.triton.repository import WrittenRepository
from tests.deploy.triton.load_rules import read_config

_LEVELS = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}


def bundle_of(export: Path, like: Bundle, folder: Path, *, labels: bool = False, **manifest: Any) -> Bundle:
    """A bundle of ``export``, copied to ``folder``, with the manifest of ``like`` but for what is given."""
    shutil.copytree(export, folder / EXPORT_FOLDER)
    if labels:
        shutil.copyfile(like.folder / "labels.txt", folder / "labels.txt")
    described = replace(like.manifest, labels="labels.txt" if labels else None, **manifest)
    return Bundle(folder, described, Manifest.read(folder / EXPORT_FOLDER))


def with_engines(bundle: Bundle, folder: Path, *records: dict[str, Any], labels: bool = True) -> Bundle:
    """``bundle`` with TensorRT engines: records as the builder writes them, files of a few bytes."""
    copy = bundle_of(bundle.export_folder, bundle, folder, labels=labels)
    content = json.loads((copy.export_folder / "manifest.json").read_text())
    for record in records:
        engine = f"engine {record['file']}".encode()
        (copy.export_folder / record["file"]).write_bytes(engine)
        content["files"][record["file"]] = {"sha256": hashlib.sha256(engine).hexdigest(), "bytes": len(engine)}
    content["engines"] = [*content["engines"], *records]
    (copy.export_folder / "manifest.json").write_text(json.dumps(content))
    return replace(copy, export=Manifest.read(copy.export_folder))


def engine_record(file: str = "model.trt-sm90.engine", **changes: Any) -> dict[str, Any]:
    """What the manifest says of a TensorRT engine for an H100."""
    record = {
        "file": file,
        "runtime": "tensorrt",
        "version": "10.16.1.11",
        "compute_capability": "9.0",
        "gpu": "NVIDIA H100 80GB HBM3",
        "platform": "linux-x86_64",
        "profiles": [[1, 4, 8]],
        "hardware_compatibility": "none",
        "version_compatible": False,
        "stripped": False,
        "plugins": None,
    }
    return {**record, **changes}


def plugin_record(content: bytes) -> dict[str, Any]:
    """What an engine's record says of the library that it needs."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"file": "libfastervit_plugins.so", "sha256": sha256, "version": "0.1.0", "namespace": "fastervit"}


def run_model(written: WrittenRepository, images: np.ndarray) -> list[np.ndarray]:
    """The model by ONNX Runtime, given only what its config.pbtxt says."""
    (folder,) = [path for path in written.models.iterdir() if path.name == written.names[0]]
    config = read_config(folder / "config.pbtxt")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, _LEVELS[config.optimization.graph.level]
    )
    path = folder / "1" / config.default_model_filename
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {tensor.name: tensor.shape for tensor in (*session.get_inputs(), *session.get_outputs())}
    for tensor in (*config.input, *config.output):  # as the ONNX Runtime backend compares them (CompareDimsSupported)
        found = [size if isinstance(size, int) else -1 for size in shapes[tensor.name]]
        assert found == [*([-1] if config.max_batch_size else []), *tensor.dims]
    return session.run([tensor.name for tensor in config.output], {config.input[0].name: images})
