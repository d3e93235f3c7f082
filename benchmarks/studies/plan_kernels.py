"""What the export saves TensorRT from launching: ``python -m fastervit_trt.benchmarks.studies.plan_kernels``.

Every model is built with TensorRT-RTX three times and the kernels of each plan are counted (engines/plan.py): this
project's export with a static batch; and the training form straight through ``torch.onnx.export``, in the same
precision, with the same batch and with a range of batches. Weights are random. Needs no GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from fastervit_trt.artifacts import new_file, write_csv
from fastervit_trt.benchmarks.studies.plain import plain_export, random_model
from fastervit_trt.console import command_app, console, run_command, say, step
from fastervit_trt.engines.build import BuiltEngine
from fastervit_trt.engines.kernels import EngineKernels, Kind
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import RtxTarget, build_rtx_engine, check_precision, rtx_unavailable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import INPUT, save_onnx
from fastervit_trt.export.pipeline import export_graph
from fastervit_trt.export.precision import Float, get_float
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.host import versions
from fastervit_trt.models.factory import resolve_config
from fastervit_trt.models.fastervit import Trunk

__all__ = ["FORMS", "PlanKernelsRow", "main", "measure_plan"]

app = command_app()

_STATIC, _DYNAMIC = BatchRange.parse("8"), BatchRange.parse("1:8:32")

# Kinds of kernels in TensorRT-RTX's plans, which know no plugins and no reformats; a cast counts as movement here.
KINDS = tuple(kind for kind in Kind if kind not in (Kind.PLUGIN, Kind.REFORMAT, Kind.CAST))

_LINES = {
    "kernel launches": "launches",
    **{f"  {kind.value}": kind.value for kind in KINDS},
    "generated kernels launched": "generated",
    "  distinct": "distinct_generated",
    "ONNX nodes": "nodes",
    "network layers": "layers",
    "plan MB": "plan_mb",
    "build seconds": "build_seconds",
}


@dataclass(frozen=True)
class PlanKernelsRow:
    """The kernels of one plan. Launches are per inference and split into kinds (:class:`Kind`), which add up to it."""

    model: str
    form: str  # one of FORMS
    precision: str
    resolution: str
    batch: str
    compute_capability: str
    launches: int
    attention: int
    gemm: int
    convolution: int
    normalisation: int
    softmax: int
    reduction: int
    movement: int
    pointwise: int
    other: int
    generated: int  # launches of kernels whose source is in the plan; the others come from TensorRT's library
    distinct_generated: int
    nodes: int  # of the ONNX graph
    layers: int  # of the network TensorRT parsed from it
    plan_mb: float
    build_seconds: float
    torch: str
    tensorrt_rtx: str
    timestamp_utc: str


def measure_plan(model: str, form: str, precision: Float, target: RtxTarget) -> PlanKernelsRow:
    """Write the ONNX graph of ``model`` in one of :data:`FORMS`, build it and count.

    Raises:
        FasterViTError: unknown model or form, TensorRT-RTX missing, or a step refused.
    """
    if form not in FORMS:
        raise FasterViTError(f"unknown form '{form}'; choose one of {', '.join(FORMS)}")
    if reason := rtx_unavailable_reason():
        raise FasterViTError(reason)
    check_precision(str(target), precision)
    config = resolve_config(model)
    batch, write = FORMS[form]

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with step(f"{model}, {form}: ONNX"):
            nodes = write(lambda: random_model(model), precision, batch, folder)
        with step(f"{model}, {form}: TensorRT-RTX for {target}"):
            shape = (config.in_chans, *config.resolution)
            engine = build_rtx_engine(folder / "model.onnx", folder / "plan", target, batch, INPUT, shape)
        return _row(model, form, precision, config.resolution, batch, nodes, engine)


def _export(load: Callable[[], Trunk], precision: Float, batch: BatchRange, folder: Path) -> int:
    return export_graph(load, precision, batch, folder).fusion.nodes


def _naive(load: Callable[[], Trunk], precision: Float, batch: BatchRange, folder: Path) -> int:
    """What one gets without this project: the module as it was trained, through PyTorch's exporter."""
    model = load()
    shape = (model.config.in_chans, *model.config.resolution)
    graph = plain_export(
        TypedModel(model, precision), shape, None if batch.dynamic else batch.optimum, opset_version=precision.opset
    )
    save_onnx(graph, folder)
    return len(graph.graph)


# form → the batch it is built for, and what writes its model.onnx and counts the nodes
FORMS: dict[str, tuple[BatchRange, Callable[[Callable[[], Trunk], Float, BatchRange, Path], int]]] = {
    "export": (_STATIC, _export),
    "naive dynamic": (_DYNAMIC, _naive),
    "naive static": (_STATIC, _naive),
}


def _row(
    model: str,
    form: str,
    precision: Float,
    resolution: tuple[int, int],
    batch: BatchRange,
    nodes: int,
    engine: BuiltEngine,
) -> PlanKernelsRow:
    kernels = plan_kernels(engine.path)
    return PlanKernelsRow(
        model=model,
        form=form,
        precision=precision.name,
        resolution="x".join(str(side) for side in resolution),
        batch=str(batch),
        compute_capability=engine.compute_capability,
        launches=kernels.launches,
        **_counts(kernels),
        generated=kernels.generated,
        distinct_generated=kernels.distinct_generated,
        nodes=nodes,
        layers=engine.layers,
        plan_mb=round(engine.path.stat().st_size / 1e6, 1),
        build_seconds=engine.seconds,
        torch=versions()["torch"],
        tensorrt_rtx=engine.version,
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _counts(kernels: EngineKernels) -> dict[str, int]:
    counts = {kind.value: kernels.count(kind) for kind in KINDS}
    counts[Kind.MOVEMENT.value] += kernels.count(Kind.CAST)
    return counts


@app.command()
def kernels_command(
    model: Annotated[list[str] | None, typer.Option(help="Variant; by default FasterViT-0, 1 and 3.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp16",
    compute_capability: Annotated[str, typer.Option(help="GPU generation TensorRT-RTX compiles for.")] = "8.9",
    output: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("plan-kernels.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Count the kernels TensorRT-RTX launches for this project's export and for the model as it was trained."""
    names = model or ["faster_vit_0_224", "faster_vit_1_224", "faster_vit_3_224"]
    typed, target = get_float(precision), RtxTarget.parse(compute_capability)
    for name in names:
        resolve_config(name)  # a misspelt name is known at once, not after the builds of the others
    with new_file(output, overwrite=overwrite) as path:
        jobs = [(name, form) for name in names for form in FORMS]
        rows = [measure_plan(name, form, typed, target) for name, form in jobs]
        write_csv(rows, path)
    for name in names:
        console.print(_table([row for row in rows if row.model == name]), "")
    say(f"rows: {output}")


def _table(rows: Sequence[PlanKernelsRow]) -> Table:
    """One column per form of one model; ratios are to the first form, the export."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(rows[0].model)
    for row in rows:
        table.add_column(f"{row.form}, {row.batch}", justify="right")
    for title, field in _LINES.items():
        values = [getattr(row, field) for row in rows]
        if any(values):
            first = values[0]
            table.add_row(title, *(f"{v}" + (f" ({v / first:.2f}x)" if field == "launches" else "") for v in values))
    return table


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.plan_kernels``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
