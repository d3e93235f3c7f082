"""Export folders in, a row each out: ``-m fastervit_trt.benchmarks.studies.task_exports FOLDER … --output rows.csv``.

What was verified and how nearly, what the graph holds, and what its engine is made of: all of it from manifests and
graphs, so it needs no time and no GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn

import onnx
import typer
from rich.table import Table

from fastervit_trt.artifacts import Manifest, new_file, write_csv
from fastervit_trt.console import command_app, console, run_command, say
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["TaskExportRow", "main", "row_of"]

app = command_app()

# Operators that detectors bring and that runtimes run badly or not at all; counted with those of functions.
_WATCHED = ("GridSample", "TopK", "GatherElements", "ScatterND", "ScatterElements", "NonMaxSuppression", "Resize")


@dataclass(frozen=True)
class TaskExportRow:
    """One export; what belongs to an engine is empty where none was built."""

    task: str
    model: str
    weights: str
    resolution: str
    precision: str
    batch: str
    parameters: int
    nodes: int  # fused operators as one
    fused: str  # how many of each
    watched: str  # operators that detectors bring, how many of each
    verified_batches: str
    worst_output: str
    worst_input: str
    abs_error: float
    budget: float
    share_of_budget: float
    onnx_mb: float
    engine: str
    engine_mb: float | None
    launches: int | None
    multiplications: str
    attentions: str
    proven: bool | None
    build_seconds: float | None
    created_utc: str


def row_of(folder: Path) -> TaskExportRow:
    """The row of the export in ``folder``.

    Raises:
        FasterViTError: there is none.
    """
    manifest = Manifest.read(folder)
    engine = manifest.engines[0] if manifest.engines else None
    audit: Mapping[str, Any] = engine["audit"] if engine else {}
    proof, graph = manifest.verification, manifest.graph
    sizes = {name: entry["bytes"] for name, entry in manifest.files.items()}
    return TaskExportRow(
        task=manifest.task,
        model=manifest.model,
        weights=manifest.weights["kind"],
        resolution="x".join(map(str, manifest.resolution)),
        precision=manifest.precision,
        batch=manifest.batch,
        parameters=graph["deploy"]["parameters_after"],
        nodes=graph["fusion"]["nodes"],
        fused=_counts(graph["fusion"]["operators"]),
        watched=_counts(_operators(folder / GRAPH_FILE)),
        verified_batches=", ".join(map(str, proof["batches"])),
        worst_output=proof["worst_output"],
        worst_input=proof["worst_input"],
        abs_error=proof["abs_error"],
        budget=proof["budget"],
        share_of_budget=round(proof["share_of_budget"], 4),
        onnx_mb=round(sum(n for name, n in sizes.items() if name.startswith(GRAPH_FILE)) / 1e6, 1),
        engine=f"{engine['runtime']} {engine['version']} for {engine['compute_capability']}" if engine else "",
        engine_mb=round(sizes[engine["file"]] / 1e6, 1) if engine else None,
        launches=audit.get("launches"),
        multiplications=", ".join(f"{share:.0%} {kind}" for kind, share in audit.get("multiplications", {}).items()),
        attentions=_counts(audit.get("attentions", {})),
        proven=audit.get("proven"),
        build_seconds=engine["build_seconds"] if engine else None,
        created_utc=manifest.created_utc,
    )


def _operators(path: Path) -> Counter[str]:
    model = onnx.load(path, load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return Counter(node.op_type for node in nodes if node.op_type in _WATCHED)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


@app.command()
def exports_command(
    exports: Annotated[list[Path], typer.Argument(help="Folders written by fastervit-export.")],
    output: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("task-exports.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write a table of what exports hold and how nearly they were verified."""
    rows = sorted(map(row_of, exports), key=lambda row: (row.task, row.model, row.resolution, row.precision))
    with new_file(output, overwrite=overwrite) as path:
        write_csv(rows, path)
    shown = ("task", "resolution", "precision", "batch", "nodes", "share_of_budget", "launches", "multiplications")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (field.name for field in fields(TaskExportRow) if field.name in shown):
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(str(getattr(row, name)) for name in shown))
    console.print(table)
    say(f"rows: {output}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.benchmarks.studies.task_exports``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
