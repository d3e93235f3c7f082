"""How fast the export runs on this CPU beside every other way, and how near the floor: ``-m …benchmarks.cpu_paths``.

All paths and the floor (every matrix product of the model at its fastest, alone and warm) run in one process on the
same images with the same number of threads, in rounds of short slices in turn. Only ratios taken within a round are
compared: the speed of a machine drifts by more between minutes than the paths differ. No path is timed whose logits
are not those of PyTorch float32.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import onnx_ir as ir
import torch
import typer

from fastervit_trt.artifacts import new_folder, write_csv
from fastervit_trt.benchmarks.cpu_paths_report import draw_paths, print_paths, print_profile
from fastervit_trt.benchmarks.cpu_profile import ProfileRow, profile_graph
from fastervit_trt.benchmarks.cpu_rows import PathResult, Turns, floor_rows, path_rows
from fastervit_trt.benchmarks.cpu_runners import RUNNERS, MissingPackageError, Runner, Workload
from fastervit_trt.benchmarks.gemm_peak import Floor, find_floor, park
from fastervit_trt.benchmarks.gemm_sizes import gemm_sizes
from fastervit_trt.benchmarks.plain import random_model
from fastervit_trt.benchmarks.rows import ROWS_NAME, write_rows
from fastervit_trt.benchmarks.timing import Timer
from fastervit_trt.console import command_app, run_command, say, step, track
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.functions import inline_functions
from fastervit_trt.export.onnx_graph import save_onnx
from fastervit_trt.export.pipeline import export_graph
from fastervit_trt.export.precision import get_float
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.factory import ModelSpec

__all__ = ["TOLERANCE", "Measured", "main", "measure_model"]

app = command_app()

# Of the largest logit. Float32 sums in another order differ by 1e-6, bfloat16 by 7e-3.
TOLERANCE = 1e-3
_MIN_ROUNDS = 5
_CHOICE_SECONDS = 0.05  # for each implementation of a matrix size, to find the fastest
_MODELS = ["faster_vit_0_224", "faster_vit_1_224"]


@dataclass(frozen=True)
class Measured:
    """One model on every path."""

    turns: Turns
    profile: list[ProfileRow]


def measure_model(name: str, batch: int, seconds: float, threads: int, *, profile: bool = False) -> Measured:
    """Every path of one model with random weights, and the floor under them.

    Args:
        seconds: timed per path.

    Raises:
        FasterViTError: unknown model, or the export, against which all is measured, fails.
    """
    torch.set_num_threads(threads)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as scratch:
        work = _workload(name, batch, threads, Path(scratch))
        with torch.inference_mode():
            reference = work.model(torch.from_numpy(work.images)).numpy()
        paths = [_open(path, work, reference) for path in track(list(RUNNERS), f"{name}: opening paths")]
        floor = find_floor(gemm_sizes(work.flat), threads, min(_CHOICE_SECONDS, seconds / 100))
        floors = _take_turns(paths, floor, seconds, f"{name}: timing in turns")
        turns = Turns(name, batch, work.model.config.resolution, threads, load, paths, floor, floors)
        return Measured(turns, _profile(name, work) if profile else [])


def _workload(name: str, batch: int, threads: int, scratch: Path) -> Workload:
    exported = export_graph(
        lambda: random_model(name),
        get_float("fp32"),
        BatchRange(batch, batch, batch),
        scratch,
        lambda text: step(f"{name}: {text}"),
    )
    model = random_model(name)
    shape = (batch, model.config.in_chans, *model.config.resolution)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    flat_folder = scratch / "flat"
    flat_folder.mkdir()
    flat = ir.load(exported.files[0])
    inline_functions(flat)
    (flat_path, *_) = save_onnx(flat, flat_folder)
    return Workload(model, images, exported.files[0], flat_path, scratch, threads)


def _open(name: str, work: Workload, reference: np.ndarray) -> PathResult:
    """The path, ready to be timed if it runs and computes what ``reference`` says."""
    try:
        runner = RUNNERS[name](work)
        error = _error(runner, reference)
    except MissingPackageError as missing:
        return PathResult(name, "skipped", str(missing))
    except FasterViTError as failure:
        return PathResult(name, "failed", str(failure))
    if not error <= TOLERANCE:
        return PathResult(
            name, "failed", f"its logits are not PyTorch's float32: off by {error:.1e} of the largest", error
        )
    return PathResult(name, "ok", error=error, timer=Timer(runner, len(work.images)))


def _error(runner: Runner, reference: np.ndarray) -> float:
    logits = runner()
    if logits.shape != reference.shape:
        raise FasterViTError(f"it yields {logits.shape}, PyTorch {reference.shape}")
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def _take_turns(paths: Sequence[PathResult], floor: Floor, seconds: float, description: str) -> list[float]:
    """Time every path and the floor in rounds; seconds of the floor per round."""
    floors: list[float] = []
    rounds = max(_MIN_ROUNDS, round(seconds))
    timed = [(path, path.timer) for path in paths if path.timer is not None]
    for _, timer in timed:
        timer.warm_up()
    for _ in track(range(rounds), description):
        for path, timer in timed:
            park()
            first = len(timer.samples)
            path.rounds.append(timer.slice(seconds / rounds))
            path.fastest.append(min(timer.samples[first:]))
        floors.append(floor.sweep())
    return floors


def _profile(name: str, work: Workload) -> list[ProfileRow]:
    with step(f"{name}: profile of the export"):
        return profile_graph(name, work.flat, work.images, work.threads)


@app.command()
def paths_command(
    model: Annotated[list[str] | None, typer.Option(help="Variant; can be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.01, help="Timed per path.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable by default.")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("cpu-paths"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier folder.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where ONNX Runtime spends its time.")] = False,
) -> None:
    """Time every way to run a model on this CPU in fp32, in turns with the floor of its matrix arithmetic."""
    names = list(dict.fromkeys(model or _MODELS))
    for name in names:
        ModelSpec(name).config()  # an unknown name fails before the first minutes are spent
    with new_folder(output, overwrite=overwrite, marker=ROWS_NAME) as folder:
        measured = [measure_model(n, batch, seconds, threads or usable_cpus(), profile=profile) for n in names]
        rows = [row for m in measured for row in path_rows(m.turns)]
        shares = [row for m in measured for row in m.profile]
        write_rows(rows, folder)
        write_csv([row for m in measured for row in floor_rows(m.turns)], folder / "floor.csv")
        if shares:
            write_csv(shares, folder / "profile.csv")
        with step("drawing the chart"):
            draw_paths(rows, folder)
    print_profile(shares)
    print_paths(rows)
    say(f"rows, floor and chart: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.cpu_paths``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
