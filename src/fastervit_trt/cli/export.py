"""``fastervit-export``: checkpoint → verified ONNX → TensorRT engines, in one folder with a manifest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fastervit_trt.artifacts import Manifest
from fastervit_trt.calibrating import CalibrationRequest
from fastervit_trt.cli.printing import print_engine
from fastervit_trt.console import command_app, run_command, say
from fastervit_trt.engine_choice import choose_engines, parse_capabilities, parse_plugin_choice
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.fusion import FusionReport
from fastervit_trt.export.precision import (
    Float,
    Int8,
    Int8Cpu,
    Precision,
    Quantised,
    get_calibrator,
    get_float,
    get_precision,
)
from fastervit_trt.export.quantisation.qdq import QuantisationReport
from fastervit_trt.export.verify import Verification
from fastervit_trt.host import peak_rss_mib
from fastervit_trt.judging import Judgement
from fastervit_trt.mixing import MixedRequest
from fastervit_trt.models.config import parse_resolution
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, pretrained_source
from fastervit_trt.workflow import ExportRequest, export_model

__all__ = ["main", "print_export"]

app = command_app()


@app.command()
def export_command(
    model: Annotated[str, typer.Option(help="Registered model, e.g. faster_vit_0_224.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: .pth.tar, .pth or .safetensors.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use the weights that ship for this model.")] = False,
    random_init: Annotated[bool, typer.Option("--random-init", help="Random weights (seed 0), to try a path.")] = False,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16, int8, fp8, or mixed: 8 bits where accuracy allows.")
    ] = "fp16",
    resolution: Annotated[str | None, typer.Option(help="H or HxW in pixels; the model's own by default.")] = None,
    window_size: Annotated[
        str | None, typer.Option(help="Windows of the four stages, e.g. 7,7,12,6, where not the model's own.")
    ] = None,
    ct_size: Annotated[int | None, typer.Option(help="Side of a window's carrier grid, where not 2.")] = None,
    carrier_order: Annotated[
        str | None, typer.Option(help="reference (as published, default) or corrected; matters on non-square inputs.")
    ] = None,
    features_only: Annotated[
        bool, typer.Option("--features-only", help="The backbone: feature maps of the stages instead of logits.")
    ] = False,
    out_indices: Annotated[str, typer.Option(help="Stages whose maps the backbone yields.")] = "0,1,2,3",
    task: Annotated[
        str | None,
        typer.Option(help="classification, segmentation (UperNet) or detection (RT-DETRv2): heads of transformers."),
    ] = None,
    batch: Annotated[str, typer.Option(help="N (static) or MIN:OPT:MAX (dynamic).")] = "1:8:32",
    num_classes: Annotated[int | None, typer.Option(help="Classes of the head, where not the model's own.")] = None,
    fuse: Annotated[
        str,
        typer.Option(
            help="One operator in every window: window-attention, between linear layers, or attention-half, from "
            "LayerNorm to residual."
        ),
    ] = "window-attention",
    pad_head_dims: Annotated[
        int | None,
        typer.Option(min=1, help="Pad head dims with zeros to a multiple of this; 8 makes 49 fit tensor cores."),
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="A flat graph without fused operators, as TensorRT 10.3 wants it.")
    ] = False,
    calibration_data: Annotated[
        str | None, typer.Option(help="Images to find the ranges for 8 bits with: a folder, digits or scenes.")
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="How many of them, evenly spread.")] = 512,
    calibration_cache: Annotated[
        Path | None, typer.Option(help="File of ranges: used where it exists, else made from the images.")
    ] = None,
    calibrator: Annotated[
        str | None, typer.Option(help="max, percentile, entropy or mse; percentile for int8, max for fp8 by default.")
    ] = None,
    base_precision: Annotated[
        str, typer.Option(help="Type of what is not in 8 bits: fp16, or fp32 for runtimes without fp16.")
    ] = "fp16",
    quantise_attention: Annotated[
        bool, typer.Option("--quantise-attention", help="Also q, k, v and softmax in 8 bits; no attention plugin then.")
    ] = False,
    quantise_residuals: Annotated[
        bool, typer.Option("--quantise-residuals", help="Also residual sums in 8 bits: to see what that costs.")
    ] = False,
    quantise_heads: Annotated[
        bool, typer.Option("--quantise-heads", help="Also the convolutions of a detector's or segmenter's head.")
    ] = False,
    validation_data: Annotated[
        str | None,
        typer.Option(help="What judges the written graph, as --data of fastervit-bench."),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Fail if the written graph loses more points of top-1, mAP or mIoU.")
    ] = None,
    accuracy_budget: Annotated[
        float | None, typer.Option(help="Points of top-1, mAP or mIoU that --precision mixed may lose.")
    ] = None,
    mixed_with: Annotated[str, typer.Option(help="What --precision mixed adds to the base: int8 or fp8.")] = "int8",
    block_times: Annotated[
        Path | None, typer.Option(help="CSV of measured times (unit, us_16, us_8); a roofline of the GPU otherwise.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="gpu, or cpu: int8 in the form ONNX Runtime's CPU provider runs fastest.")
    ] = "gpu",
    runtime: Annotated[
        str,
        typer.Option(
            help="Engines to build: tensorrt, for this machine's GPU; rtx (TensorRT-RTX), ahead of time, without one; "
            "none; or auto, the first of these that can be built here."
        ),
    ] = "auto",
    compute_capability: Annotated[
        str, typer.Option(help="GPUs to build TensorRT-RTX engines for, comma-separated (8.6,8.9,12.0), or none.")
    ] = "8.9",
    plugins: Annotated[
        str, typer.Option(help="auto, on or off: the fused operators as kernels of this project, in TensorRT engines.")
    ] = "auto",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build engines even if they were built before.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write; MODEL-PRECISION by default.")] = None,
    save_checkpoint: Annotated[
        Path | None, typer.Option(help="Write the weights as loaded to this .safetensors file, too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Export a FasterViT to a verified ONNX graph and TensorRT engines, in one folder with a manifest."""
    start = time.perf_counter()
    spec = ModelSpec(
        model,
        resolution=parse_resolution(resolution),
        num_classes=num_classes,
        window_size=None if window_size is None else _numbers(window_size, "--window-size"),
        ct_size=ct_size,
        carrier_order=carrier_order,
        out_indices=_numbers(out_indices, "--out-indices") if features_only else None,
        task=task,
    )
    spec.config()  # what is impossible is said before anything is read
    mixed = precision == "mixed"
    typed = _precision(
        mixed_with if mixed else precision,
        calibrator,
        base_precision,
        attention=quantise_attention,
        residual=quantise_residuals,
        heads=quantise_heads,
    )
    if target not in ("gpu", "cpu"):
        raise FasterViTError(f"target '{target}' is neither gpu nor cpu")
    if target == "cpu":
        typed = _for_cpu(typed)
    if mixed != (accuracy_budget is not None):
        raise FasterViTError("--precision mixed and --accuracy-budget P belong together")
    if quantise_heads and spec.head is None:
        raise FasterViTError("--quantise-heads is for detectors and segmenters; give --task")
    if mixed and target == "cpu":
        raise FasterViTError("a mixture weighs times on a GPU; use --precision int8 with --target cpu")
    output = output or Path(f"{model}-{precision if mixed else typed.name}")
    capabilities = parse_capabilities(compute_capability)
    engines = choose_engines(
        "none" if isinstance(typed, Int8Cpu) else runtime,
        capabilities,
        parse_plugin_choice(plugins),
        use_cache=not no_cache,
    )
    request = ExportRequest(
        model=spec,
        weights=_weights(model, checkpoint, pretrained, random_init),
        precision=typed,
        batch=BatchRange.parse(batch),
        engines=engines,
        calibration=CalibrationRequest(calibration_data, calibration_images, calibration_cache),
        validation=validation_data,
        max_accuracy_drop=max_accuracy_drop,
        mixed=_mixed(accuracy_budget, block_times, capabilities, output),
        fuse=fuse,
        pad_heads_to=pad_head_dims,
        inline=inline,
        output=output,
        save_checkpoint=save_checkpoint,
        overwrite=overwrite,
    )
    manifest = export_model(request)
    print_export(manifest, request.output, time.perf_counter() - start)


def print_export(manifest: Manifest, output: Path, seconds: float) -> None:
    """The few lines a user wants after an export."""
    proof = Verification(**manifest.verification)
    changes = ", ".join(f"{count} x {name}" for name, count in manifest.graph["deploy"]["changes"].items() if count)
    fusion = FusionReport(**manifest.graph["fusion"])
    flat = "" if fusion.nodes == fusion.flat_nodes else f" ({fusion.flat_nodes} with fused operators written out)"
    say(f"{manifest.model} {manifest.precision}, batch {manifest.batch}, {fusion.nodes} nodes{flat}")
    say(f"  fused: {fusion}")
    for reason, (block, *others) in fusion.unserved.items():
        more = f" and {len(others)} more" if others else ""
        say(f"  no plugin for {block}{more}, left to the compiler; {reason}")
    say(f"  deploy form: {changes}")
    say(f"  verified on batches {', '.join(map(str, proof.batches))}; {proof}")
    if (quantisation := manifest.graph["quantisation"]) is not None:
        say(f"  {QuantisationReport(**quantisation)}")
    if manifest.accuracy is not None:
        say(f"  {Judgement.from_record(manifest.accuracy)}")
    for note in manifest.weights["tolerated"]:
        say(f"  tolerated: {note}")
    for engine in manifest.engines:
        print_engine(engine, manifest.files[engine["file"]]["bytes"])
    if manifest.engines_skipped:
        say(f"  no engine: {manifest.engines_skipped}")
    for notice in manifest.notices:
        say(f"  note: {notice}")
    say(f"  {output} written in {seconds:.1f} s, peak memory {peak_rss_mib()} MiB")


def _precision(name: str, calibrator: str | None, base: str, **also: bool) -> Precision:
    precision = get_precision(name)
    if not isinstance(precision, Quantised):
        if calibrator is not None or any(also.values()):
            raise FasterViTError(f"--calibrator and --quantise-… are for 8 bits, not for {name}")
        return precision
    if base not in ("fp16", "fp32"):
        raise FasterViTError(f"8 bits go with fp16 or fp32, not with '{base}'")
    options: dict[str, Any] = {"base": get_float(base), **also}
    return replace(precision, **options, calibrator=get_calibrator(calibrator or precision.calibrator))


def _for_cpu(precision: Precision) -> Precision:
    if isinstance(precision, Float):
        return precision
    if not isinstance(precision, Int8):
        raise FasterViTError(f"CPUs have no {precision.name}; use --precision int8 with --target cpu")
    return Int8Cpu(
        calibrator=precision.calibrator,
        attention=precision.attention,
        residual=precision.residual,
        heads=precision.heads,
    )


def _mixed(budget: float | None, times: Path | None, capabilities: Sequence[str], output: Path) -> MixedRequest | None:
    if budget is None:
        return None
    record = output.with_name(f"{output.name}.search.jsonl")
    return MixedRequest(budget, times, capabilities[0] if capabilities else "8.9", record)


def _weights(model: str, checkpoint: Path | None, pretrained: bool, random_init: bool) -> WeightSource:
    if (checkpoint is not None) + pretrained + random_init != 1:
        raise FasterViTError("choose exactly one of --checkpoint FILE, --pretrained and --random-init")
    if checkpoint is not None:
        return WeightSource.checkpoint(checkpoint)
    return pretrained_source(model) if pretrained else WeightSource.random()


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FasterViTError(f"{option} '{text}' is no list of whole numbers, e.g. 7,7,12,6") from None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fastervit-export``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
