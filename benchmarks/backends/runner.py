"""What every backend gives the benchmark: outputs of images, and the time of batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from fastervit_trt.artifacts import Manifest
from fastervit_trt.export.batch import BatchRange, Outputs

__all__ = ["Artifact", "Clock", "DeviceFacts", "Outputs", "Request", "Runner"]

Clock = Literal["host", "CUDA events"]


@dataclass(frozen=True)
class Request:
    """An export and how it is to be run."""

    folder: Path
    manifest: Manifest
    batch: int  # images per batch that is timed
    streams: int = 1  # batches under way at the same time while throughput is measured
    threads: int = 1  # of a CPU backend
    transfers: bool = False  # time copies to and from the GPU, too
    cold_cache: bool = False  # empty the GPU's L2 cache before each batch
    cuda_graph: bool = True
    device: int = 0  # number of the GPU
    trust: bool = False  # run engines that nobody known has signed


@dataclass(frozen=True)
class Artifact:
    """The file whose accuracy and speed are measured; ``weights`` where PyTorch runs the model itself."""

    name: str
    sha256: str
    bytes: int | None


@dataclass(frozen=True)
class DeviceFacts:
    """Where it runs."""

    kind: Literal["cpu", "gpu"]
    name: str
    ordinal: int = 0
    compute_capability: str = ""


class Runner(Protocol):
    """A loaded artifact.

    Attributes:
        artifact: the file behind it.
        device: where it runs.
        batch: sizes that can be timed.
        clock: what ``latency`` and ``throughput`` are read from.
        emulated: arithmetic is exact for the precision, speed means nothing.
        note: what a reader of its speed must know; may be empty.
    """

    artifact: Artifact
    device: DeviceFacts
    batch: BatchRange
    clock: Clock
    emulated: bool
    note: str

    def outputs(self, images: np.ndarray) -> Outputs:
        """Every output, (N, …) float32, of any number of images, float32 (N, 3, H, W); of a classifier its logits."""

    def prepare(self, images: np.ndarray) -> None:
        """Take the batch (B, 3, H, W) float32 that is timed from now on; B as requested."""

    def latency(self, count: int) -> list[float]:
        """Seconds of each of ``count`` batches, every one waited for before the next."""

    def throughput(self, count: int) -> list[float]:
        """Seconds per batch, ``count`` samples, as many batches under way as streams were requested."""

    def executed(self, count: int) -> int:
        """Batches that ``throughput(count)`` executes: more than ``count`` where the ends are left out."""

    def close(self) -> None:
        """Give everything back."""
