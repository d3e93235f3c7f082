"""What each precision costs and gives: trained models in, one row per model and precision out.

    python -m fastervit_trt.benchmarks.studies.precisions --output precisions

Every row is an export as ``fastervit-export`` writes it: calibrated on the training part of the digits, judged on the
held-out part on the written file, built for every compute capability that TensorRT-RTX has. Throughput is ONNX
Runtime's on this CPU, all precisions of a model in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from rich.table import Table

from fastervit_trt.artifacts import Manifest, new_file, write_csv
from fastervit_trt.benchmarks.timing import Timer, interleaved
from fastervit_trt.calibrating import CalibrationRequest
from fastervit_trt.console import command_app, console, run_command, say, track
from fastervit_trt.engine_choice import EngineChoice, choose_engines
from fastervit_trt.engines.audit import audit_engine
from fastervit_trt.engines.kernels import Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, check_precision, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import INPUT
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import PRECISIONS, Fp8, Fp32, Int8, Int8Cpu, Precision
from fastervit_trt.host import cpu_name, usable_cpus, versions
from fastervit_trt.mixing import MixedRequest
from fastervit_trt.models.factory import ModelSpec, get_variant, list_models
from fastervit_trt.models.source import pretrained_source
from fastervit_trt.workflow import ExportRequest, export_model

__all__ = ["PrecisionRow", "main"]

app = command_app()

_CAPABILITY = "8.9"  # of the engine whose plan is looked at
_OTHERS = ("7.5", "8.0", "8.6", "12.0", "12.1")
_BATCH, _CALIBRATION_IMAGES = 8, 512
_BUDGET = 0.0  # points that the mixed rows may lose


@dataclass(frozen=True)
class PrecisionRow:
    """One model in one precision. Intervals are 95 %."""

    model: str
    precision: str
    setting: str
    quantised_layers: int
    images: int
    top1: float
    top1_low: float
    top1_high: float
    drop_points: float  # against PyTorch fp32 on the same images
    drop_low: float
    drop_high: float
    agreement_fp32: float
    sqnr_db: float
    non_finite_logits: int
    onnx_bytes: int
    ort_cpu_img_per_s: float
    speed_is_meaningful: bool
    rtx_built: str  # capabilities
    rtx_lacking: str  # capabilities that have not the type
    rtx_refused: str  # capabilities that TensorRT-RTX fails to build it for, or where it runs other types
    rtx_launches: int | None  # at 8.9
    rtx_attentions_fused: int | None
    rtx_attentions: int
    against_8_bits: str
    cpu: str
    threads: int
    torch: str
    onnxruntime: str
    tensorrt_rtx: str
    timestamp_utc: str


@dataclass(frozen=True)
class _Export:
    setting: str
    manifest: Manifest
    folder: Path
    session: OnnxCpuSession
    engines: dict[str, str]  # capability → "built", "lacking" or "refused"


def _settings() -> dict[str, tuple[Precision, float | None]]:
    """Setting → what is exported, and the accuracy budget of a mixture."""
    plain: dict[str, tuple[Precision, float | None]] = {name: (p, None) for name, p in PRECISIONS.items()}
    return {
        **plain,
        "mixed int8/fp16": (Int8(), _BUDGET),
        "int8, attention too": (replace(Int8(), attention=True), None),
        "fp8, attention too": (replace(Fp8(), attention=True), None),
        "int8, base fp32": (replace(Int8(), base=Fp32()), None),
        "int8, CPU form": (Int8Cpu(), None),
    }


def measure_precisions(name: str, seconds: float, threads: int, scratch: Path) -> list[PrecisionRow]:
    """All rows of one trained model.

    Args:
        seconds: timed per precision.

    Raises:
        FasterViTError: an export fails.
    """
    cache = scratch / f"{name}.json"
    exports = [_export(name, s, p, budget, cache, scratch, threads) for s, (p, budget) in _settings().items()]
    images = np.random.default_rng(0).standard_normal((_BATCH, 3, 224, 224), np.float32)
    timers = [Timer(partial(export.session, images), _BATCH) for export in exports]
    interleaved(timers, seconds)
    return [_row(export, timer, threads) for export, timer in zip(exports, timers, strict=True)]


def _export(
    name: str, setting: str, precision: Precision, budget: float | None, cache: Path, scratch: Path, threads: int
) -> _Export:
    console.rule(f"{name} {setting}")
    folder = scratch / f"{name}-{setting.replace('/', '-').replace(' ', '-')}"
    request = ExportRequest(
        model=ModelSpec(name),
        weights=pretrained_source(name),
        precision=precision,
        batch=BatchRange(1, _BATCH, 32),
        engines=EngineChoice(()) if isinstance(precision, Int8Cpu) else _engines(),
        output=folder,
        calibration=CalibrationRequest("digits", _CALIBRATION_IMAGES, cache),
        validation="digits",
        mixed=None if budget is None else MixedRequest(budget),
    )
    manifest = export_model(request)
    engines = {engine["compute_capability"]: "built" for engine in manifest.engines}
    if setting in PRECISIONS:
        engines |= {c: _engine(c, precision, request, folder, scratch) for c in track(_OTHERS, "other capabilities")}
    return _Export(setting, manifest, folder, OnnxCpuSession(folder / "model.onnx", threads), engines)


def _engines() -> EngineChoice:
    """TensorRT-RTX's, where it is installed."""
    if (reason := rtx_unavailable_reason()) is not None:
        return EngineChoice((), reason)
    return choose_engines("rtx", [_CAPABILITY], use_cache=False)


def _engine(capability: str, precision: Precision, request: ExportRequest, folder: Path, scratch: Path) -> str:
    target, config = RtxTarget.parse(capability), request.model.config()
    try:
        check_precision(str(target), precision)
    except FasterViTError:
        return "lacking"
    shape = (config.in_chans, *config.resolution)
    try:
        engine = build_rtx_engine(folder / "model.onnx", scratch / "plan", target, request.batch, INPUT, shape)
        audit_engine(folder / "model.onnx", plan_kernels(engine.path)).check(f"the engine for {capability}")
    except FasterViTError as error:
        say(f"  {error}")
        return "refused"
    return "built"


def _row(export: _Export, timer: Timer, threads: int) -> PrecisionRow:
    manifest, installed = export.manifest, versions()
    judged, quantisation = manifest.accuracy, manifest.graph["quantisation"]
    assert judged is not None
    artifact, drop = judged["artifact"], judged["drop"]
    engine = next((e for e in manifest.engines if e["compute_capability"] == _CAPABILITY), None)
    plan = None if engine is None else plan_kernels(export.folder / engine["file"])
    operators = manifest.graph["fusion"]["operators"]
    return PrecisionRow(
        model=manifest.model,
        precision=manifest.precision,
        setting=export.setting,
        quantised_layers=0 if quantisation is None else len(quantisation["blocks"]),
        images=artifact["images"],
        top1=artifact["top1"],
        top1_low=artifact["low"],
        top1_high=artifact["high"],
        drop_points=drop["points"],
        drop_low=drop["low"],
        drop_high=drop["high"],
        agreement_fp32=artifact["agreement"],
        sqnr_db=artifact["sqnr_db"],
        non_finite_logits=artifact["non_finite"],
        onnx_bytes=manifest.files["model.onnx"]["bytes"],
        ort_cpu_img_per_s=timer.images_per_second(),
        speed_is_meaningful=not export.session.emulated,
        **{f"rtx_{answer}": _capabilities(export, answer) for answer in ("built", "lacking", "refused")},
        rtx_launches=None if plan is None else plan.launches,
        rtx_attentions_fused=None if plan is None else plan.count(Kind.ATTENTION),
        rtx_attentions=operators.get("WindowAttention", 0) + operators.get("CarrierAttention", 0),
        against_8_bits="; ".join(f["reason"] for f in engine["against_8_bits"]) if engine else "",
        cpu=cpu_name(),
        threads=threads,
        torch=installed["torch"],
        onnxruntime=installed.get("onnxruntime", ""),
        tensorrt_rtx=installed.get("tensorrt-rtx", ""),
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _capabilities(export: _Export, answer: str) -> str:
    return " ".join(sorted((c for c, said in export.engines.items() if said == answer), key=float))


@app.command()
def precisions_command(
    model: Annotated[list[str] | None, typer.Option(help="Digits model; all three by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Timed per precision.")] = 4.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable by default.")] = None,
    output: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("precisions.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Measure every precision of the trained models that ship here."""
    names = model or [n for n in list_models() if get_variant(n).shipped_weights and get_variant(n).head is None]
    with new_file(output, overwrite=overwrite) as path, tempfile.TemporaryDirectory() as scratch:
        rows = []
        for name in names:
            rows += measure_precisions(name, seconds, threads or usable_cpus(), Path(scratch))
            write_csv(rows, path)
    console.print(_table(rows))
    say(f"rows: {output}")


def _table(rows: Sequence[PrecisionRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "setting", "layers", "top-1 %", "drop", "agree %", "SQNR dB", "MB", "img/s", "RTX", "fused"):
        table.add_column(title, justify="left" if title in ("model", "setting", "RTX") else "right")
    for r in rows:
        table.add_row(
            r.model.removeprefix("faster_vit_"),
            r.setting,
            str(r.quantised_layers),
            f"{100 * r.top1:.2f} ({100 * r.top1_low:.1f}-{100 * r.top1_high:.1f})",
            f"{r.drop_points:+.2f} ({r.drop_low:+.2f} to {r.drop_high:+.2f})",
            f"{100 * r.agreement_fp32:.2f}",
            f"{r.sqnr_db:.1f}",
            f"{r.onnx_bytes / 1e6:.2f}",
            f"{r.ort_cpu_img_per_s:.0f}" + ("" if r.speed_is_meaningful else " (emulated)"),
            r.rtx_built,
            "" if r.rtx_attentions_fused is None else f"{r.rtx_attentions_fused}/{r.rtx_attentions}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.precisions``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
