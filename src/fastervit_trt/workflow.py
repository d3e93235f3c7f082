"""The whole way from weights to an export folder: model → verified ONNX → engines → manifest."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from fastervit_trt.artifacts import Manifest, file_entry, new_file, new_folder
from fastervit_trt.console import progress_bar, step
from fastervit_trt.engines.rtx import RtxEngine, RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import get_fuse
from fastervit_trt.export.onnx_graph import INPUT
from fastervit_trt.export.pipeline import export_graph
from fastervit_trt.export.precision import get_precision
from fastervit_trt.host import release_memory, versions
from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.fastervit import Trunk
from fastervit_trt.models.source import WeightSource, build_model, resolve_source, save_model

__all__ = ["ExportRequest", "export_model"]

_NVIDIA_NOTICE = (
    "NVIDIA publishes its FasterViT weights under the NVIDIA Source Code License-NC (research and evaluation only); "
    "an export of them carries that licence"
)


@dataclass(frozen=True)
class ExportRequest:
    """One export, as asked for on the command line."""

    model: ModelSpec
    weights: WeightSource
    precision: str
    batch: BatchRange
    targets: tuple[RtxTarget, ...]
    output: Path
    fuse: str = "window-attention"  # what becomes one operator in every window
    pad_heads_to: int | None = None  # multiple of head dims
    inline: bool = False  # a flat graph without fused operators
    save_checkpoint: Path | None = None  # write the weights as loaded to this .safetensors file, too
    overwrite: bool = False


def export_model(request: ExportRequest) -> Manifest:
    """Write the export folder of ``request``, whole or not at all.

    Raises:
        FasterViTError: anything the user can act on; nothing is left behind.
    """
    precision, fuse = get_precision(request.precision), get_fuse(request.fuse)
    for target in request.targets:
        target.check_precision(precision.name)
    spec, config = request.model, request.model.config()
    skipped = rtx_unavailable_reason() if request.targets else "not asked for (--compute-capability none)"
    tolerated: list[str] = []
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(request.output, overwrite=request.overwrite))
        saved = request.save_checkpoint and stack.enter_context(
            new_file(request.save_checkpoint, overwrite=request.overwrite)
        )
        weights = resolve_source(request.weights)

        def load() -> Trunk:
            model, notes = build_model(spec, weights)
            tolerated.extend(notes)
            if saved:
                save_model(model, saved)
            return model

        graph = export_graph(
            load,
            precision,
            request.batch,
            folder,
            step,
            fuse=fuse,
            pad_heads_to=request.pad_heads_to,
            inline=request.inline,
        )
        release_memory()  # the builder runs beside this process
        engines = [] if skipped else [_build(graph.files[0], folder, t, request.batch, config) for t in request.targets]
        manifest = Manifest(
            model=spec.name,
            spec=spec.record(),
            num_classes=config.num_classes,
            resolution=config.resolution,
            precision=precision.name,
            batch=str(request.batch),
            input={"name": INPUT, "dtype": "float32", "shape": ["batch", config.in_chans, *config.resolution]},
            outputs=[{"name": n, "dtype": "float32", "shape": ["batch", *s]} for n, s in graph.outputs.items()],
            preprocessing=asdict(get_variant(spec.name).preprocessing),
            weights={**weights.record(), "tolerated": tolerated},
            graph=graph.facts(),
            verification=asdict(graph.verification),
            engines=[_engine_record(engine) for engine in engines],
            engines_skipped=skipped,
            files={path.name: file_entry(path) for path in (*graph.files, *(e.path for e in engines))},
            versions=versions(),
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            notices=[_NVIDIA_NOTICE] if weights.kind in ("checkpoint", "official") else [],
        )
        manifest.write(folder)
    return manifest


def _build(onnx_path: Path, folder: Path, target: RtxTarget, batch: BatchRange, config: FasterViTConfig) -> RtxEngine:
    shape = (config.in_chans, *config.resolution)
    with progress_bar() as progress:
        task = progress.add_task(f"TensorRT-RTX engine for compute capability {target}", total=None)

        def show(phase: str, done: int, total: int) -> None:
            progress.update(
                task, description=f"TensorRT-RTX {target}: {phase.lower()}", completed=done, total=total or None
            )

        plan = folder / f"model.rtx-{target.sm}.engine"
        engine = build_rtx_engine(onnx_path, plan, target, batch, INPUT, shape, show)
        progress.update(task, description=f"TensorRT-RTX engine for {target}", completed=1, total=1)
    return engine


def _engine_record(engine: RtxEngine) -> dict[str, object]:
    return {
        "file": engine.path.name,
        "runtime": "tensorrt-rtx",
        "version": engine.tensorrt_rtx,
        "compute_capability": str(engine.target),
        "layers": engine.layers,
        "build_seconds": engine.seconds,
        "build_peak_rss_mib": engine.peak_rss_mib,
    }
