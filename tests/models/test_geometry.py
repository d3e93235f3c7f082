from __future__ import annotations

import pytest
import torch

from fastervit_trt.models.geometry import (
    StageGeometry,
    carriers_to_raster,
    carriers_to_windows,
    stage_resolutions,
    window_partition,
    window_reverse,
)


def test_facts_of_fastervit_0_at_224() -> None:
    assert stage_resolutions((224, 224)) == ((56, 56), (28, 28), (14, 14), (7, 7))
    stage = StageGeometry((14, 14), window=7, ct_size=2, hat=True)
    assert (stage.windows, stage.carriers, stage.carriers_per_window, stage.tokens) == (4, 16, 4, 53)
    assert not StageGeometry((7, 7), window=7, ct_size=2, hat=True).has_carriers


@pytest.mark.parametrize("resolution", [(449, 450), (64, 97), (333, 500)])
def test_stage_resolutions_follow_the_convolutions(resolution: tuple[int, int]) -> None:
    x = torch.zeros(1, 1, *resolution)
    conv = torch.nn.Conv2d(1, 1, 3, stride=2, padding=1)
    sizes = []
    for halvings in (2, 1, 1, 1):
        for _ in range(halvings):
            x = conv(x)
        sizes.append(tuple(x.shape[2:]))
    assert stage_resolutions(resolution) == tuple(sizes)


@pytest.mark.parametrize(("height", "width", "window"), [(14, 14, 7), (6, 10, 2), (5, 15, 5)])
def test_window_reverse_undoes_partition(height: int, width: int, window: int) -> None:
    x = torch.randn(3, 4, height, width)
    grid = (height // window, width // window)
    windows = window_partition(x, window)
    assert windows.shape == (3 * grid[0] * grid[1], window * window, 4)
    last = x[-1, :, height - window :, width - window :]  # bottom right of the last image
    assert torch.equal(windows[-1], last.flatten(1).T)
    assert torch.equal(windows[1], x[0, :, :window, window : 2 * window].flatten(1).T)  # rows of windows first
    assert torch.equal(window_reverse(windows, window, grid), x)


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (5, 3), (1, 2)])
def test_carrier_order(grid: tuple[int, int]) -> None:
    ct_size = 2
    raster_map = torch.arange(grid[0] * grid[1] * 4.0).reshape(1, 1, grid[0] * ct_size, grid[1] * ct_size)
    grouped = window_partition(raster_map, ct_size).reshape(1, -1, 1)
    raster = raster_map.reshape(1, -1, 1)
    assert torch.equal(carriers_to_raster(grouped, ct_size, grid), raster)
    assert torch.equal(carriers_to_windows(raster, ct_size, grid, "corrected"), grouped)
    as_published = carriers_to_windows(raster, ct_size, grid, "reference")
    assert torch.equal(as_published, grouped) == (grid[0] == grid[1])


def test_padding_is_cropped_again() -> None:
    stage = StageGeometry((13, 8), window=7, ct_size=2, hat=True)
    x = torch.randn(2, 3, 13, 8)
    padded = stage.pad(x)
    assert padded.shape[2:] == stage.padded == (14, 14)
    assert padded[:, :, 13:].abs().sum() == 0
    assert padded[:, :, :, 8:].abs().sum() == 0
    assert torch.equal(stage.crop(padded), x)
