"""How long each variant takes to export and how much memory: ``-m fastervit_trt.benchmarks.studies.export_scale``.

Every export is the command itself in a process of its own (random weights); exports are deleted once measured. Time is
wall clock of the whole process; memory is the largest resident set of the exporting process, and of the process that
builds the engine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, NoReturn

import psutil
import typer
from rich.table import Table

from fastervit_trt.artifacts import Manifest, new_file, write_csv
from fastervit_trt.console import command_app, console, run_command, say, track
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import cpu_name, usable_cpus, versions
from fastervit_trt.models.factory import get_variant, list_models, resolve_config

__all__ = ["ExportScaleRow", "main", "measure_export"]

app = command_app()

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ExportScaleRow:
    """What exporting one variant took."""

    model: str
    precision: str
    resolution: str
    parameters: int  # of the deploy form
    nodes: int
    seconds: float  # whole process, imports, verification and engine included
    peak_rss_mib: int  # of the exporting process
    engine_peak_rss_mib: int | None  # of the builder's process, beside the exporting one
    both_peak_rss_mib: int  # largest sum of the two at one moment
    onnx_mb: float
    engine_mb: float | None
    worst_share_of_budget: float
    cpu: str
    cpus: int
    torch: str
    onnxruntime: str
    tensorrt_rtx: str | None
    timestamp_utc: str


def measure_export(model: str, precision: str, compute_capability: str) -> ExportScaleRow:
    """Export ``model`` once, with random weights, and say what it took.

    Raises:
        FasterViTError: the export failed; the message is the command's own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        command = [sys.executable, "-m", "fastervit_trt.cli.export", "--model", model, "--random-init"]
        command += ["--precision", precision, "--compute-capability", compute_capability, "--output", str(folder)]
        seconds, peak, both = _run(command)
        manifest, installed = Manifest.read(folder), versions()
    engine = manifest.engines[0] if manifest.engines else None
    onnx_bytes = sum(entry["bytes"] for name, entry in manifest.files.items() if name.startswith("model.onnx"))
    return ExportScaleRow(
        model=model,
        precision=precision,
        resolution="x".join(str(side) for side in resolve_config(model).resolution),
        parameters=manifest.graph["deploy"]["parameters_after"],
        nodes=manifest.graph["fusion"]["nodes"],
        seconds=round(seconds, 1),
        peak_rss_mib=peak,
        engine_peak_rss_mib=engine["build_peak_rss_mib"] if engine else None,
        both_peak_rss_mib=both,
        onnx_mb=round(onnx_bytes / 1e6, 1),
        engine_mb=round(manifest.files[engine["file"]]["bytes"] / 1e6, 1) if engine else None,
        worst_share_of_budget=round(manifest.verification["share_of_budget"], 3),
        cpu=cpu_name(),
        cpus=usable_cpus(),
        torch=installed["torch"],
        onnxruntime=installed.get("onnxruntime", ""),
        tensorrt_rtx=installed.get("tensorrt-rtx"),
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _run(command: Sequence[str]) -> tuple[float, int, int]:
    """Wall seconds, peak of the process, and peak of the process with its children, in MiB."""
    start, own, both = time.perf_counter(), 0, 0
    with (
        tempfile.TemporaryFile("w+") as err,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, text=True) as child,
    ):
        process = psutil.Process(child.pid)
        while child.poll() is None:
            sizes = [_rss_mib(p) for p in (process, *_children(process))]
            own, both = max(own, sizes[0]), max(both, sum(sizes))
            time.sleep(_POLL_SECONDS)
        if child.returncode:
            err.seek(0)
            raise FasterViTError((err.read().strip().splitlines() or ["no message"])[-1].removeprefix("error: "))
    return time.perf_counter() - start, own, both


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children())
    except psutil.NoSuchProcess:
        return []


def _rss_mib(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss // 2**20)
    except psutil.NoSuchProcess:
        return 0


@app.command()
def scale_command(
    model: Annotated[list[str] | None, typer.Option(help="Variant; all published fixed ones by default.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp16",
    compute_capability: Annotated[str, typer.Option(help="TensorRT-RTX engine to build, or none.")] = "8.9",
    output: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("export-scale.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Export variants one by one and write a table of time and memory."""
    published = (name for name in list_models() if get_variant(name).shipped_weights is None)
    names = model or [name for name in published if "any_res" not in name]
    rows: list[ExportScaleRow] = []
    for name in track(names, "exporting"):
        rows.append(measure_export(name, precision, compute_capability))
        # after every row, so that an interruption loses one export and not an hour
        with new_file(output, overwrite=overwrite or len(rows) > 1) as path:
            write_csv(rows, path)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "parameters", "seconds", "peak MiB", "with builder MiB", "ONNX MB", "engine MB"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        sizes = (row.seconds, row.peak_rss_mib, row.both_peak_rss_mib, row.onnx_mb, row.engine_mb or "")
        table.add_row(row.model, f"{row.parameters:,}", *(str(value) for value in sizes))
    console.print(table)
    say(f"rows: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.export_scale``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
