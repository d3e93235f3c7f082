"""Which calibrator keeps most of a trained model: signal to noise of the logits, model by model, type by type.

    python -m fastervit_trt.benchmarks.studies.calibrators --output calibrators.csv

Both the images to calibrate with and those to compare on are of the part the digits models were trained on, so that the
held-out part stays unseen by the choice of a default. Computed by the simulation that exports are verified against.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import torch
import typer
from torch import nn

from fastervit_trt.accuracy import signal_to_noise_db
from fastervit_trt.artifacts import new_file, write_csv
from fastervit_trt.console import command_app, run_command, say
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.precision import CALIBRATORS, Fp8, Fp32, Int8, Int8Cpu, Quantised
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.plan import PrecisionPlan, plan_precision
from fastervit_trt.export.quantisation.ranges import CalibrationKey
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.factory import ModelSpec, get_variant, list_models
from fastervit_trt.models.preprocessing import preprocess_image
from fastervit_trt.models.source import build_model, pretrained_source, resolve_source

__all__ = ["CalibratorRow", "main"]

app = command_app()

_CALIBRATION, _BATCH = 512, 32  # images
_COMPARED: int | None = None  # of the rest; None: all
_TYPES: dict[str, Quantised] = {"int8": Int8(base=Fp32()), "int8, CPU form": Int8Cpu(), "fp8": Fp8(base=Fp32())}


@dataclass(frozen=True)
class CalibratorRow:
    """One trained model with all its layers in one type, ranges chosen by one calibrator."""

    model: str
    type: str
    calibrator: str
    calibration_images: int
    images: int
    sqnr_db: float
    drop_points: float


def compare_calibrators(name: str) -> list[CalibratorRow]:
    """Every type and calibrator on one digits model."""
    model, _ = build_model(ModelSpec(name), resolve_source(pretrained_source(name)))
    deployed, _ = deploy_form(model)
    pictures, labels = load_digits_split("train")
    how = get_variant(name).preprocessing
    images = np.stack([preprocess_image(picture, how, model.config.resolution) for picture in pictures])
    seen, rest = images[:_CALIBRATION], images[_CALIBRATION:][:_COMPARED]
    labels = labels[_CALIBRATION:][:_COMPARED]
    ranges = calibrate(deployed, _batches(seen), CalibrationKey("", "", "", "", "", len(seen)))
    reference = _logits(deployed, rest, None)
    right = reference.argmax(1) == labels
    rows = []
    for kind, precision in _TYPES.items():
        for calibrator in CALIBRATORS.values():
            if calibrator == "entropy" and isinstance(precision, Fp8):
                continue
            plan = plan_precision(replace(precision, calibrator=calibrator), deployed, ranges)
            logits = _logits(deployed, rest, plan)
            drop = 100 * (float(right.mean()) - float((logits.argmax(1) == labels).mean()))
            noise = signal_to_noise_db(reference, logits)
            rows.append(CalibratorRow(name, kind, calibrator, len(seen), len(rest), round(noise, 2), round(drop, 3)))
            say(f"{name}, {kind}, {calibrator}: {noise:.1f} dB, drop {drop:.2f} points")
    return rows


@torch.inference_mode()
def _logits(model: nn.Module, images: np.ndarray, plan: PrecisionPlan | None) -> np.ndarray:
    with nullcontext() if plan is None else plan.simulation(model):
        return np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in _batches(images)])


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


@app.command()
def calibrators_command(
    model: Annotated[list[str] | None, typer.Option(help="Digits model; all three by default.")] = None,
    output: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("calibrators.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Compare calibrators on the trained models."""
    names = model or [n for n in list_models() if get_variant(n).shipped_weights and get_variant(n).head is None]
    with new_file(output, overwrite=overwrite) as path:
        write_csv([row for name in names for row in compare_calibrators(name)], path)
    say(f"rows: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.calibrators``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
