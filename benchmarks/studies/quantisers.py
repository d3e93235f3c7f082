"""What other quantisers make of this project's graphs: ``python -m fastervit_trt.benchmarks.studies.quantisers``.

Trained models are exported and quantised to INT8 and FP8 by ONNX Runtime's quantiser, by ModelOpt (which needs an
interpreter of its own: ``--modelopt-python``) and by this project, on the same layers. In go the shipped digits models,
and images of the part they were trained on for calibration. Out comes a row per graph and setting: whether it works and
why not, what is quantised and what should not have been, what is left of names and functions, accuracy on the held-out
images in ONNX Runtime, and what TensorRT-RTX builds of it. Needs no GPU.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer

from fastervit_trt.accuracy import accuracy_from_logits, signal_to_noise_db
from fastervit_trt.artifacts import new_file, write_csv
from fastervit_trt.benchmarks.studies.quantisers_graph import (
    excluded_nodes,
    largest_inputs,
    logits,
    quantise,
    structure,
)
from fastervit_trt.console import command_app, run_command, say
from fastervit_trt.engine_choice import EngineChoice
from fastervit_trt.engines.kernels import Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import INPUT
from fastervit_trt.export.precision import get_float
from fastervit_trt.host import versions
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.preprocessing import preprocess_image
from fastervit_trt.models.source import pretrained_source
from fastervit_trt.workflow import ExportRequest, export_model

__all__ = ["QuantiserRow", "Setting", "main"]

app = command_app()

_BATCH = BatchRange.parse("1:8:32")
_FP8 = {"activation_type": "QFLOAT8E4M3FN", "weight_type": "QFLOAT8E4M3FN"}
_ORT_EXTRA = {
    "ActivationSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
    "DedicatedQDQPair": True,
}
_ORT_CONSIDERED = {"op_types_to_quantize": ["Conv", "Gemm"], "per_channel": True, "extra_options": _ORT_EXTRA}
_MODELOPT_CONSIDERED = {
    "op_types_to_quantize": ["Conv", "Gemm"],
    "nodes_to_exclude": [r"patch_embed\..*", "head/.*"],
    "disable_mha_qdq": True,
    "high_precision_dtype": "fp32",  # leave the graph in its type
    "calibration_shapes": f"{INPUT}:32x3x224x224",
}


@dataclass(frozen=True)
class Setting:
    """One way to quantise; ``options`` are arguments of the tool's own function."""

    tool: str  # "none", "fastervit-trt", "ort" or "modelopt"
    name: str  # "defaults", "considered", or "outside ranges": considered, with this project's ranges
    kind: str  # "int8" or "fp8"
    calibrator: str
    options: dict[str, Any] = field(default_factory=dict)


def _settings() -> Iterator[Setting]:
    yield Setting("none", "", "", "")
    for kind in ("int8", "fp8"):
        yield Setting("fastervit-trt", "considered", kind, "max")
        types = _FP8 if kind == "fp8" else {}
        calibrators = ("Distribution",) if kind == "fp8" else ("MinMax", "Entropy", "Percentile")
        yield Setting("ort", "defaults", kind, calibrators[0], {**types, "calibrate_method": calibrators[0]})
        for method in calibrators:
            yield Setting("ort", "considered", kind, method, {**_ORT_CONSIDERED, **types, "calibrate_method": method})
        yield Setting("ort", "outside ranges", kind, "max", {**_ORT_CONSIDERED, **types})
        yield Setting("modelopt", "defaults", kind, "entropy", {"quantize_mode": kind})
        for method in ("max", "entropy"):
            options = {**_MODELOPT_CONSIDERED, "quantize_mode": kind, "calibration_method": method}
            yield Setting("modelopt", "considered", kind, method, options)


@dataclass(frozen=True)
class QuantiserRow:
    """One graph, quantised one way. Shares are in [0, 1]; None where a failure left nothing to measure."""

    model: str
    graph: str  # type of the graph that was quantised
    form: str  # "functions" (the default export) or "flat"
    tool: str
    setting: str
    kind: str
    calibrator: str
    failure: str = ""  # of the quantiser, or of ONNX Runtime on what it wrote
    seconds: float | None = None  # of quantising, calibration included
    peak_rss_mib: int | None = None  # of the process that did it; None: this one did
    file_bytes: int | None = None
    opset: int | None = None
    matrix_nodes: int | None = None  # Conv, Gemm and MatMul in the graph and, once each, in its functions
    conv: int | None = None  # of them with both inputs quantised
    gemm: int | None = None
    matmul: int | None = None
    per_channel: int | None = None  # weights with a scale per channel
    wide_weights: int | None = None  # weights stored in floating point, with a QuantizeLinear in the graph
    stray: str | None = None  # "Add:5 Gelu:2": other operators that read a DequantizeLinear
    int32_biases: int | None = None
    names_kept: float | None = None  # share of the source's node names
    blocks_kept: float | None = None  # share of the source's nodes still with the metadata of their block
    functions: int | None = None
    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    agreement_fp32: float | None = None  # share of images with the top-1 of the fp32 graph
    non_finite_logits: int | None = None
    sqnr_db: float | None = None  # of the logits, against the fp32 graph's
    sm89_attention: int | None = None  # attentions that are one kernel in the TensorRT-RTX plan
    sm89_launches: int | None = None
    sm89_refusal: str = ""
    sm120_attention: int | None = None
    sm120_launches: int | None = None
    sm120_refusal: str = ""
    tool_version: str = ""
    onnxruntime: str = ""  # that ran the result
    tensorrt_rtx: str = ""
    timestamp_utc: str = ""


def _quantise(setting: Setting, job: dict[str, Any], python: str) -> dict[str, Any]:
    """The worker's answer; a failure is part of it."""
    worker = Path(__file__).with_name("quantisers_worker.py")
    result = subprocess.run([python, str(worker)], input=json.dumps(job), capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(result.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failure": f"{setting.tool} ended with code {result.returncode}: {last[:300]}"}


def _engine(path: Path, capability: str, scratch: Path) -> dict[str, Any]:
    target = RtxTarget.parse(capability)
    try:
        engine = build_rtx_engine(path, scratch / "plan", target, _BATCH, INPUT, (3, 224, 224))
    except FasterViTError as error:
        return {f"{target.sm}_refusal": str(error).removesuffix("; skip engines with --compute-capability none")}
    kernels = plan_kernels(engine.path)
    return {f"{target.sm}_attention": kernels.count(Kind.ATTENTION), f"{target.sm}_launches": kernels.launches}


def _measure(model: str, graph: str, form: str, setting: Setting, lab: Lab, python: str) -> QuantiserRow:
    source, result = lab.scratch / "source.onnx", lab.scratch / "quantised.onnx"
    shutil.copyfile(lab.graphs[model, graph, form], source)  # ModelOpt writes shapes into the file it is given
    result.unlink(missing_ok=True)
    facts: dict[str, Any] = {}
    options = dict(setting.options)
    if setting.name != "defaults" and setting.tool == "ort":
        options["nodes_to_exclude"] = excluded_nodes(source)
    job = {"tool": setting.tool, "source": str(source), "target": str(result), "options": options}
    job["calibration"] = str(lab.scratch / "calibration.npy")
    if setting.tool == "none":
        result = source
    elif setting.tool == "fastervit-trt":
        start = time.perf_counter()
        quantise(source, result, setting.kind, largest_inputs(source, lab.calibration, lab.scratch))
        facts = {"seconds": round(time.perf_counter() - start, 1), "version": versions()["fastervit-trt"]}
    else:
        if setting.name == "outside ranges":
            job["ranges"] = largest_inputs(source, lab.calibration, lab.scratch)
        facts = _quantise(setting, job, python)
    facts["tool_version"] = facts.pop("version", "")
    if not facts.get("failure"):
        facts |= structure(source, result) | lab.accuracy(model, result)
        for capability in ("8.9", "12.0"):
            facts |= _engine(result, capability, lab.scratch)
    facts = {key: _without_folders(value) for key, value in facts.items()}
    return QuantiserRow(
        model=model,
        graph=graph,
        form=form,
        tool=setting.tool,
        setting=setting.name,
        kind=setting.kind,
        calibrator=setting.calibrator,
        onnxruntime=versions()["onnxruntime"],
        tensorrt_rtx=versions()["tensorrt-rtx"],
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
    )


def _without_folders(value: Any) -> Any:
    """Messages name temporary files; a row keeps no path of the machine."""
    return re.sub(r"(?<![\w:])/\S*/", "", value) if isinstance(value, str) else value


class Lab:
    """Exports, images and reference logits in a scratch folder."""

    def __init__(self, scratch: Path, models: Sequence[str], graphs: Sequence[tuple[str, str]], images: int) -> None:
        self.scratch = scratch
        self.graphs: dict[tuple[str, str, str], Path] = {}
        how = get_variant(models[0]).preprocessing  # the digits models share theirs
        (train, _), (held_out, self.labels) = load_digits_split("train"), load_digits_split("held_out")
        self.calibration = np.stack([preprocess_image(picture, how, (224, 224)) for picture in train[:images]])
        self.held_out = np.stack([preprocess_image(picture, how, (224, 224)) for picture in held_out])
        np.save(scratch / "calibration.npy", self.calibration)
        for model in models:
            for graph, form in dict.fromkeys([*graphs, ("fp32", "functions")]):
                folder, weights = scratch / f"{model}-{graph}-{form}", pretrained_source(model)
                inline = form == "flat"
                export_model(
                    ExportRequest(
                        ModelSpec(model), weights, get_float(graph), _BATCH, EngineChoice(()), folder, inline=inline
                    )
                )
                self.graphs[model, graph, form] = folder / "model.onnx"
        self.reference = {model: logits(self.graphs[model, "fp32", "functions"], self.held_out) for model in models}

    def accuracy(self, model: str, path: Path) -> dict[str, Any]:
        """Of a quantised graph on the held-out images."""
        reference = self.reference[model]
        try:
            found = logits(path, self.held_out)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            return {"failure": f"ONNX Runtime: {' '.join(str(error).split())[:300]}"}
        score = accuracy_from_logits(found, self.labels, reference)
        return {
            "top1": round(score.top1, 4),
            "top1_low": round(score.low, 4),
            "top1_high": round(score.high, 4),
            "agreement_fp32": score.agreement and round(score.agreement, 4),
            "non_finite_logits": score.non_finite,
            "sqnr_db": round(signal_to_noise_db(reference, found), 2),
        }


@app.command()
def quantisers_command(
    model: Annotated[list[str] | None, typer.Option(help="Digits model; all three by default.")] = None,
    modelopt_python: Annotated[Path | None, typer.Option(help="Interpreter that has nvidia-modelopt[onnx].")] = None,
    graph: Annotated[str, typer.Option(help="Graphs to quantise, e.g. fp16,fp32.")] = "fp16,fp32",
    form: Annotated[str, typer.Option(help="functions, flat, or both.")] = "functions,flat",
    only: Annotated[str | None, typer.Option(help="Only defaults, considered or outside ranges.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only fastervit-trt, ort or modelopt.")] = None,
    images: Annotated[int, typer.Option(help="Images to calibrate with.")] = 512,
    output: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("rows.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Quantise the digits models with ONNX Runtime's quantiser and ModelOpt, and say what comes of it."""
    names = model or [f"faster_vit_digits_{size}" for size in "sml"]
    pythons = {"ort": sys.executable, "modelopt": str(modelopt_python or "")}
    chosen = [s for s in _settings() if only in (None, s.name) and tool in (None, s.tool)]
    settings = [s for s in chosen if modelopt_python or s.tool != "modelopt"]
    rows: list[QuantiserRow] = []
    with tempfile.TemporaryDirectory() as scratch:
        graphs = [(typed, shape) for typed in graph.split(",") for shape in form.split(",")]
        lab = Lab(Path(scratch), names, graphs, images)
        for name, (typed, shape), setting in product(names, graphs, settings):
            row = _measure(name, typed, shape, setting, lab, pythons.get(setting.tool, ""))
            rows.append(row)
            say(" ".join(str(getattr(row, f.name)) for f in fields(row) if getattr(row, f.name) not in (None, "")))
            with new_file(output, overwrite=overwrite or len(rows) > 1) as path:
                write_csv(rows, path)  # after every row, so that an interruption loses one
    say(f"rows: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.quantisers``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
