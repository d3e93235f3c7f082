"""``fastervit-export``: checkpoint → verified ONNX → TensorRT engines, in one folder with a manifest."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from fastervit_trt.artifacts import Manifest, file_entry, new_folder
from fastervit_trt.console import command_app, console, progress_bar, run_command, step
from fastervit_trt.engines.rtx import RtxEngine, RtxTarget, build_rtx_engine, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.onnx_graph import INPUT, OUTPUT
from fastervit_trt.export.pipeline import ExportedGraph, export_graph
from fastervit_trt.export.precision import get_precision
from fastervit_trt.host import peak_rss_mib, versions
from fastervit_trt.models.factory import get_variant, resolve_config
from fastervit_trt.models.source import WeightSource, model_from_source, shipped_source

__all__ = ["ExportRequest", "export_model", "main"]

app = command_app()

_NVIDIA_NOTICE = (
    "NVIDIA publishes its FasterViT weights under the NVIDIA Source Code License-NC (research and evaluation only); "
    "an export of them carries that licence"
)


@dataclass(frozen=True)
class ExportRequest:
    """One export, as asked for on the command line."""

    model: str
    weights: WeightSource
    precision: str
    batch: BatchRange
    targets: tuple[RtxTarget, ...]
    output: Path
    resolution: tuple[int, int] | None = None
    num_classes: int | None = None
    overwrite: bool = False


def export_model(request: ExportRequest) -> Manifest:
    """Write the export folder of ``request``, whole or not at all.

    Raises:
        FasterViTError: anything the user can act on; nothing is left behind.
    """
    precision = get_precision(request.precision)
    for target in request.targets:
        target.check_precision(precision.name)
    overrides = {} if request.num_classes is None else {"num_classes": request.num_classes}
    config = resolve_config(request.model, request.resolution, **overrides)
    skipped = rtx_unavailable_reason() if request.targets else "not asked for (--compute-capability none)"
    with new_folder(request.output, overwrite=request.overwrite) as folder:
        with step(f"loading {request.model}"):
            model, weights = model_from_source(config, request.weights)
        graph = export_graph(model, precision, request.batch, folder, step)
        del model
        engines = [] if skipped else [_build(graph.files[0], folder, t, request.batch, config) for t in request.targets]
        manifest = Manifest(
            model=request.model,
            num_classes=config.num_classes,
            resolution=config.resolution,
            precision=precision.name,
            batch=str(request.batch),
            input={"name": INPUT, "dtype": "float32", "shape": ["batch", config.in_chans, *config.resolution]},
            output={"name": OUTPUT, "dtype": "float32", "shape": ["batch", config.num_classes]},
            preprocessing=asdict(get_variant(request.model).preprocessing),
            weights=weights.record(),
            graph=graph.facts(),
            verification=asdict(graph.verification),
            engines=[_engine_record(engine) for engine in engines],
            engines_skipped=skipped,
            files={path.name: file_entry(path) for path in (*graph.files, *(e.path for e in engines))},
            versions=versions(),
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            notices=[_NVIDIA_NOTICE] if weights.kind == "checkpoint" else [],
        )
        manifest.write(folder)
    return manifest


def _build(onnx_path: Path, folder: Path, target: RtxTarget, batch: BatchRange, config: object) -> RtxEngine:
    from fastervit_trt.models.config import FasterViTConfig

    assert isinstance(config, FasterViTConfig)
    shape = (config.in_chans, *config.resolution)
    with progress_bar() as progress:
        task = progress.add_task(f"TensorRT-RTX engine for compute capability {target}", total=None)

        def show(phase: str, done: int, total: int) -> None:
            progress.update(task, description=f"TensorRT-RTX {target}: {phase.lower()}", completed=done, total=total or None)

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


@app.command()
def export_command(
    model: Annotated[str, typer.Option(help="Registered model, e.g. faster_vit_0_224.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: .pth.tar, .pth or .safetensors.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use the weights that ship for this model.")] = False,
    random_init: Annotated[bool, typer.Option("--random-init", help="Random weights (seed 0), to try a path.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp16",
    resolution: Annotated[str | None, typer.Option(help="H or HxW in pixels; the model's own by default.")] = None,
    batch: Annotated[str, typer.Option(help="N (static) or MIN:OPT:MAX (dynamic).")] = "1:8:32",
    num_classes: Annotated[int | None, typer.Option(help="Classes of the head, where not the model's own.")] = None,
    compute_capability: Annotated[
        str, typer.Option(help="TensorRT-RTX engines to build, comma-separated (8.6,8.9,12.0), or none.")
    ] = "8.9",
    output: Annotated[Path | None, typer.Option(help="Folder to write; MODEL-PRECISION by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Export a FasterViT to a verified ONNX graph and TensorRT engines, in one folder with a manifest."""
    start = time.perf_counter()
    request = ExportRequest(
        model=model,
        weights=_weights(model, checkpoint, pretrained, random_init),
        precision=precision,
        batch=BatchRange.parse(batch),
        targets=_targets(compute_capability),
        output=output or Path(f"{model}-{precision}"),
        resolution=_resolution(resolution),
        num_classes=num_classes,
        overwrite=overwrite,
    )
    manifest = export_model(request)
    print_export(manifest, request.output, time.perf_counter() - start)


def print_export(manifest: Manifest, output: Path, seconds: float) -> None:
    """The few lines a user wants after an export."""
    proof = manifest.verification
    changes = ", ".join(f"{count} x {name}" for name, count in manifest.graph["deploy"]["changes"].items())
    console.print(f"{manifest.model} {manifest.precision}, batch {manifest.batch}, {manifest.graph['nodes']} nodes")
    console.print(f"  deploy form: {changes}")
    console.print(
        f"  verified on batches {list(proof['batches'])}: worst point {proof['worst_input']} input, image "
        f"{proof['worst_image']}, class {proof['worst_class']}: ONNX {proof['worst_onnx']:.6g}, PyTorch fp32 "
        f"{proof['worst_torch']:.6g}, |error| {proof['max_abs_error']:.1e}, {proof['share_of_budget']:.0%} of the budget"
    )
    for engine in manifest.engines:
        size = manifest.files[engine["file"]]["bytes"] / 1e6
        console.print(
            f"  engine: {engine['file']}, {size:.1f} MB, TensorRT-RTX {engine['version']}, built in "
            f"{engine['build_seconds']:.1f} s, peak {engine['build_peak_rss_mib']} MiB"
        )
    if manifest.engines_skipped:
        console.print(f"  no engine: {manifest.engines_skipped}")
    for notice in manifest.notices:
        console.print(f"  note: {notice}")
    console.print(f"  {output} written in {seconds:.1f} s, peak memory {peak_rss_mib()} MiB")


def _weights(model: str, checkpoint: Path | None, pretrained: bool, random_init: bool) -> WeightSource:
    if (checkpoint is not None) + pretrained + random_init != 1:
        raise FasterViTError("choose exactly one of --checkpoint FILE, --pretrained and --random-init")
    if checkpoint is not None:
        return WeightSource.checkpoint(checkpoint)
    return shipped_source(model) if pretrained else WeightSource.random()


def _targets(text: str) -> tuple[RtxTarget, ...]:
    if text.strip().lower() == "none":
        return ()
    return tuple(dict.fromkeys(RtxTarget.parse(part.strip()) for part in text.split(",")))


def _resolution(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise FasterViTError(f"resolution '{text}' is neither H nor HxW, e.g. 224 or 576x960")
    return sides[0], sides[-1]


def main() -> None:
    """Entry point of ``fastervit-export``."""
    run_command(app)
