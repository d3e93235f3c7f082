"""``fastervit-bench``: exports → accuracy and speed of each file on each backend → rows, Pareto front, report.

``fastervit-bench FOLDER…`` and ``fastervit-bench --model …`` measure; ``report``, ``compare``, ``check`` read results.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from fastervit_trt.benchmarks.backends import BACKENDS
from fastervit_trt.benchmarks.bench import DEFAULT_OUTPUT, measure_and_report, merge_reports
from fastervit_trt.benchmarks.report import DEFAULT_TITLE
from fastervit_trt.benchmarks.sweep.estimate import spoken
from fastervit_trt.benchmarks.sweep.exporting import wanted_engines
from fastervit_trt.benchmarks.sweep.plan import AUTO, Options, Plan, WantedExport
from fastervit_trt.benchmarks.sweep.run import Forecast, forecast
from fastervit_trt.cli.bench_reports import check_command, compare_command, parse_share
from fastervit_trt.cli.bench_resolution import resolution_command
from fastervit_trt.cli.printing import print_rows
from fastervit_trt.console import command_app, console, run_command, say
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.factory import get_variant
from fastervit_trt.models.tasks.heads import TASKS, get_task

__all__ = ["main"]

app = command_app(
    help="Accuracy and speed of FasterViT exports, measured on the files that ship. Without a sub-command: measure.",
)

_MEASURE = "measure"
_CPU_FORM = "int8-cpu"  # as rows name int8 in the form for ONNX Runtime's CPU provider
_FLOATS = ("fp32", "fp16", "bf16")


@app.command(_MEASURE)
def measure_command(
    exports: Annotated[
        list[Path] | None, typer.Argument(help="Folders written by fastervit-export; or --model to make them.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Registered models to export first, comma-separated.")] = None,
    precision: Annotated[
        str, typer.Option(help="Of --model: fp32, fp16, bf16, int8, int8-cpu, fp8, comma-separated.")
    ] = "fp16",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of the one --model.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Published or shipped weights of --model.")] = False,
    random_init: Annotated[bool, typer.Option("--random-init", help="Random weights: speed only.")] = False,
    calibration_data: Annotated[str | None, typer.Option(help="Images for 8 bits: a folder, or digits.")] = None,
    resolution: Annotated[str | None, typer.Option(help="H or HxW of --model, comma-separated.")] = None,
    task: Annotated[
        str | None, typer.Option(help=f"Of --model: {', '.join(TASKS)}; what its weights are for by default.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help=f"{AUTO} (what runs an export fastest here), all, or of {', '.join(BACKENDS)}.")
    ] = AUTO,
    batch: Annotated[str, typer.Option(help="Images per batch, comma-separated.")] = "1,8",
    streams: Annotated[
        str, typer.Option(help="Batches under way at once while throughput is timed, comma-separated.")
    ] = "1",
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, or a folder with one sub-folder of images per class; for detection and segmentation scenes, "
            "or a folder as COCO's or ADE20K's; speed only without."
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Pictures of --data to draw what was found into, for detection and segmentation.")
    ] = 0,
    max_unreadable: Annotated[
        str, typer.Option(help="Share of the images that may be left out because they cannot be read (1% or 0.01).")
    ] = "1%",
    seconds: Annotated[float, typer.Option(min=0.1, help="Timed per cell, for latency and throughput each.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=2, help="Slices of that time, in which cells take turns.")] = 10,
    attempts: Annotated[
        int, typer.Option(min=1, help="Fresh processes until a cell whose two halves differ is called unstable.")
    ] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable ones by default.")] = None,
    transfers: Annotated[bool, typer.Option("--transfers", help="Time copies to and from the GPU, too.")] = False,
    cold_cache: Annotated[bool, typer.Option("--cold-cache", help="Empty the GPU's L2 before each batch.")] = False,
    no_cuda_graph: Annotated[bool, typer.Option("--no-cuda-graph", help="Launch kernels one by one.")] = False,
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU.")] = 0,
    trust: Annotated[bool, typer.Option("--trust", help="Also run engines that nobody known has signed.")] = False,
    machine: Annotated[str, typer.Option(help="A name for this machine in rows and reports.")] = "",
    together: Annotated[int, typer.Option(min=1, help="Cells that are open at once to take turns, at most.")] = 8,
    silence: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life after which a cell is given up.")
    ] = 900.0,
    output: Annotated[Path, typer.Option(help="Folder for cells, rows, pareto.png, report.html.")] = DEFAULT_OUTPUT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --output; alone, with its own plan.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="With --resume: failed, skipped and unstable cells again.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier sweep.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List cells and estimated time, measure nothing.")] = False,
) -> None:
    """Measure exports: accuracy, agreement with PyTorch, latency and throughput, each cell in a process of its own."""
    batches = _numbers(batch, "--batch")
    if not exports and model is None:
        if not resume:
            raise FasterViTError("name export folders, or models with --model; see 'fastervit-bench measure --help'")
        plan = Plan.read(output)
    else:
        backends = _names(backend, [*BACKENDS]) if backend != "all" else tuple(BACKENDS)
        weights = _weights(checkpoint, pretrained, random_init)
        plan = Plan(
            exports=tuple(str(path.absolute()) for path in exports or ()),
            wanted=_wanted(
                model, precision, resolution, task, weights, calibration_data, batches, wanted_engines(backends, device)
            ),
            backends=backends,
            batches=batches,
            streams=_numbers(streams, "--streams"),
            options=Options(
                data=data,
                max_unreadable=parse_share(max_unreadable, "--max-unreadable"),
                seconds=seconds,
                rounds=rounds,
                attempts=attempts,
                threads=threads or usable_cpus(),
                transfers=transfers,
                cold_cache=cold_cache,
                cuda_graph=not no_cuda_graph,
                device=device,
                trust=trust,
                machine=machine,
                together=together,
                silence=silence,
                examples=examples,
            ),
        )
    if dry_run:
        _print_forecast(forecast(plan))
        return
    records = measure_and_report(plan, output, resume=resume, retry=retry, overwrite=overwrite)
    print_rows([record.row for record in records])
    say(f"report: {output / 'report.html'}")


@app.command("report")
def report_command(
    results: Annotated[list[Path], typer.Argument(help="Result folders or rows files, also of other machines.")],
    output: Annotated[Path, typer.Option(help="Folder for rows and report.")] = Path("fastervit-merged"),
    title: Annotated[str, typer.Option(help="Of the page.")] = DEFAULT_TITLE,
    no_published: Annotated[
        bool, typer.Option("--no-published", help="Without the published figures of other machines.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Merge results into one report: rows, Pareto fronts per device and batch, picture, page, Markdown."""
    records = merge_reports(results, output, title=title, published=not no_published, overwrite=overwrite)
    print_rows([record.row for record in records])
    say(f"report: {output / 'report.html'}")


app.command("compare")(compare_command)
app.command("check")(check_command)
app.command("resolution")(resolution_command)


def _wanted(
    models: str | None,
    precisions: str,
    resolutions: str | None,
    task: str | None,
    weights: Sequence[str],
    calibration_data: str | None,
    batches: Sequence[int],
    engines: tuple[tuple[str, tuple[str, ...]], ...],
) -> tuple[WantedExport, ...]:
    """The exports that --model and --precision ask for, as arguments of ``fastervit-export``."""
    if models is None:
        return ()
    names = _names(models, None)
    for name in names:
        get_variant(name)
    if task is not None:
        get_task(task)
    if not weights and any(get_variant(name).shipped_weights is None for name in names):
        raise FasterViTError("say whose weights --model is to have: --checkpoint FILE, --pretrained or --random-init")
    if weights and weights[0] == "--checkpoint" and len(names) > 1:
        raise FasterViTError("--checkpoint goes with one --model")
    common = [*(weights or ["--pretrained"]), "--runtime", "none"]
    common += ["--batch", str(batches[0]) if len(batches) == 1 else f"{min(batches)}:{max(batches)}:{max(batches)}"]
    found = []
    for name in names:
        for size in _names(resolutions, None) if resolutions else (None,):
            for kind in _names(precisions, None):
                arguments = ["--model", name, *_precision_arguments(kind, calibration_data), *common]
                arguments += ["--resolution", size] if size else []
                arguments += ["--task", task] if task else []
                found.append(WantedExport(name, kind, tuple(arguments), size or "", engines, task))
                found[-1].spec.config()  # what is impossible is said before anything begins
    return tuple(found)


def _precision_arguments(kind: str, calibration_data: str | None) -> list[str]:
    arguments = ["--precision", "int8", "--target", "cpu"] if kind == _CPU_FORM else ["--precision", kind]
    if kind in _FLOATS:
        return arguments
    if calibration_data is None:
        raise FasterViTError(f"--precision {kind} needs --calibration-data: a folder of images, or digits")
    return [*arguments, "--calibration-data", calibration_data]


def _weights(checkpoint: Path | None, pretrained: bool, random_init: bool) -> list[str]:
    if (checkpoint is not None) + pretrained + random_init > 1:
        raise FasterViTError("choose one of --checkpoint FILE, --pretrained and --random-init")
    if checkpoint is not None:
        return ["--checkpoint", str(checkpoint.absolute())]
    return ["--pretrained"] if pretrained else ["--random-init"] if random_init else []


def _names(text: str, known: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if known is not None and name not in (*known, AUTO)]
    if unknown or not names:
        listed = ", ".join([AUTO, "all", *known]) if known else "none named"
        raise FasterViTError(f"there is no '{', '.join(unknown) or text}'; there are {listed}")
    return names


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise FasterViTError(f"{option} '{text}' is no list of numbers from 1 on, e.g. 1,8,32")
    return numbers


def _print_forecast(found: Forecast) -> None:
    for wanted in found.exports:
        say(f"export {wanted.name} first")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("cell", "about", "skipped because"):
        table.add_column(column, overflow="fold")
    for cell, seconds, why_not in found.cells:
        table.add_row(cell.name, "" if why_not else spoken(seconds), why_not)
    console.print(table)
    say(f"{len(found.cells)} cells, about {spoken(found.seconds)}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fastervit-bench``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = [command.name for command in app.registered_commands]
    if not given or (given[0] not in commands and given[0] != "--help"):
        given.insert(0, _MEASURE)
    run_command(app, given)


if __name__ == "__main__":
    main()
