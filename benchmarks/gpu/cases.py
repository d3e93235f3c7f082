"""What there is to measure on a GPU: sizes, and the fewest bytes and operations that they take.

Plain integers, no GPU. Bytes count every input read once and every output written once, in fp16; operations are those
of the matrix products. Stages of a model are named as in the paper, 3 and 4; letters as in ``plugins.reference``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import bake_position_tables, deploy_form
from fastervit_trt.models.factory import ModelSpec, construct
from fastervit_trt.models.tasks.heads import Task
from fastervit_trt.plugins import operators  # noqa: F401  registers torch.ops.fastervit

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
    def why_not(self) -> str | None:
        """Why this installation cannot make it; None: it can."""
        return None

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
    """A whole model, images in and the outputs of its task out."""

    resolution: tuple[int, int]
    task: Task = "classification"

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.model, resolution=self.resolution, task=self.task)

    @property
    def why_not(self) -> str | None:
        try:
            _size_of(self.spec)
        except FasterViTError as error:
            return str(error)
        return None

    @property
    def name(self) -> str:
        return self.model if self.task == "classification" else f"{self.model} {self.task}"

    @property
    def shape(self) -> str:
        return f"{self.batch}x3x{self.resolution[0]}x{self.resolution[1]}"

    @property
    def bytes(self) -> int:
        parameters, outputs = _size_of(self.spec)[1:]
        return _FP16 * (parameters + self.batch * (3 * self.resolution[0] * self.resolution[1] + outputs))

    @property
    def flop(self) -> int:
        return self.batch * _size_of(self.spec)[0]


@functools.cache
@torch.no_grad()
def _size_of(spec: ModelSpec) -> tuple[int, int, int]:
    """Operations of one image, parameters, numbers that come out. On no device: nothing is computed.

    Raises:
        FasterViTError: an impossible spec, or transformers is not installed and it needs that.
    """
    config = spec.config()
    with torch.device("meta"):
        network: nn.Module = construct(config, spec.head).eval()
    if spec.head is None:
        bake_position_tables(network)  # a deployed model does not compute them
    else:
        network = _deployed(network)
    with FlopCounterMode(display=False, custom_mapping=_FLOP_OF_OPERATORS) as counter:
        found = network(torch.empty(1, config.in_chans, *config.resolution, device="meta"))
    outputs = [found] if isinstance(found, torch.Tensor) else found
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return counter.get_total_flops(), parameters, sum(output.numel() for output in outputs)


def _deployed(network: nn.Module) -> nn.Module:
    """Heads compute much as trained that a deployed one does not. The rewrites need numbers; any will do."""
    network.to_empty(device="cpu")
    network.reset_derived_buffers()  # type: ignore[operator]
    return deploy_form(network)[0].to("meta")


def _flop_of_window_attention(qkv: torch.Size, bias: torch.Size, *_: Any, **__: Any) -> int:
    """Of shapes (W·N, 3·C) and (1, heads, N, N)."""
    return 4 * qkv[0] * bias[-1] * qkv[1] // 3


# Operators of a deploy form that hold matrix products.
_FLOP_OF_OPERATORS = {torch.ops.fastervit.window_attention: _flop_of_window_attention}
