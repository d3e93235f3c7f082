"""Models and batches in, the cases of each stage of a GPU run out, the most valuable first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fastervit_trt.benchmarks.gpu.cases import AttentionCase, BlockCase, Case, ModelCase, WindowsCase
from fastervit_trt.models.factory import ModelSpec, resolve_config
from fastervit_trt.models.tasks.heads import Task

__all__ = ["CASES", "cases_of", "in_order_of_value"]

_HAT_STAGES = (2, 3)
_FIRST_BATCHES = (128, 1)  # what the goals name
_ANY_SIZE = "_any_res"  # models that are backbones, too, at the sizes that detectors and segmenters are compared at
_UNDER_HEADS: dict[Task, tuple[int, int]] = {"detection": (640, 640), "segmentation": (512, 512)}
_MOST_UNDER_HEADS = 8  # images: such a case takes minutes to compile, and is served few at a time


def cases_of(stage: str, models: Sequence[str], batches: Sequence[int]) -> list[Case]:
    """What ``stage`` measures, most valuable first.

    Raises:
        FasterViTError: unknown model.
    """
    return [case for model, batch in in_order_of_value(models, batches) for case in CASES[stage](model, batch)]


def in_order_of_value(models: Sequence[str], batches: Sequence[int]) -> list[tuple[str, int]]:
    """The first model at the batches that the goals name, then the others at these, then the rest."""

    def value(pair: tuple[str, int]) -> tuple[int, int, int]:
        model, batch = pair
        if batch not in _FIRST_BATCHES:
            return 2, batches.index(batch), models.index(model)
        return int(model != models[0]), _FIRST_BATCHES.index(batch), models.index(model)

    return sorted({(model, batch) for model in models for batch in batches}, key=value)


def _core(model: str, batch: int) -> Iterator[Case]:
    yield from _attentions(model, batch, half=False)


def _halves(model: str, batch: int) -> Iterator[Case]:
    yield from _attentions(model, batch, half=True)


def _attentions(model: str, batch: int, *, half: bool) -> Iterator[AttentionCase]:
    config = resolve_config(model)
    for stage in _HAT_STAGES:
        geometry, heads = config.geometry(stage), config.num_heads[stage]
        head_dim = config.stage_dim(stage) // heads
        windows = batch * geometry.windows
        yield AttentionCase(model, batch, stage, "window", half, windows, geometry.tokens, heads, head_dim)
        if geometry.has_carriers:
            sizes = (geometry.carriers, heads, head_dim, geometry.carriers_per_window, geometry.tokens)
            yield AttentionCase(model, batch, stage, "carriers", half, batch, *sizes)


def _windows(model: str, batch: int) -> Iterator[Case]:
    config = resolve_config(model)
    for stage in _HAT_STAGES:
        geometry = config.geometry(stage)
        for direction in ("partition", "reverse"):
            for channels_last in (True, False):
                yield WindowsCase(
                    model,
                    batch,
                    stage,
                    direction,
                    channels_last,
                    config.stage_dim(stage),
                    *geometry.padded,
                    geometry.window,
                    geometry.carriers_per_window,
                    config.do_propagation and geometry.has_carriers,
                )


def _block(model: str, batch: int) -> Iterator[Case]:
    config = resolve_config(model)
    for stage in _HAT_STAGES:
        geometry, channels = config.geometry(stage), config.stage_dim(stage)
        if not geometry.has_carriers:
            continue
        rows = geometry.windows * geometry.tokens
        hidden = int(channels * config.mlp_ratio)
        sizes = (rows, geometry.carriers, geometry.tokens, geometry.window**2)
        yield BlockCase(model, batch, stage, *sizes, config.num_heads[stage], channels, hidden)


def _model(model: str, batch: int) -> Iterator[Case]:
    own = ModelSpec(model)
    yield ModelCase(model, batch, own.config().resolution, own.chosen_task)
    if model.endswith(_ANY_SIZE) and batch <= _MOST_UNDER_HEADS:
        yield from (ModelCase(model, batch, size, task) for task, size in _UNDER_HEADS.items())


CASES: dict[str, Callable[[str, int], Iterator[Case]]] = {
    "core": _core,
    "half": _halves,
    "partition": _windows,
    "block": _block,
    "models": _model,
}
