"""What int8 gives on this CPU in ONNX Runtime over the best float32: ``-m …benchmarks.studies.cpu_int8``.

Models with random weights in, one row per model and path out: ``export``, ``attention`` and ``openvino`` in float32 as
in ``cpu_paths``; ``qdq``, the int8 graph as it is written for TensorRT but float32 elsewhere; ``int8``, the form of it
for ONNX Runtime's CPU provider. All in one process on the same images, in rounds of short slices in turn; ratios are
taken within a round. Ranges come from 32 random images: random weights have no pictures to be faithful to, and what a
range is changes no time. A float32 path has to yield PyTorch's logits, a quantised one logits as near as 8 bits come.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import onnx_ir as ir
import torch
import typer
from rich.table import Table
from torch import nn

from fastervit_trt.artifacts import new_folder, write_csv
from fastervit_trt.benchmarks.rows import ROWS_NAME, write_rows
from fastervit_trt.benchmarks.studies.cpu_int8_profile import Int8ProfileRow, profile_int8
from fastervit_trt.benchmarks.studies.cpu_paths_report import draw_bars, draw_panels, number, print_notes, print_profile
from fastervit_trt.benchmarks.studies.cpu_rows import TimedRow, context_columns, timed_columns
from fastervit_trt.benchmarks.studies.cpu_runners import RUNNERS, SETTINGS, Runner, Workload, make_workload, save_flat
from fastervit_trt.benchmarks.studies.cpu_turns import (
    PathResult,
    load_average,
    no_float32,
    open_path,
    ratio,
    take_turns,
)
from fastervit_trt.console import command_app, console, run_command, say, step, track
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import Fp32, Int8, Int8Cpu, Quantised
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.operands import left_out
from fastervit_trt.export.quantisation.plan import plan_precision
from fastervit_trt.export.quantisation.ranges import CalibrationKey, Ranges
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.factory import ModelSpec

__all__ = ["LEAST_DB", "PATHS", "Calibrated", "Int8Row", "Measured", "main", "measure_model"]

app = command_app()

# Sound graphs of FasterViT-0, -1 and the digits models with random weights reach 34 to 39 dB. One layer of FasterViT-0
# with an eighth of its range yields 15 to 21, one with its weights shuffled 8 to 13; carriers' layers hide theirs.
LEAST_DB = 25.0
CALIBRATION_IMAGES = 32
CHART_NAME, PROFILE_NAME = "cpu-int8.png", "profile.csv"
_BATCH, _SEED = 8, 1  # of the images to calibrate with; those that are timed have seed 0
_MIN_ROUNDS = 5
_MODELS = ["faster_vit_0_224", "faster_vit_1_224"]
_ORT_FP32 = ("export", "attention")
_QUANTISED: dict[str, Quantised] = {"qdq": Int8(base=Fp32()), "int8": Int8Cpu()}
_SETTINGS = {
    **SETTINGS,
    "qdq": "int8 as for TensorRT, base fp32, ONNX Runtime",
    "int8": "int8 in ONNX Runtime's CPU form",
}
_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")  # products of 8-bit integers


@dataclass(frozen=True)
class Calibrated:
    """A deploy form in fp32 and the ranges of its activations."""

    deployed: nn.Module
    ranges: Ranges


@dataclass(frozen=True)
class Int8Row(TimedRow):
    """A path beside the best float32 of ONNX Runtime and beside OpenVINO. p20 and p80 of ratios are over rounds."""

    int8_instructions: str  # that the CPU has
    best_fp32: str | None  # the path of ONNX Runtime in float32 with the lower median
    throughput_over_fp32: float | None  # over that path
    throughput_over_fp32_p20: float | None
    throughput_over_fp32_p80: float | None
    throughput_over_openvino: float | None
    throughput_over_openvino_p20: float | None
    throughput_over_openvino_p80: float | None
    sqnr_db: float | None  # of the logits, against PyTorch float32
    calibration_images: int  # random ones; 0: not quantised
    onnx_bytes: int | None  # of the graph that the path runs, without weights that lie beside it, from 1 GB on
    rounds: int
    samples: int
    cpu: str
    load_before: float | None
    os: str
    fastervit_trt: str
    python: str
    torch: str
    onnxruntime: str
    openvino: str | None
    timestamp_utc: str


@dataclass(frozen=True)
class Measured:
    """One model on every path."""

    rows: list[Int8Row]
    profile: list[Int8ProfileRow]


def measure_model(name: str, batch: int, seconds: float, threads: int, *, profile: bool = False) -> Measured:
    """Every path of one model with random weights.

    Args:
        seconds: timed per path.
        profile: also of the CPU form, if it may be timed.

    Raises:
        FasterViTError: unknown model, or its export or calibration fails.
    """
    torch.set_num_threads(threads)
    load = load_average()
    with tempfile.TemporaryDirectory() as scratch:
        work = make_workload(name, batch, threads, Path(scratch))
        calibrated = _calibrate(name, work)
        with torch.inference_mode():
            reference = work.model(torch.from_numpy(work.images)).numpy()
        paths = [
            open_path(path, partial(prepare, work, calibrated), reference, _refuse)
            for path, prepare in track(list(PATHS.items()), f"{name}: opening paths")
        ]
        take_turns(paths, seconds, max(_MIN_ROUNDS, round(seconds)), f"{name}: timing in turns")
        rows = [_row(name, work, path, paths, load) for path in paths]
        profiled = profile and any(row.path == "int8" and row.timed for row in rows)
        return Measured(rows, _profile(name, work, calibrated) if profiled else [])


def _calibrate(name: str, work: Workload) -> Calibrated:
    deployed, _ = deploy_form(work.model)
    generator, shape = np.random.default_rng(_SEED), (_BATCH, *work.images.shape[1:])
    batches = [generator.standard_normal(shape, np.float32) for _ in range(CALIBRATION_IMAGES // _BATCH)]
    key = CalibrationKey(name, "", "", "", "", CALIBRATION_IMAGES)
    with step(f"{name}: calibrating on {CALIBRATION_IMAGES} random images"):
        return Calibrated(deployed, calibrate(deployed, batches, key))


def _float32(name: str, work: Workload, calibrated: Calibrated) -> Runner:
    return RUNNERS[name](work)


def _quantised(name: str, work: Workload, calibrated: Calibrated) -> Runner:
    """From the exported float32 graph, by the same rewrite that an export in int8 goes through."""
    graph, folder = ir.load(work.graph), _graph_of(name, work).parent
    plan_precision(_QUANTISED[name], calibrated.deployed, calibrated.ranges).rewrite(graph)
    folder.mkdir(exist_ok=True)
    session = OnnxCpuSession(save_onnx(graph, folder)[0], work.threads)
    return lambda: session(work.images)[0]


PATHS: dict[str, Callable[[Workload, Calibrated], Runner]] = {
    **{name: partial(_float32, name) for name in (*_ORT_FP32, "openvino")},
    **{name: partial(_quantised, name) for name in _QUANTISED},
}


def _graph_of(path: str, work: Workload) -> Path:
    """The file that a path runs."""
    graphs = {"export": work.graph, "attention": work.scratch / "attention.onnx", "openvino": work.flat}
    return graphs.get(path, work.scratch / path / "model.onnx")


def _refuse(path: PathResult) -> str:
    if path.name not in _QUANTISED:
        return no_float32(path)
    if path.sqnr_db is None:
        return "its logits are not finite"
    if path.sqnr_db < LEAST_DB:
        return f"the SQNR of its logits is {path.sqnr_db:.1f} dB, that of a sound graph over {LEAST_DB:.0f}"
    return ""


def _profile(name: str, work: Workload, calibrated: Calibrated) -> list[Int8ProfileRow]:
    with step(f"{name}: profile of the CPU form"):
        flat = save_flat(_graph_of("int8", work), work.scratch / "int8-flat")
        return profile_int8(name, flat, work.images, work.threads, left_out(calibrated.deployed))


def _row(name: str, work: Workload, path: PathResult, paths: Sequence[PathResult], load: float | None) -> Int8Row:
    best, openvino = _best_fp32(paths), [p for p in paths if p.name == "openvino"]
    over_fp32 = ratio(best.rounds if best else [], path.rounds)
    over_openvino = ratio(openvino[0].rounds if openvino else [], path.rounds)
    graph = _graph_of(path.name, work)
    resolution = work.model.config.resolution
    return Int8Row(
        **timed_columns(path, _SETTINGS[path.name], name, len(work.images), resolution, work.threads),
        int8_instructions=_int8_instructions(),
        best_fp32=best.name if best else None,
        throughput_over_fp32=over_fp32[0],
        throughput_over_fp32_p20=over_fp32[1],
        throughput_over_fp32_p80=over_fp32[2],
        throughput_over_openvino=over_openvino[0],
        throughput_over_openvino_p20=over_openvino[1],
        throughput_over_openvino_p80=over_openvino[2],
        sqnr_db=path.sqnr_db,
        calibration_images=CALIBRATION_IMAGES if path.name in _QUANTISED else 0,
        onnx_bytes=graph.stat().st_size if graph.is_file() else None,
        **context_columns(path, load),
    )


def _best_fp32(paths: Sequence[PathResult]) -> PathResult | None:
    timed = [(path.timer.latency_ms(50), path) for path in paths if path.name in _ORT_FP32 and path.timer]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None


def _int8_instructions(info: Path = Path("/proc/cpuinfo")) -> str:
    """Of :data:`_INSTRUCTIONS` those that the CPU reports; whether ONNX Runtime uses them is its choice."""
    if not info.is_file():
        return "unknown"
    flags = {
        flag
        for line in info.read_text().splitlines()
        if line.startswith(("flags", "Features"))
        for flag in line.split()
    }
    return " ".join(name for name in _INSTRUCTIONS if name in flags) or "none"


def _print_rows(rows: Sequence[Int8Row]) -> None:
    """One line per path; what was not timed says why below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "path", "ms", "img/s", "over fp32", "p20..p80", "over OpenVINO", "SQNR dB", "MB"):
        table.add_column(column, justify="left" if column in ("model", "path") else "right", no_wrap=True)
    for row in rows:
        spread = f"{number(row.throughput_over_fp32_p20)}..{number(row.throughput_over_fp32_p80)}" if row.timed else ""
        cells = (number(row.latency_ms, 1), number(row.throughput_img_per_s, 1), number(row.throughput_over_fp32))
        size = None if row.onnx_bytes is None else row.onnx_bytes / 1e6
        rest = (spread, number(row.throughput_over_openvino), number(row.sqnr_db, 1), number(size, 1))
        table.add_row(row.model, row.path, *(cells if row.timed else (row.status, "", "")), *rest)
    console.print(table)
    say(f"8-bit instructions of this CPU: {rows[0].int8_instructions}")
    print_notes(rows, rows[0].load_before)


def _draw_panel(axes: object, rows: Sequence[Int8Row]) -> None:
    title = f"{rows[0].model}, batch {rows[0].batch}, {rows[0].threads} threads; blue: int8"
    draw_bars(axes, rows, _QUANTISED, title)


@app.command()
def int8_command(
    model: Annotated[list[str] | None, typer.Option(help="Variant; can be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.01, help="Timed per path.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable by default.")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("cpu-int8"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier folder.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the CPU form spends its time.")] = False,
) -> None:
    """Time int8 in ONNX Runtime on this CPU in turns with float32, and say how far its logits are off."""
    names = list(dict.fromkeys(model or _MODELS))
    for name in names:
        ModelSpec(name).config()  # an unknown name fails before the first minutes are spent
    with new_folder(output, overwrite=overwrite, marker=ROWS_NAME) as folder:
        measured = [measure_model(n, batch, seconds, threads or usable_cpus(), profile=profile) for n in names]
        rows = [row for m in measured for row in m.rows]
        shares = [row for m in measured for row in m.profile]
        write_rows(rows, folder)
        if shares:
            write_csv(shares, folder / PROFILE_NAME)
        with step("drawing the chart"):
            draw_panels(rows, folder / CHART_NAME, _draw_panel)
    print_profile(
        [replace(row, name=row.name if row.grouping == "type" else f"{row.name} ({row.type})") for row in shares]
    )
    _print_rows(rows)
    say(f"rows and chart: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.cpu_int8``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
