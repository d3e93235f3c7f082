"""What there is to measure on a GPU: sizes, and the fewest bytes and operations that they take.

Plain integers, no GPU. Bytes count every input read once and every output written once, in fp16; operations are those
of the matrix products. Stages of a model are named as in the paper, 3 and 4; letters as in ``plugins.reference``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastervit_trt.export.deploy import bake_position_tables
from fastervit_trt.models.factory import create_model

__all__ = [
    "AttentionCase",
    "BlockCase",
    "Case",
    "Ceilings",
    "ModelCase",
    "WindowsCase",
]

_FP16 = 2  # bytes
_HEAD_DIM_MULTIPLE = 8  # of the kernels in fp16; FasterViT-4's 49 is padded


@dataclass(frozen=True)
class Ceilings:
    """What this GPU was measured to do at most."""

    copy_gb_per_s: float  # device to device, bytes read and bytes written
    matmul_tflop_per_s: float  # fp16

    def floor_us(self, size: int, flop: int) -> float:
        """No version runs faster than its bytes at the one rate and its operations at the other."""
        return max(size / self.copy_gb_per_s / 1e3, flop / self.matmul_tflop_per_s / 1e6)


@dataclass(frozen=True)
class Case:
    """Something to measure, at one batch."""

    model: str
    batch: int

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def shape(self) -> str:
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        raise NotImplementedError

    @property
    def flop(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class AttentionCase(Case):
    """Attention in windows: the core on packed QKV, or (``half``) everything from LayerNorm to residual."""

    stage: int  # from 0
    part: str  # "window", or "carriers": all of an image together
    half: bool
    windows: int  # of carriers: images
    rows: int  # N, of carriers G
    heads: int
    head_dim: int
    carriers_per_window: int = 0  # where the part is carriers, R and N of the windows that they lie in
    tokens_per_window: int = 0

    @property
    def name(self) -> str:
        return f"{self.model} stage {self.stage + 1} {self.part}"

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def padded_head_dim(self) -> int:
        """As this project's kernels get it."""
        return -(-self.head_dim // _HEAD_DIM_MULTIPLE) * _HEAD_DIM_MULTIPLE

    @property
    def shape(self) -> str:
        return f"{self.windows}x{self.rows}x{self.heads}x{self.head_dim}"

    @property
    def bytes(self) -> int:
        rows, channels = self.windows * self.rows, self.channels
        bias = self.heads * self.rows**2
        if not self.half:
            return _FP16 * (4 * rows * channels + bias)
        table = self.rows * channels if self.part == "carriers" else 0
        return _FP16 * (2 * rows * channels + 4 * channels**2 + 6 * channels + bias + table)

    @property
    def flop(self) -> int:
        products = 4 * self.windows * self.rows**2 * self.channels
        return products + (8 * self.windows * self.rows * self.channels**2 if self.half else 0)


@dataclass(frozen=True)
class WindowsCase(Case):
    """A map cut into windows, or put together again."""

    stage: int
    direction: str  # "partition" or "reverse"
    channels_last: bool
    channels: int
    height: int
    width: int
    window: int
    carriers_per_window: int
    propagates: bool

    @property
    def name(self) -> str:
        layout = "channels-last" if self.channels_last else "planes"
        return f"{self.model} stage {self.stage + 1} {self.direction}, {layout}"

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}"

    @property
    def windows(self) -> int:
        return self.batch * self.height * self.width // self.window**2

    @property
    def rows(self) -> int:
        return self.window**2 + self.carriers_per_window

    @property
    def bytes(self) -> int:
        pixels = 2 * self.batch * self.height * self.width
        if self.direction == "partition":
            carriers = 2 * self.windows * self.carriers_per_window
            return _FP16 * self.channels * (pixels + carriers + self.rows)
        carriers = self.windows * self.carriers_per_window + 1 if self.propagates else 0
        return _FP16 * self.channels * (pixels + carriers)

    @property
    def flop(self) -> int:
        return 0


@dataclass(frozen=True)
class BlockCase(Case):
    """One HAT block with carriers, tokens in and tokens out."""

    stage: int
    images_rows: int  # rows of one image, carriers included
    carriers: int  # G
    rows: int  # N
    tokens: int  # T
    heads: int
    channels: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.model} stage {self.stage + 1} block"

    @property
    def shape(self) -> str:
        return f"{self.batch * self.images_rows}x{self.channels}"

    @property
    def bytes(self) -> int:
        halves = 2 if self.carriers else 1
        weights = halves * (4 * self.channels**2 + 2 * self.channels * self.hidden)
        tables = self.heads * (self.rows**2 + self.carriers**2)
        return _FP16 * (2 * self.batch * self.images_rows * self.channels + weights + tables)

    @property
    def flop(self) -> int:
        per_row = 8 * self.channels**2 + 4 * self.channels * self.hidden
        rows = self.batch * self.images_rows
        carriers = self.batch * self.carriers
        return (rows + carriers) * per_row + 4 * self.channels * (rows * self.rows + carriers * self.carriers)


@dataclass(frozen=True)
class ModelCase(Case):
    """A whole model, images in and logits out."""

    resolution: tuple[int, int]

    @property
    def name(self) -> str:
        return self.model

    @property
    def shape(self) -> str:
        return f"{self.batch}x3x{self.resolution[0]}x{self.resolution[1]}"

    @property
    def bytes(self) -> int:
        parameters, classes = _size_of(self.model)[1:]
        return _FP16 * (parameters + self.batch * (3 * self.resolution[0] * self.resolution[1] + classes))

    @property
    def flop(self) -> int:
        return self.batch * _size_of(self.model)[0]


@functools.cache
def _size_of(model: str) -> tuple[int, int, int]:
    """Operations of one image, parameters, classes. On no device: nothing is computed."""
    with torch.device("meta"):
        network = create_model(model).eval()
        bake_position_tables(network)  # a deployed model does not compute them
        image = torch.empty(1, network.config.in_chans, *network.config.resolution)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops(), sum(p.numel() for p in network.parameters()), network.config.num_classes
