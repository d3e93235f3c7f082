"""Everything there is to measure on a GPU, in one entry: ``python -m fastervit_trt.benchmarks.gpu``, or ``make gpu``.

Builds the kernels for the GPU at hand, judges each against its reference, times them and whole models against every
other way, and prints tables last. Rows reach ``--output`` one by one; each stage runs in processes of its own, so that
none can abort another; without a GPU each says so. ``--plan`` shows sizes and floors and runs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fastervit_trt.benchmarks.gpu.build import library_path
from fastervit_trt.benchmarks.gpu.cases import Ceilings
from fastervit_trt.benchmarks.gpu.context import context_of, find_checkout, no_gpu_reason
from fastervit_trt.benchmarks.gpu.environment import ceilings_of
from fastervit_trt.benchmarks.gpu.job import Job
from fastervit_trt.benchmarks.gpu.report import line_of, print_plan, print_report
from fastervit_trt.benchmarks.gpu.rows import OK, SKIPPED, STOPPED, Context, GpuRow, Result, RowFolder
from fastervit_trt.benchmarks.gpu.stages import STAGES, run_stage
from fastervit_trt.benchmarks.gpu.worklist import CASES
from fastervit_trt.console import command_app, run_command, say
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.factory import get_variant
from fastervit_trt.plugins.library import VARIABLE

__all__ = ["main"]

app = command_app()

_STAGES = [name for name in STAGES if name != "profile"]
_MODELS = [f"faster_vit_{i}_224" for i in range(5)] + ["faster_vit_0_any_res"]
_BATCHES = [128, 1, 8, 32, 256]
_H200 = Ceilings(copy_gb_per_s=4300, matmul_tflop_per_s=790)  # measured on one; for --plan
_LEAST_SECONDS = 15  # in which a stage can find anything
_MANY_ROWS = ("build", "kernels")  # stages of which only what went wrong is shown as it comes
_NEED_KERNELS = ("kernels", *CASES, "profile")


@dataclass
class _Run:
    """A folder that is being written to, and the time there is."""

    folder: RowFolder
    context: Context
    deadline: float

    def take(self, results: Sequence[Result]) -> None:
        """Keep and show them."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.folder.add(GpuRow.of(result, self.context, now) for result in results)
        for result in results:
            if result.status != OK or result.stage not in _MANY_ROWS:
                say(line_of(result))

    def stage(self, job: Job, no_gpu: str | None, limit: float | None) -> None:
        """One stage, or the reason why not, as rows."""
        stage = STAGES[job.stage]
        seconds = min(limit or stage.seconds, self.deadline - time.monotonic())
        if no_gpu and not (job.stage == "build" and job.architecture):
            self.take([Result(stage=job.stage, case="", peer="", status=SKIPPED, note=no_gpu)])
            return
        if seconds < _LEAST_SECONDS:
            self.take([Result(stage=job.stage, case="", peer="", status=STOPPED, note="the run's time was up")])
            return
        say(f"--- {job.stage}: {stage.what}; at most {seconds:.0f} s")
        with (self.folder.path / "log.txt").open("ab") as log:
            log.write(f"\n--- {job.stage}\n".encode())
            log.flush()
            silence = min(stage.silence, seconds)
            run_stage(job, seconds, silence, self.take, log, _environment(job.build_path))

    @property
    def ceilings(self) -> Ceilings | None:
        return ceilings_of({row.case: row.value for row in self.folder.rows if row.stage == "environment"})


def _environment(build: Path) -> dict[str, str]:
    """Of the stages' processes: our library, once it is built, and compilers' caches that outlive a run."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": build / "inductor", "TRITON_CACHE_DIR": build / "triton"}
    library = library_path(build)
    found = {VARIABLE: str(library)} if library.is_file() and VARIABLE not in os.environ else {}
    return {**os.environ, **{name: str(path) for name, path in caches.items()}, **found, "PYTHONUNBUFFERED": "1"}


def _with_needs(stages: Sequence[str], ceilings: Ceilings | None) -> list[str]:
    """``stages`` after what they need: ceilings, and kernels as the sources say, unless the user names a library."""
    needs = ["environment"] if ceilings is None and any(stage in CASES for stage in stages) else []
    if VARIABLE not in os.environ and any(stage in _NEED_KERNELS for stage in stages):
        needs.append("build")
    return list(dict.fromkeys([*needs, *stages]))


def _known_peers(stages: Sequence[str]) -> list[str]:
    modules = (importlib.import_module(f"fastervit_trt.benchmarks.gpu.{stage}") for stage in stages if stage in CASES)
    return list(dict.fromkeys(peer.name for module in modules for peer in module.PEERS))


def _listed(text: str, known: Sequence[str] | None, what: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if known is not None and name not in known]
    if unknown or not names:
        raise FasterViTError(f"no {what} '{', '.join(unknown) or text}'; there are {', '.join(known or [])}")
    return names


def _numbers(text: str) -> list[int]:
    try:
        numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise FasterViTError(f"--batches {text}: write them as in 128,1")
    return numbers


@app.command()
def gpu_command(
    stages: Annotated[str, typer.Option(help=f"Of {', '.join(STAGES)}; what they need comes first.")] = ",".join(
        _STAGES
    ),
    models: Annotated[str, typer.Option(help="Variants, the most important first.")] = ",".join(_MODELS),
    batches: Annotated[str, typer.Option(help="Images per call.")] = ",".join(map(str, _BATCHES)),
    peers: Annotated[str | None, typer.Option(help="Only these, as in 'ours,compile'; all by default.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows and logs.")] = Path("build/gpu"),
    build: Annotated[Path, typer.Option(help="Folder for what is built and cached.")] = Path("build/gpu"),
    checkout: Annotated[Path | None, typer.Option(help="Folder of the sources; the current one by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.001, help="Timed per peer and case.")] = 0.3,
    limit: Annotated[float, typer.Option(min=1, help="Seconds for the whole run.")] = 24 * 3600,
    stage_limit: Annotated[float | None, typer.Option(min=1, help="Seconds for each stage.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="To build for, as in 90; that of the GPU by default.")
    ] = None,
    commit: Annotated[str | None, typer.Option(help="Of the sources, where there is no repository.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows there are, measure what is missing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace rows of an earlier run.")] = False,
    sanitizer: Annotated[bool, typer.Option("--sanitizer", help="Also compute-sanitizer, in 'kernels'.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show sizes and floors, run nothing.")] = False,
) -> None:
    """Build, check and time the fused operators and whole models on this GPU, against every other way."""
    chosen = _listed(stages, list(STAGES), "stage")
    names, sizes = _listed(models, None, "model"), _numbers(batches)
    for name in names:
        get_variant(name)  # an unknown one fails before anything else
    if plan:
        print_plan([stage for stage in chosen if stage in CASES], names, sizes, _H200)
        return
    some_peers = _listed(peers, _known_peers(chosen), "peer") if peers else None
    root = find_checkout(checkout)
    folder = RowFolder.open(output, resume=resume, overwrite=overwrite)
    command = " ".join(["python -m fastervit_trt.benchmarks.gpu", *sys.argv[1:]])
    run = _Run(folder, context_of(root, commit, command), time.monotonic() + limit)
    job = Job(
        stage="",
        checkout=str(root),
        build=str(build.absolute()),
        output=str(output.absolute()),
        models=names,
        batches=sizes,
        peers=some_peers,
        seconds=seconds,
        architecture=architecture,
        sanitizer=sanitizer,
    )
    no_gpu = no_gpu_reason()
    try:
        for stage in _with_needs(chosen, run.ceilings):
            done = sorted(folder.settled, key=str)
            run.stage(replace(job, stage=stage, ceilings=run.ceilings, done=done), no_gpu, stage_limit)
    finally:
        print_report(folder.rows)
    say(f"rows and log: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.gpu``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
