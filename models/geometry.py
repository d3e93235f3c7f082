"""How a feature map is cut into windows and summarised by carrier tokens: plain integers and pure reshapes.

Legend, used by every file of this package:
    B batch, C channels, H/W map height and width, Wn windows of the batch (B · windows per image),
    T tokens of one window, G carrier tokens of one image, N tokens in general, h heads, Dh head dim.
    x_BCHW, tok_WnTC, ct_BGC, bias_hNN wear their layout as a suffix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastervit_trt.errors import FasterViTError

if TYPE_CHECKING:
    import torch

__all__ = [
    "CarrierOrder",
    "StageGeometry",
    "carriers_to_raster",
    "carriers_to_windows",
    "stage_resolutions",
    "window_partition",
    "window_reverse",
]

# "reference": the published code calls its re-windowing with height and width exchanged, which is not the inverse
# of its de-windowing on non-square grids. Official weights were trained and evaluated with it, so it is the default.
CarrierOrder = Literal["reference", "corrected"]


def stage_resolutions(resolution: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Map sizes (H, W) of the four stages for an input of ``resolution`` pixels.

    Every stride-2, padding-1, 3x3 convolution gives ``ceil(n / 2)``: two in the stem, one after each of stages 0-2.
    """
    size = resolution
    sizes = []
    for halvings in (2, 1, 1, 1):
        for _ in range(halvings):
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        sizes.append(size)
    return tuple(sizes)


@dataclass(frozen=True)
class StageGeometry:
    """One window-attention stage: its map, its windows and its carriers.

    Example (FasterViT-0 at 224, stage 2): ``StageGeometry((14, 14), window=7, ct_size=2, hat=True)`` has
    2x2 windows of 49 tokens, 4 carriers per window and 16 per image; attention sees 53 tokens.
    """

    size: tuple[int, int]  # map height, width before padding
    window: int  # side of a window, in tokens
    ct_size: int  # side of a window's carrier grid
    hat: bool  # whether the variant asks for hierarchical attention in this stage

    def __post_init__(self) -> None:
        if self.window < 1 or min(self.size) < 1:
            raise FasterViTError(f"a window of {self.window} on a {self.size[0]}x{self.size[1]} map is impossible")
        if self.hat and not 1 <= self.ct_size <= self.window:
            raise FasterViTError(
                f"a carrier grid of side {self.ct_size} does not fit a window of side {self.window}; "
                f"choose ct_size from 1 to {self.window}"
            )

    @property
    def padded(self) -> tuple[int, int]:
        """Map size rounded up to whole windows (zeros on the right and bottom)."""
        return self.grid[0] * self.window, self.grid[1] * self.window

    @property
    def grid(self) -> tuple[int, int]:
        """Windows per column and per row."""
        return -(-self.size[0] // self.window), -(-self.size[1] // self.window)

    @property
    def windows(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def has_carriers(self) -> bool:
        """Carriers exist only where there is more than one window to connect (sr_ratio > 1)."""
        return self.hat and self.windows > 1

    @property
    def carriers_per_window(self) -> int:
        return self.ct_size**2 if self.has_carriers else 0

    @property
    def carriers(self) -> int:
        """Carrier tokens of one image."""
        return self.windows * self.carriers_per_window

    @property
    def square(self) -> bool:
        """Whether the grid of windows, and so of carriers, is square."""
        return self.grid[0] == self.grid[1]

    @property
    def carrier_side(self) -> int:
        """Side of the largest square within the carriers: the grid that their position modules describe."""
        return math.isqrt(self.carriers)

    @property
    def tokens(self) -> int:
        """Tokens one window's attention sees: its own and its carriers."""
        return self.window**2 + self.carriers_per_window

    def check(self, x_BCHW: torch.Tensor) -> None:
        """Refuse a map of another size.

        Raises:
            FasterViTError: it is not ``size``.
        """
        if tuple(x_BCHW.shape[2:]) != self.size:
            raise FasterViTError(
                f"this HAT stage serves {self.size[0]}x{self.size[1]} maps, not "
                f"{x_BCHW.shape[2]}x{x_BCHW.shape[3]}; call set_resolution first"
            )

    def pad(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F  # here: who only counts windows needs no PyTorch

        bottom, right = self.padded[0] - self.size[0], self.padded[1] - self.size[1]
        return F.pad(x_BCHW, (0, right, 0, bottom)) if bottom or right else x_BCHW

    def crop(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return x_BCHW[:, :, : self.size[0], : self.size[1]] if self.padded != self.size else x_BCHW


def window_partition(x_BCHW: torch.Tensor, window: int) -> torch.Tensor:
    """(B, C, H, W) → (B · windows, window², C); windows row-major, tokens of a window row-major."""
    channels, height, width = x_BCHW.shape[1:]
    rows, cols = height // window, width // window
    x = x_BCHW.reshape(-1, channels, rows, window, cols, window)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, window * window, channels)


def window_reverse(tok_WnTC: torch.Tensor, window: int, grid: tuple[int, int]) -> torch.Tensor:
    """(B · windows, window², C) → (B, C, H, W): the inverse of :func:`window_partition`."""
    rows, cols = grid
    channels = tok_WnTC.shape[-1]
    x = tok_WnTC.reshape(-1, rows, cols, window, window, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * window, cols * window)


def carriers_to_raster(ct_BGC: torch.Tensor, ct_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Carriers grouped by window → raster order of the whole carrier map, (B, G, C) both."""
    return _exchange_inner(ct_BGC, (grid[0], grid[1], ct_size, ct_size))


def carriers_to_windows(
    ct_BGC: torch.Tensor, ct_size: int, grid: tuple[int, int], order: CarrierOrder = "reference"
) -> torch.Tensor:
    """Carriers in raster order → grouped by window, (B, G, C) both.

    With ``order="corrected"`` this is the inverse of :func:`carriers_to_raster`. With ``"reference"`` (default) the
    grid's rows and columns are exchanged, as in the published model; the two agree on square grids and differ on
    all others, where official any-resolution results embed the exchange.
    """
    rows, cols = grid if order == "corrected" else (grid[1], grid[0])
    return _exchange_inner(ct_BGC, (rows, ct_size, cols, ct_size))


def _exchange_inner(ct_BGC: torch.Tensor, sizes: tuple[int, int, int, int]) -> torch.Tensor:
    """Reads G as ``sizes`` and exchanges the two middle axes: (row, col, y, x) ↔ (row, y, col, x)."""
    carriers, channels = ct_BGC.shape[1:]
    return ct_BGC.reshape(-1, *sizes, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, carriers, channels)
