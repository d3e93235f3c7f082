"""Cells in, seconds out: how long a sweep will about take, for ``--dry-run`` and the time left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends import BACKENDS
from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.plan import Options

if TYPE_CHECKING:
    from fastervit_trt.models.factory import ModelSpec

__all__ = ["EXPORT_SECONDS", "Size", "cell_seconds", "spoken"]

EXPORT_SECONDS = 60.0  # assumed: benchmarks/results/export-scale-fp16.csv has what each variant took
_START_SECONDS = 3.0  # a process, Python's imports, hashing
_WARM_UP_SECONDS = 2.0
_PRETREATMENT_SECONDS = 0.004  # per image and thread: decoding and resizing
# A FasterViT uses each weight about 115 times at 224x224: 3.36 G multiplications with the 28.4 M parameters of
# FasterViT-0's deploy form, 18.35 G with the 156 M of FasterViT-3's.
_USES_OF_A_WEIGHT = 115
_PIXELS = 224 * 224
# Multiplications per second of a CPU thread (FasterViT-0 in PyTorch, benchmarks/results/faster_vit_0-cpu: 3.0e10) and
# of a GPU, which is assumed: none has been measured.
_RATE = {"cpu": 3e10, "gpu": 2e13}


@dataclass(frozen=True)
class Size:
    """What the time of a forward pass depends on."""

    parameters: int
    resolution: tuple[int, int]

    @classmethod
    def of_export(cls, manifest: Manifest) -> Size:
        return cls(manifest.graph["deploy"]["parameters_after"], manifest.resolution)

    @classmethod
    def of_model(cls, spec: ModelSpec) -> Size:
        """Of a registered model, before anything is exported: built without memory for its weights."""
        import torch

        from fastervit_trt.models.factory import construct

        config = spec.config()
        with torch.device("meta"):
            model = construct(config, spec.head)
        return cls(sum(parameter.numel() for parameter in model.parameters()), config.resolution)


def cell_seconds(cell: Cell, size: Size, options: Options, images: int, *, accuracy: bool) -> float:
    """Of one cell from its process's start to its end.

    Args:
        images: of the dataset, 0 without.
        accuracy: whether this cell takes it; of cells with the same artifact and backend one does.
    """
    backend = BACKENDS.get(cell.backend, BACKENDS["ort-cpu"])
    forward = _forward_seconds(size, backend.device_kind, options.threads)
    # Each slice of latency and of throughput has an untimed call and at least a timed one.
    timed = max(2 * options.seconds, 4 * options.rounds * forward * cell.batch)
    judged = images * (forward + _PRETREATMENT_SECONDS / options.threads) if accuracy else 0.0
    return _START_SECONDS + backend.start_seconds + judged + _WARM_UP_SECONDS + timed


def spoken(seconds: float) -> str:
    """In the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _forward_seconds(size: Size, kind: str, threads: int) -> float:
    height, width = size.resolution
    multiplications = size.parameters * _USES_OF_A_WEIGHT * height * width / _PIXELS
    return multiplications / (_RATE["gpu"] if kind == "gpu" else _RATE["cpu"] * threads)
