"""How fast the export runs on this CPU beside every other way, and how near the floor: ``-m …studies.cpu_paths``.

All paths and the floor (every matrix product of the model at its fastest, alone and warm) run in one process on the
same images with the same number of threads, in rounds of short slices in turn. Only ratios taken within a round are
compared: the speed of a machine drifts by more between minutes than the paths differ. No path is timed whose logits
are not those of PyTorch float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer

from fastervit_trt.artifacts import new_folder, write_csv
from fastervit_trt.benchmarks.rows import ROWS_NAME, write_rows
from fastervit_trt.benchmarks.studies.cpu_paths_report import draw_paths, print_paths, print_profile
from fastervit_trt.benchmarks.studies.cpu_profile import ProfileRow, profile_graph
from fastervit_trt.benchmarks.studies.cpu_rows import Turns, floor_rows, path_rows
from fastervit_trt.benchmarks.studies.cpu_runners import RUNNERS, Workload, make_workload
from fastervit_trt.benchmarks.studies.cpu_turns import PathResult, load_average, no_float32, open_path, take_turns
from fastervit_trt.benchmarks.studies.gemm_peak import Floor, find_floor
from fastervit_trt.benchmarks.studies.gemm_sizes import gemm_sizes
from fastervit_trt.console import command_app, run_command, say, step, track
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.factory import ModelSpec

__all__ = ["Measured", "main", "measure_model"]

app = command_app()

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
    load = load_average()
    with tempfile.TemporaryDirectory() as scratch:
        work = make_workload(name, batch, threads, Path(scratch))
        with torch.inference_mode():
            reference = work.model(torch.from_numpy(work.images)).numpy()
        paths = [
            open_path(path, partial(prepare, work), reference, no_float32)
            for path, prepare in track(list(RUNNERS.items()), f"{name}: opening paths")
        ]
        floor = find_floor(gemm_sizes(work.flat), threads, min(_CHOICE_SECONDS, seconds / 100))
        floors = _take_turns(paths, floor, seconds, f"{name}: timing in turns")
        turns = Turns(name, batch, work.model.config.resolution, threads, load, paths, floor, floors)
        return Measured(turns, _profile(name, work) if profile else [])


def _take_turns(paths: Sequence[PathResult], floor: Floor, seconds: float, description: str) -> list[float]:
    """Time every path and the floor in rounds; seconds of the floor per round."""
    floors: list[float] = []
    rounds = max(_MIN_ROUNDS, round(seconds))
    take_turns(paths, seconds, rounds, description, lambda: floors.append(floor.sweep()))
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
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.cpu_paths``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
