"""Two networks that borrow hierarchical attention (HAT): a convolutional classifier, and a Swin without its shifts.

Each shows how little a network needs to know: the size of the map it hands to :meth:`HATStage.on_map`, and that size
again whenever the resolution changes. Letters as in ``geometry``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.geometry import window_partition, window_reverse
from fastervit_trt.models.hat import HATStage

__all__ = ["ConvNetWithHAT", "PatchMerging", "SwinWithHAT"]


class ConvNetWithHAT(nn.Module):
    """A convolutional classifier whose last stage is hierarchical attention: (B, 3, H, W) → (B, classes).

    Convolutions are cheap where maps are large and see little; the HAT stage gets the ⌈H/8⌉ x ⌈W/8⌉ map they leave,
    where each of its blocks sees everything. Built for a square map of several windows, it serves any resolution.

    Raises:
        FasterViTError: a window, carrier grid or number of heads that does not fit, see :meth:`HATStage.on_map`.
    """

    def __init__(
        self,
        resolution: tuple[int, int],
        classes: int,
        *,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        window: int = 4,
        ct_size: int = 2,
    ) -> None:
        super().__init__()
        widths = (3, dim // 4, dim // 2, dim)
        self.convolutions = nn.Sequential(*(_halving(*pair) for pair in pairwise(widths)))
        self.hat = HATStage.on_map(dim, depth, heads, _shrunk(resolution, 8), window=window, ct_size=ct_size)
        self.norm = nn.LayerNorm(dim)  # HAT blocks normalise what they read, not what they leave
        self.head = nn.Linear(dim, classes)

    def set_resolution(self, resolution: tuple[int, int]) -> None:
        """Serve images of another size (H, W); parameters are kept.

        Raises:
            FasterViTError: the size needs parameters this model was built without; the model is then as before.
        """
        self.hat.set_resolution(_shrunk(resolution, 8))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = self.hat(self.convolutions(x_BCHW))
        return self.head(self.norm(x.mean(dim=(2, 3))))


class SwinWithHAT(nn.Module):
    """A Swin transformer (arXiv 2103.14030) with HAT instead of shifted windows: (B, 3, H, W) → (B, classes).

    Swin attends within windows, and moves the windows by half their side in every other block so that neighbours get
    to exchange something: a roll, a mask, and one window of reach per pair of blocks. HAT leaves the windows where
    they are. Each owns a few carrier tokens; the carriers of the whole map attend to each other, then every window
    attends to itself and its carriers, so what one window knows reaches all others in the next block (FasterViT §3,
    "Hierarchical Attention"; the paper's ablation plugs HAT into Swin in this way).

    The rest is Swin's: 4x4 patches, stages of windowed attention with a relative position bias, 2x2 patches merged
    between stages. A stage that is a single window needs no carriers and is plain attention. Built square and with
    several windows in every stage, the network serves any resolution.

    Raises:
        FasterViTError: a window, carrier grid or number of heads that does not fit, see :meth:`HATStage.on_map`.
    """

    def __init__(
        self,
        resolution: tuple[int, int],
        classes: int,
        *,
        dim: int = 32,
        depths: tuple[int, ...] = (2, 2, 2),
        heads: tuple[int, ...] = (2, 4, 8),
        window: int = 4,
        ct_size: int = 2,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.patch_embed = nn.Conv2d(3, dim, 4, stride=4)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            merging = PatchMerging(dim * 2**i) if i + 1 < len(depths) else None
            size = _shrunk(resolution, 4 * 2**i)
            stage = HATStage.on_map(
                dim * 2**i, depth, heads[i], size, window=window, ct_size=ct_size, downsample=merging
            )
            self.stages.append(stage)
        self.norm = nn.LayerNorm(dim * 2 ** (len(depths) - 1))
        self.head = nn.Linear(dim * 2 ** (len(depths) - 1), classes)

    def set_resolution(self, resolution: tuple[int, int]) -> None:
        """Serve images of another size (H, W); parameters are kept.

        Raises:
            FasterViTError: the size needs parameters this model was built without; the model is then as before.
        """
        try:
            self._retarget(resolution)
        except FasterViTError:
            self._retarget(self.resolution)  # the stages before the one that refused
            raise
        self.resolution = resolution

    def _retarget(self, resolution: tuple[int, int]) -> None:
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, HATStage)
            stage.set_resolution(_shrunk(resolution, 4 * 2**i))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(_padded(x_BCHW, 4))
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x.mean(dim=(2, 3))))


class PatchMerging(nn.Module):
    """(B, C, H, W) → (B, 2C, ⌈H/2⌉, ⌈W/2⌉): the channels of 2x2 neighbours side by side, LayerNorm, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = _padded(x_BCHW, 2)
        tok = window_partition(x, 2).flatten(1)  # B · H/2 · W/2, 4C
        return window_reverse(self.reduction(self.norm(tok)), 1, (x.shape[2] // 2, x.shape[3] // 2))


def _halving(channels: int, out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def _shrunk(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Sides divided by ``factor``, rounded up: what padded strides leave of a map."""
    return -(-size[0] // factor), -(-size[1] // factor)


def _padded(x_BCHW: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros on the right and bottom, up to the next ``multiple``."""
    return F.pad(x_BCHW, (0, -x_BCHW.shape[3] % multiple, 0, -x_BCHW.shape[2] % multiple))
