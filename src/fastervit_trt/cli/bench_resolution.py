"""``fastervit-bench resolution``: a FasterViT and networks of equal width in, what growing images cost them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastervit_trt.artifacts import new_folder, write_csv
from fastervit_trt.console import say
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus

if TYPE_CHECKING:
    from fastervit_trt.benchmarks.studies.resolution import Plan

__all__ = ["resolution_command"]

_MODEL = "faster_vit_0_224"
_ROWS, _GROWTH = "rows.csv", "growth.csv"


def resolution_command(
    model: Annotated[str, typer.Option(help="FasterViT whose widths, depths and heads all networks have.")] = _MODEL,
    sizes: Annotated[
        str | None, typer.Option(help="Sides of square images, comma-separated; ten from 224 to 1024 by default.")
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(help="Of fastervit, windows, shifted, global, global-explicit, vit, comma-separated; all."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32; on a GPU also fp16 and bf16.")] = "fp32",
    seconds: Annotated[float, typer.Option(min=0.01, help="Timed per network and size.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=2, help="Slices of that time, in which all take turns.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable ones by default.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows, exponents, figure and page.")] = Path(
        "resolution-cost"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier folder.")] = False,
) -> None:
    """What growing images cost in time and memory, beside plain and shifted windows and global attention."""
    # Here: PyTorch takes seconds to import, and the other commands of fastervit-bench go without.
    from fastervit_trt.benchmarks.studies.resolution import SIZES, Plan, measure_resolutions, this_device
    from fastervit_trt.benchmarks.studies.resolution_peers import NETWORKS
    from fastervit_trt.benchmarks.studies.resolution_report import (
        FIGURE_NAME,
        PAGE_NAME,
        draw_figure,
        print_growth,
        render_page,
    )
    from fastervit_trt.benchmarks.studies.resolution_rows import growth_rows, resolution_rows

    plan = Plan(
        model=model,
        sizes=SIZES if sizes is None else _sizes(sizes),
        networks=tuple(NETWORKS) if networks is None else tuple(name.strip() for name in networks.split(",")),
        batch=batch,
        precision=precision,
        seconds=seconds,
        rounds=rounds,
        threads=threads or usable_cpus(),
    )
    device = this_device()
    plan.check(device)  # what is impossible is said before anything begins
    with new_folder(output, overwrite=overwrite, marker=_GROWTH) as folder:
        cells, conditions = measure_resolutions(plan, device)
        rows, growth = resolution_rows(cells, conditions), growth_rows(cells)
        write_csv(rows, folder / _ROWS)
        write_csv(growth, folder / _GROWTH)
        draw_figure(rows, folder / FIGURE_NAME)
        (folder / PAGE_NAME).write_text(render_page(rows, growth, _command(plan)))
    print_growth(growth)
    say(f"figure, page, rows: {output}")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise FasterViTError(f"--sizes '{text}' is no list of sides in pixels, e.g. 224,448,896") from None


def _command(plan: Plan) -> str:
    """What makes these numbers again."""
    what = f"--model {plan.model} --sizes {','.join(map(str, plan.sizes))} --networks {','.join(plan.networks)}"
    how = f"--batch {plan.batch} --precision {plan.precision} --seconds {plan.seconds:g} --rounds {plan.rounds}"
    return f"fastervit-bench resolution {what} {how} --threads {plan.threads}"
