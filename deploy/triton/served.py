"""A bundle in, what Triton is to run of it out: engine or graph, on which device, with which batches.

Triton's TensorRT backend deserialises engines of TensorRT alone, so those of TensorRT-RTX are passed over, and its ONNX
Runtime takes the graph as it is: operators of the domain ``fastervit`` are functions of the graph, which it inlines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

__all__ = ["Backend", "Device", "Served", "Tensor", "choose"]

Backend = Literal["tensorrt", "onnxruntime"]
Device = Literal["gpu", "cpu"]

_GRAPH = "model.onnx"  # export.graph.GRAPH_FILE, which cannot be asked for without onnx_ir
_PLAN = "model.plan"  # Triton's default name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # of a folder and a part of URLs


@dataclass(frozen=True)
class Tensor:
    """An output: its name and its shape without the batch."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Served:
    """What Triton is told of the model.

    Attributes:
        name: of the model; pictures are sent to ``<name>_pictures``.
        batch: largest batch Triton may put together; 0 where the graph takes ``static`` images, no fewer and no more.
        preferred: batches that the engine was tuned for, ascending; none for ONNX Runtime.
        profiles: how many optimisation profiles the engine has.
        files: name in the version's folder → file.
        capabilities: compute capability → name of its engine, where there are several.
        engine: record of the (first) engine.
        plugin: library to load before, and its SHA-256.
        optimisation: ``optimization.graph.level`` of ONNX Runtime, where it must not be the default.
        notices: what whoever serves it should know.
    """

    name: str
    backend: Backend
    device: Device
    input: str
    image: tuple[int, ...]  # (3, H, W)
    outputs: tuple[Tensor, ...]
    batch: int
    static: int
    preferred: tuple[int, ...]
    profiles: int
    files: Mapping[str, Path]
    capabilities: Mapping[str, str]
    engine: Mapping[str, Any] | None = None
    plugin: tuple[Path, str] | None = None
    optimisation: int | None = None
    notices: tuple[str, ...] = ()

    @property
    def batch_axis(self) -> tuple[int, ...]:
        """Dimensions before those of an image in ``config.pbtxt``: Triton adds a variable one itself."""
        return () if self.batch else (self.static,)


def choose(
    bundle: Bundle,
    *,
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto",
    device: Literal["auto", "gpu", "cpu"] = "auto",
    max_batch: int | None = None,
    name: str | None = None,
    engine: str | None = None,
) -> Served:
    """What to serve, TensorRT's engine before ONNX Runtime.

    Args:
        backend: "auto" takes TensorRT's engine if the bundle has one, and no CPU is asked for.
        device: "auto" is the GPU for TensorRT; for ONNX Runtime the GPU if the bundle's target has one.
        max_batch: fewer images at once than the engine or graph allows.
        name: of the model; the export's by default.
        engine: file of one engine, if there are several that Triton could not tell apart.

    Raises:
        FasterViTError: nothing in the bundle can be served like that; says what can.
    """
    name = name if name is not None else bundle.export.model
    if not _NAME.fullmatch(name):
        raise FasterViTError(
            f"'{name}' is no name for a model: letters, digits, '_', '-' and '.'; choose another --name"
        )
    engines = [record for record in bundle.export.engines if record.get("runtime") == "tensorrt"]
    if backend == "auto":
        backend = "tensorrt" if engines and device != "cpu" else "onnxruntime"
    if backend == "tensorrt":
        return _engine(bundle, name, _chosen(bundle, engines, engine, device), max_batch)
    if engine is not None:
        raise FasterViTError(f"--engine {engine} is for backend tensorrt, ONNX Runtime runs {_GRAPH}; leave it out")
    return _graph(bundle, name, device, max_batch)


def _chosen(bundle: Bundle, engines: list[dict[str, Any]], engine: str | None, device: str) -> list[dict[str, Any]]:
    """The engine named, or those that Triton tells apart by compute capability."""
    where = f"bundle '{bundle.folder}'"
    if device == "cpu":
        raise FasterViTError("TensorRT engines run on GPUs; pass --backend onnxruntime for the CPU")
    if engine is not None:
        engines = [record for record in engines if record["file"] == engine]
    if not engines:
        rtx = any(record.get("runtime") == "tensorrt-rtx" for record in bundle.export.engines)
        why = ": Triton cannot run engines of TensorRT-RTX" if rtx else ""
        raise FasterViTError(
            f"{where} has no TensorRT engine{f' {engine!r}' if engine else ''}{why}; run `fastervit-deploy install` on "
            "the target and pass what it wrote, or --backend onnxruntime"
        )
    for record in engines:
        if record["stripped"]:
            raise FasterViTError(
                f"engine '{record['file']}' of {where} has no weights, which Triton does not refit; build it without "
                "--strip-weights"
            )
    same = {
        (r["version"], str(r["profiles"]), r["version_compatible"], str(r["plugins"]), r["platform"]) for r in engines
    }
    if len(same) > 1 or len({record["compute_capability"] for record in engines}) < len(engines):
        names = ", ".join(record["file"] for record in engines)
        raise FasterViTError(f"{where} has engines that Triton cannot tell apart ({names}); name one with --engine")
    return engines


def _engine(bundle: Bundle, name: str, engines: list[dict[str, Any]], max_batch: int | None) -> Served:
    first, profiles = engines[0], [tuple(profile) for profile in engines[0]["profiles"]]
    dynamic = BatchRange.parse(bundle.export.batch).dynamic
    batch = _largest(max_batch, max(high for _, _, high in profiles), f"engine '{first['file']}'", dynamic=dynamic)
    if dynamic:
        _check_covers(profiles, batch, first["file"])
    several = len(engines) > 1
    files = {f"sm{r['compute_capability'].replace('.', '')}.plan" if several else _PLAN: r for r in engines}
    return _served(
        bundle,
        name,
        "tensorrt",
        "gpu",
        batch if dynamic else 0,
        {file: bundle.export_folder / record["file"] for file, record in files.items()},
        preferred=tuple(sorted({min(n, batch) for _, optimum, high in profiles for n in (optimum, high)}))
        if dynamic
        else (),
        profiles=len(profiles),
        capabilities={record["compute_capability"]: file for file, record in files.items()} if several else {},
        engine=first,
        plugin=_plugin(bundle, first),
    )


def _graph(bundle: Bundle, name: str, device: str, max_batch: int | None) -> Served:
    export = bundle.export
    types = {export.precision, *(str((export.graph.get("quantisation") or {}).get(key)) for key in ("type", "base"))}
    form = str((export.graph.get("quantisation") or {}).get("form", ""))
    if "bf16" in types:
        raise FasterViTError(
            f"'{bundle.export_folder / _GRAPH}' is in bf16, for which ONNX Runtime lacks kernels; export fp32 or fp16"
        )
    if device == "auto":
        device = "cpu" if form or bundle.manifest.target.get("capability") is None else "gpu"
    notices = []
    if form and device == "gpu":
        notices.append(f"the graph is in the 8-bit form for {form}: on a GPU fp16 is faster")
    if "int8" in types and not form:
        notices.append("the graph's 8-bit form is TensorRT's: for a CPU, export with --target cpu")
    limits = BatchRange.parse(export.batch)
    batch = _largest(max_batch, limits.maximum, f"'{bundle.export_folder}'", dynamic=limits.dynamic)
    return _served(
        bundle,
        name,
        "onnxruntime",
        "gpu" if device == "gpu" else "cpu",
        batch if limits.dynamic else 0,
        {file: bundle.export_folder / file for file in export.files if file == _GRAPH or file.startswith(f"{_GRAPH}.")},
        # Beyond "basic" it moves 8-bit floats to where it has no kernels for them (export/onnx_cpu.py).
        optimisation=-1 if "fp8" in types else None,
        notices=tuple(notices),
    )


def _served(
    bundle: Bundle,
    name: str,
    backend: Backend,
    device: Device,
    batch: int,
    files: Mapping[str, Path],
    *,
    preferred: Sequence[int] = (),
    profiles: int = 1,
    capabilities: Mapping[str, str] | None = None,
    engine: Mapping[str, Any] | None = None,
    plugin: tuple[Path, str] | None = None,
    optimisation: int | None = None,
    notices: tuple[str, ...] = (),
) -> Served:
    export = bundle.export
    return Served(
        name=name,
        backend=backend,
        device=device,
        input=export.input["name"],
        image=tuple(int(size) for size in export.input["shape"][1:]),
        outputs=tuple(Tensor(output["name"], tuple(output["shape"][1:])) for output in export.outputs),
        batch=batch,
        static=0 if batch else BatchRange.parse(export.batch).maximum,
        preferred=tuple(preferred),
        profiles=profiles,
        files=files,
        capabilities=capabilities or {},
        engine=engine,
        plugin=plugin,
        optimisation=optimisation,
        notices=notices,
    )


def _largest(asked: int | None, allowed: int, what: str, *, dynamic: bool) -> int:
    if asked is None:
        return allowed
    if not dynamic and asked != allowed:
        raise FasterViTError(f"{what} takes {allowed} images at once, no fewer and no more; leave out --max-batch")
    if not 1 <= asked <= allowed:
        raise FasterViTError(f"{what} takes batches up to {allowed}, so not --max-batch {asked}; choose 1 to {allowed}")
    return asked


def _check_covers(profiles: Sequence[tuple[int, ...]], batch: int, file: str) -> None:
    """Triton sends every size from 1 on, and fails a request for which no profile is found."""
    missing = [size for size in range(1, batch + 1) if not any(low <= size <= high for low, _, high in profiles)]
    if missing:
        sizes = f"{missing[0]}" if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
        raise FasterViTError(
            f"engine '{file}' has no profile for batches {sizes}, which Triton will send; build it with "
            "--batch 1:OPT:MAX"
        )


def _plugin(bundle: Bundle, record: Mapping[str, Any]) -> tuple[Path, str] | None:
    """The very library that the engine was built with, wherever the bundle keeps it."""
    plugins = record["plugins"]
    if plugins is None:
        return None
    packed = bundle.manifest.plugin or {}
    names = [packed["path"]] if packed.get("kind") == "library" else []
    candidates = [bundle.folder / name for name in (*names, f"plugins/{plugins['file']}", f"export/{plugins['file']}")]
    for path in candidates:
        if path.is_file() and sha256_file(path) == plugins["sha256"]:
            return path, str(plugins["sha256"])
    raise FasterViTError(
        f"engine '{record['file']}' needs the plugin library with sha256 {plugins['sha256'][:16]}…, which bundle "
        f"'{bundle.folder}' does not have; run `fastervit-deploy install` on the target and pass what it wrote"
    )
