"""``python -m fastervit_trt.cli.demo``: the main job from end to end, on a machine without a GPU.

First the digits models that ship with the package: each exported in fp32 and fp16, built into TensorRT-RTX engines, and
in int8 for this CPU; measured on the held-out digits, reported. One of them is packed into a bundle and installed from
it, verified on arrival. Then a full-size model: FasterViT-0, random weights, fp16, with its engine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fastervit_trt.benchmarks.bench import measure_and_report
from fastervit_trt.benchmarks.sweep.plan import AUTO, Options, Plan
from fastervit_trt.calibrating import CalibrationRequest
from fastervit_trt.cli.export import print_export
from fastervit_trt.cli.printing import print_rows
from fastervit_trt.console import command_app, console, run_command, say
from fastervit_trt.engine_choice import choose_engines
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import Fp16, Fp32, Int8Cpu, Precision
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.factory import ModelSpec, get_variant, list_models
from fastervit_trt.models.source import pretrained_source
from fastervit_trt.workflow import ExportRequest, export_model

__all__ = ["main"]

app = command_app()

_PRECISIONS: tuple[Precision, ...] = (Fp32(), Fp16(), Int8Cpu())
_FULL_SIZE = "faster_vit_0_224"


@app.command()
def demo_command(
    output: Annotated[Path, typer.Option(help="Folder for exports and report; earlier ones are replaced.")] = Path(
        "build/demo"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, help="Timed per cell, for latency and throughput each.")] = 2.0,
) -> None:
    """Export, build and measure the shipped models, then export FasterViT-0."""
    exports = []
    classifiers = (n for n in list_models() if get_variant(n).shipped_weights and get_variant(n).head is None)
    for name in classifiers:
        for precision in _PRECISIONS:
            folder = output / f"{name}-{precision.name}"
            _export(name, precision, folder)
            exports.append(folder)

    console.rule(f"measuring {len(exports)} exports on the held-out digits")
    report = output / "report"
    records = measure_and_report(_plan(exports, seconds), report, overwrite=True)
    console.rule("from an export to a verified installation")
    _deploy(exports[-1], output)
    console.rule(f"{_FULL_SIZE} fp16, random weights")
    _export_in_own_process(output / f"{_FULL_SIZE}-fp16")

    console.rule("result")
    print_rows([record.row for record in records])
    say(f"report:  {report / 'report.html'}")
    say(f"exports: {output}")


def _export(name: str, precision: Precision, folder: Path) -> None:
    console.rule(f"{name} {precision.name}")
    start = time.perf_counter()
    request = ExportRequest(
        model=ModelSpec(name),
        weights=pretrained_source(name),
        precision=precision,
        batch=BatchRange.parse("1:8:32"),
        engines=choose_engines("none" if isinstance(precision, Int8Cpu) else "auto", ["8.9"]),
        calibration=CalibrationRequest("digits"),
        output=folder,
        overwrite=True,
    )
    print_export(export_model(request), folder, time.perf_counter() - start)


def _plan(exports: Sequence[Path], seconds: float) -> Plan:
    return Plan(
        exports=tuple(map(str, exports)),
        wanted=(),
        backends=(AUTO,),
        batches=(1, 8),
        streams=(1,),
        options=Options(data="digits", seconds=seconds, threads=usable_cpus(), together=len(_PRECISIONS) * 3),
    )


def _deploy(export: Path, output: Path) -> None:
    """The commands themselves, in a process of its own each."""
    bundle = output / "bundle.tar.zst"
    for arguments in (
        ("pack", export, "--target", "cpu", "--output", bundle, "--overwrite"),
        ("install", bundle, "--output", output / "installed", "--overwrite"),
    ):
        command = [sys.executable, "-m", "fastervit_trt.cli.deploy", *map(str, arguments)]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(code)


def _export_in_own_process(folder: Path) -> None:
    """The command itself, so that the time and peak memory it prints are its own."""
    options = f"--model {_FULL_SIZE} --random-init --precision fp16 --overwrite --output".split()
    done = subprocess.run([sys.executable, "-m", "fastervit_trt.cli.export", *options, str(folder)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.cli.demo``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
