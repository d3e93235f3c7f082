"""The operators' definitions against other ways to write them: SDPA, modules, loops over windows, interpolation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.models import geometry
from fastervit_trt.models.hat import _nearest_index
from fastervit_trt.plugins import reference

pytestmark = pytest.mark.usefixtures("one_thread")  # tensors are small: threads cost more than they save

Grid = tuple[int, int]

# Of the largest value: a few roundings of float32 and float64.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
GRIDS = ((1, 1), (2, 2), (2, 3), (3, 1))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def numbered(*shape: int, start: int = 0) -> torch.Tensor:
    """Every value another integer, so that sums and comparisons are exact."""
    return torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Equal to ``tolerance`` of the largest expected value; says where it is not."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def windows_one_by_one(x_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Each height x width window of each image cut out by its corner: (B · windows, height · width, C)."""
    corners = itertools.product(range(0, x_BCHW.shape[2], height), range(0, x_BCHW.shape[3], width))
    cut = [(image, top, left) for image, (top, left) in itertools.product(x_BCHW, list(corners))]
    return torch.stack([image[:, top : top + height, left : left + width].flatten(1).T for image, top, left in cut])


# Attention.

# tokens, heads, head dim, windows
ATTENTIONS = {
    "7x7 and 4 carriers": (53, 8, 32, 3),
    "7x7": (49, 16, 32, 3),
    "head dim 40": (16, 8, 40, 3),
    "head dim 49": (53, 3, 49, 2),
    "one token": (1, 4, 32, 3),
    "one head": (17, 1, 24, 3),
    "one window": (49, 2, 32, 1),
    "one of everything": (1, 1, 1, 1),
    "12x12": (144, 4, 32, 2),
}


def attention_inputs(case: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed rows with the scale in q, and a bias as large as the scores."""
    tokens, heads, dim, windows = ATTENTIONS[case]
    qkv = noise(windows * tokens, 3, heads * dim, dtype=torch.float64)
    qkv[:, 0] *= dim**-0.5
    return qkv.flatten(1).to(dtype), noise(1, heads, tokens, tokens, seed=1, dtype=dtype)


def heads_of(qkv_X3D: torch.Tensor, bias_1hNN: torch.Tensor) -> list[torch.Tensor]:
    """q, k and v, each (windows, heads, tokens, head dim), cut out column by column."""
    heads, tokens = bias_1hNN.shape[1:3]
    dim = qkv_X3D.shape[1] // 3 // heads
    rows = qkv_X3D.unflatten(0, (-1, tokens))
    starts = [[(part * heads + head) * dim for head in range(heads)] for part in range(3)]
    return [torch.stack([rows[..., start : start + dim] for start in part], dim=1) for part in starts]


def rows_of(context_WhND: torch.Tensor) -> torch.Tensor:
    """(windows, heads, tokens, head dim) → rows with the heads side by side."""
    return torch.cat(context_WhND.unbind(1), dim=2).flatten(0, 1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", ATTENTIONS)
def test_window_attention_is_scaled_dot_product_attention(case: str, dtype: torch.dtype) -> None:
    qkv, bias = attention_inputs(case, dtype)
    q, k, v = heads_of(qkv, bias)
    expected = rows_of(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0))
    assert_near(reference.window_attention(qkv, bias), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ATTENTIONS)
def test_window_attention_rounds_no_more_than_the_same_steps_one_by_one(case: str, dtype: torch.dtype) -> None:
    qkv, bias = attention_inputs(case, dtype)
    q, k, v = heads_of(qkv.double(), bias)
    exact = rows_of(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.double(), scale=1.0))
    steps = torch.empty_like(q, dtype=dtype)
    for window, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        q1, k1, v1 = (part[window, head].to(dtype) for part in (q, k, v))
        steps[window, head] = (q1 @ k1.T + bias[0, head]).softmax(dim=1) @ v1
    actual = reference.window_attention(qkv, bias)
    assert actual.dtype == dtype
    assert (actual.double() - exact).abs().max() <= 2 * (rows_of(steps).double() - exact).abs().max()


def test_window_attention_keeps_windows_apart() -> None:
    qkv, bias = attention_inputs("7x7 and 4 carriers", torch.float32)
    expected = reference.window_attention(qkv, bias)
    qkv[53:106] = torch.nan
    actual = reference.window_attention(qkv, bias)
    assert actual[53:106].isnan().all()
    assert torch.equal(actual[:53], expected[:53])
    assert torch.equal(actual[106:], expected[106:])


# Partition and reverse.


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("window", [1, 4, 7, 16])
def test_partition_and_reverse_without_carriers(window: int, grid: Grid) -> None:
    size = (grid[0] * window, grid[1] * window)
    x, no_table = numbered(3, 5, *size), torch.zeros(1, window**2, 5, dtype=torch.float64)
    tok = reference.window_partition(x, None, no_table, window)
    assert torch.equal(tok, windows_one_by_one(x, window, window))
    assert torch.equal(tok, geometry.window_partition(x, window))
    assert torch.equal(reference.window_reverse(tok, None, 0, window, *size), x)

    tok = numbered(3 * grid[0] * grid[1], window**2, 5)
    x = reference.window_reverse(tok, None, 0, window, *size)
    assert torch.equal(x, geometry.window_reverse(tok, window, grid))
    assert torch.equal(reference.window_partition(x, None, no_table, window), tok)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ct_size", [1, 2, 4])
def test_carriers_lie_before_the_tokens_of_their_own_window(ct_size: int, grid: Grid) -> None:
    window, carriers = 5, ct_size**2
    x = numbered(2, 3, grid[0] * window, grid[1] * window)
    ct = numbered(2, 3, grid[0] * ct_size, grid[1] * ct_size, start=-10_000)
    tok = reference.window_partition(x, ct, torch.zeros(1, carriers + window**2, 3, dtype=torch.float64), window)
    assert torch.equal(tok[:, :carriers], windows_one_by_one(ct, ct_size, ct_size))
    assert torch.equal(tok[:, :carriers], geometry.window_partition(ct, ct_size))
    assert torch.equal(tok[:, carriers:], windows_one_by_one(x, window, window))
    assert torch.equal(reference.window_reverse(tok, None, carriers, window, *x.shape[2:]), x)


@pytest.mark.parametrize("ct_size", [0, 2])
def test_the_table_is_added_to_every_window(ct_size: int) -> None:
    x, ct = numbered(2, 3, 6, 9), numbered(2, 3, 2 * ct_size, 3 * ct_size) if ct_size else None
    table = numbered(1, ct_size**2 + 9, 3, start=10_000)
    plain = reference.window_partition(x, ct, torch.zeros_like(table), 3)
    added = reference.window_partition(x, ct, table, 3)
    assert added.shape == (12, ct_size**2 + 9, 3)
    for window in range(12):
        assert torch.equal(added[window], plain[window] + table[0])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_partition_does_not_mind_how_maps_lie_in_memory(grid: Grid, memory_format: torch.memory_format) -> None:
    x, ct = numbered(2, 3, grid[0] * 4, grid[1] * 4), numbered(2, 3, grid[0] * 2, grid[1] * 2)
    table = numbered(1, 20, 3)
    expected = torch.cat([windows_one_by_one(ct, 2, 2), windows_one_by_one(x, 4, 4)], dim=1) + table
    x, ct = (t.contiguous(memory_format=memory_format) for t in (x, ct))
    assert torch.equal(reference.window_partition(x, ct, table, 4), expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ct_size", [1, 2, 3])
def test_reverse_drops_carriers(ct_size: int, grid: Grid) -> None:
    carriers, size = ct_size**2, (grid[0] * 7, grid[1] * 7)
    tok = numbered(2 * grid[0] * grid[1], carriers + 49, 3)
    expected = geometry.window_reverse(tok[:, carriers:], 7, grid)
    tok[:, :carriers] = torch.nan
    assert torch.equal(reference.window_reverse(tok, None, carriers, 7, *size), expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ct_size", [1, 2, 3])
def test_propagation_is_nearest_neighbour_upsampling_of_the_carrier_map(ct_size: int, grid: Grid) -> None:
    carriers, size = ct_size**2, (grid[0] * 7, grid[1] * 7)
    tok, gamma = numbered(2 * grid[0] * grid[1], carriers + 49, 3), torch.tensor([2.0, -3.0, 0.0]).double()
    carrier_map = geometry.window_reverse(tok[:, :carriers], ct_size, grid)
    upsampled = F.interpolate(carrier_map, size=size, mode="nearest")
    expected = geometry.window_reverse(tok[:, carriers:], 7, grid) + gamma[:, None, None] * upsampled
    assert torch.equal(reference.window_reverse(tok, gamma, carriers, 7, *size), expected)


def test_the_nearest_carrier_is_the_one_of_the_model() -> None:
    for window in range(1, 25):
        for ct_size in range(1, window + 1):
            nearest = reference.nearest_carrier(ct_size**2, window)
            assert torch.equal(nearest, _nearest_index(ct_size, window)), (window, ct_size)


# The attention half of a block.


class AttentionHalf(nn.Module):
    """LayerNorm, projections and SDPA as modules: rows of windows (X, C) → (X, C), residual added."""

    def __init__(self, channels: int, heads: int, dim: int, tokens: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps, dtype=dtype)
        self.qkv = nn.Linear(channels, 3 * heads * dim, dtype=dtype)
        self.proj = nn.Linear(heads * dim, channels, dtype=dtype)
        for seed, name in enumerate(("weight", "bias")):
            setattr(self.norm, name, nn.Parameter(1 + noise(channels, seed=seed, dtype=dtype) / 4))
        for linear in (self.qkv, self.proj):
            linear.weight = nn.Parameter(noise(*linear.weight.shape, dtype=dtype) * linear.in_features**-0.5)
            linear.bias = nn.Parameter(noise(*linear.bias.shape, seed=2, dtype=dtype))
        self.bias = noise(1, heads, tokens, tokens, seed=4, dtype=dtype)

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        q, k, v = heads_of(self.qkv(self.norm(x_XC)), self.bias)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias, scale=1.0)
        return x_XC + self.proj(rows_of(context))

    @property
    def weights(self) -> Any:
        norm, qkv, proj = self.norm, self.qkv, self.proj
        return norm.weight, norm.bias, qkv.weight, qkv.bias, self.bias, proj.weight, proj.bias


def windows_of(case: str, eps: float, dtype: torch.dtype) -> tuple[AttentionHalf, torch.Tensor]:
    """Fewer channels than in the heads, and small rows, so that eps matters."""
    tokens, heads, dim, windows = ATTENTIONS[case]
    channels = heads * dim // 2 + 3
    rows = noise(windows * tokens, channels, seed=5, dtype=dtype) / 2
    return AttentionHalf(channels, heads, dim, tokens, eps, dtype), rows


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", ATTENTIONS)
@torch.inference_mode()
def test_fused_window_attention_is_what_modules_compute(case: str, dtype: torch.dtype, eps: float) -> None:
    modules, rows = windows_of(case, eps, dtype)
    assert_near(reference.fused_window_attention(rows, *modules.weights, eps=eps), modules(rows), TOLERANCES[dtype])


@torch.inference_mode()
def test_fused_window_attention_keeps_windows_apart() -> None:
    modules, rows = windows_of("7x7 and 4 carriers", 1e-5, torch.float32)
    expected = reference.fused_window_attention(rows, *modules.weights, eps=1e-5)
    rows[60] = torch.nan
    first, second, third = reference.fused_window_attention(rows, *modules.weights, eps=1e-5).split(53)
    assert second.isnan().all()
    assert torch.equal(first, expected[:53])
    assert torch.equal(third, expected[106:])


# Attention of the carriers.

# images, windows, carriers per window, tokens per window, heads, head dim, channels
CARRIER_ATTENTIONS = {
    "FasterViT-0": (3, 4, 4, 49, 8, 32, 256),
    "non-square grid of 2x3": (2, 6, 4, 16, 4, 12, 48),
    "one carrier per window": (3, 9, 1, 9, 2, 8, 16),
    "carriers only": (2, 4, 4, 0, 2, 8, 16),
    "heads padded from 49 to 56": (1, 4, 4, 9, 2, 56, 98),
    "one window": (3, 1, 4, 9, 2, 8, 16),
    "one carrier": (2, 1, 1, 4, 1, 5, 7),
}


class CarrierAttention(nn.Module):
    """The same on carriers, gathered one by one."""

    def __init__(self, case: str, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.images, self.windows, self.carriers, tokens, heads, dim, channels = CARRIER_ATTENTIONS[case]
        of_image = self.windows * self.carriers
        self.attention = AttentionHalf(channels, heads, dim, of_image, eps, dtype)
        self.table = noise(1, of_image, channels, seed=3, dtype=dtype)
        # Small tokens, so that eps matters.
        self.tok = noise(self.images * self.windows, self.carriers + tokens, channels, seed=5, dtype=dtype) / 2

    def forward(self) -> torch.Tensor:
        places = list(itertools.product(range(self.windows), range(self.carriers)))
        ct = torch.stack(
            [
                torch.stack([self.tok[image * self.windows + window, carrier] for window, carrier in places])
                for image in range(self.images)
            ]
        )
        return self.attention((ct + self.table).flatten(0, 1))

    def of_reference(self) -> torch.Tensor:
        attention = self.attention
        return reference.carrier_attention(self.tok, self.table, *attention.weights, self.carriers, attention.norm.eps)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CARRIER_ATTENTIONS)
@torch.inference_mode()
def test_carrier_attention_is_what_modules_compute(case: str, dtype: torch.dtype, eps: float) -> None:
    modules = CarrierAttention(case, eps, dtype)
    assert_near(modules.of_reference(), modules(), TOLERANCES[dtype])


@pytest.mark.parametrize("case", [case for case, sizes in CARRIER_ATTENTIONS.items() if sizes[3]])
@torch.inference_mode()
def test_carrier_attention_reads_carriers_only(case: str) -> None:
    modules = CarrierAttention(case, 1e-5, torch.float32)
    expected = modules.of_reference()
    modules.tok[:, modules.carriers :] = torch.nan
    actual = modules.of_reference()
    assert actual.isfinite().all()
    assert torch.equal(actual, expected)


@torch.inference_mode()
def test_carriers_of_all_windows_of_an_image_meet_and_images_do_not() -> None:
    modules = CarrierAttention("non-square grid of 2x3", 1e-5, torch.float32)
    modules.tok[3, 1] = torch.nan  # a carrier of the first image
    first, second = modules.of_reference().unflatten(0, (2, -1))
    assert first.isnan().all()
    assert second.isfinite().all()
