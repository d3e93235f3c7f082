"""Parts of heads in another form compute what the originals do, also where a map is narrow or a point outside."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import RTDetrV2Config
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2MultiscaleDeformableAttention

from fastervit_trt.export.heads import modules
from fastervit_trt.export.precision import FLOATS
from fastervit_trt.export.typed_model import typed_model

SIZES, POINTS, HEADS = ((3, 7), (4, 1), (1, 5), (1, 1)), (2, 3, 1, 2), 3
IMAGES, QUERIES, CHANNELS = 2, 11, 4


@pytest.mark.parametrize("size", [(4, 5), (12, 8), (25, 38)], ids=str)
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pooled_bins_are_adaptive_pooling(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(modules.PooledBins(size, side)(x), F.adaptive_avg_pool2d(x, side))


def looked_up(around: modules.PixelsAround, table: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(B, Q, heads, P, C) of ``table`` (B, positions, heads, C) at ``points``."""
    rows, shares = around(points)
    return (table.flatten(0, 2)[rows] * shares[..., None]).sum(4)


def sampled(table: torch.Tensor, points: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The same by PyTorch's ``grid_sample``, map by map and head by head."""
    maps = table.split([height * width for height, width in sizes], dim=1)
    found = []
    for x, size, of_map in zip(maps, sizes, points.split(POINTS, dim=3), strict=True):
        images = x.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)  # (B·heads, C, H, W)
        grid = (2 * of_map - 1).transpose(1, 2).flatten(0, 1)
        values = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        found.append(values.unflatten(0, (-1, HEADS)).permute(0, 3, 1, 4, 2))
    return torch.cat(found, dim=3)


@pytest.mark.parametrize("kind", ["anywhere", "centres", "borders"])
def test_pixels_around_a_point_are_bilinear_sampling(kind: str) -> None:
    torch.manual_seed(0)
    table = torch.randn(IMAGES, sum(height * width for height, width in SIZES), HEADS, CHANNELS)
    shape = (IMAGES, QUERIES, HEADS, sum(POINTS), 2)
    points = {
        "anywhere": torch.rand(shape) * 3 - 1,
        "centres": torch.randint(-1, 9, shape) / torch.tensor([7.0, 3.0]) + torch.tensor([1 / 14, 1 / 6]),
        "borders": torch.randint(-1, 3, shape).float(),
    }[kind]
    found = looked_up(modules.PixelsAround(SIZES, POINTS, HEADS), table, points)
    torch.testing.assert_close(found, sampled(table, points, SIZES), rtol=1e-4, atol=1e-5)
    if kind == "anywhere":
        outside = ((points < -1 / 2) | (points > 3 / 2)).any(-1)
        assert outside.any() and (found[outside] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_points_that_are_nowhere_read_nothing_beyond_the_table(value: float) -> None:
    """On a GPU that would be memory of others."""
    around = modules.PixelsAround(SIZES, POINTS, HEADS)
    points = torch.full((IMAGES, 1, HEADS, sum(POINTS), 2), value)
    points[:, :, :, ::2, 0] = 0.5
    rows, shares = around(points)
    of_image = HEADS * sum(height * width for height, width in SIZES)
    for image in range(IMAGES):
        assert ((rows[image] >= image * of_image) & (rows[image] < (image + 1) * of_image)).all()
    assert shares.isnan().any() if value != value else (shares == 0).all()


@pytest.mark.parametrize("precision", FLOATS)
def test_rows_are_not_rounded_in_any_precision(precision: str) -> None:
    """bfloat16 has no 401, float16 no 2049."""
    sizes = ((401, 2049), (203, 1025))
    around = modules.PixelsAround(sizes, (1, 1), 2)
    points = torch.rand(1, 50, 2, 2, 2)
    typed_model(typed := modules.PixelsAround(sizes, (1, 1), 2), FLOATS[precision])
    for one, same in zip(around(points), typed(points), strict=True):
        assert torch.equal(one, same)


def test_deformable_attention_is_that_of_transformers() -> None:
    """With scales and numbers of points that differ from map to map, which its configuration does not offer yet."""
    torch.manual_seed(0)
    sizes, width = [(8, 12), (4, 6), (2, 3)], 16
    original = RTDetrV2MultiscaleDeformableAttention(RTDetrV2Config(d_model=width, decoder_attention_heads=2)).eval()
    original.n_points_list, original.n_points_scale = [3, 7, 2], torch.rand(12) + 0.1
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    queries, positions = torch.randn(2, 5, width), torch.randn(2, 5, width)
    maps, boxes = torch.randn(2, sum(h * w for h, w in sizes), width), torch.rand(2, 5, 1, 4)
    same = modules.DeformableAttention(original, sizes)
    given = {"encoder_hidden_states": maps, "position_embeddings": positions, "reference_points": boxes}
    with torch.inference_mode():
        expected = original(queries, **given, spatial_shapes=torch.tensor(sizes), spatial_shapes_list=sizes)
        for one, other in zip(expected, same(queries, **given), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", FLOATS)
def test_points_are_where_they_are_in_any_precision(precision: str) -> None:
    """Half a pixel of 512 beside the middle of a box: between two numbers of bfloat16."""
    config = RTDetrV2Config(d_model=4, decoder_attention_heads=1, decoder_n_levels=1, decoder_n_points=1)
    original = RTDetrV2MultiscaleDeformableAttention(config).eval()
    for linear in (original.sampling_offsets, original.attention_weights, original.value_proj, original.output_proj):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.eye_(original.value_proj.weight)
    nn.init.eye_(original.output_proj.weight)
    with torch.inference_mode():
        original.sampling_offsets.bias[0] = 1 / 1024 / original.offset_scale
        attention = modules.DeformableAttention(original, [(1, 512)])
        typed_model(attention, FLOATS[precision])
        dtype = FLOATS[precision].dtype
        queries, maps = torch.zeros(1, 1, 4, dtype=dtype), torch.zeros(1, 512, 4, dtype=dtype)
        maps[0, 384] = 1
        box = torch.tensor([0.75, 0.5, 1, 1], dtype=dtype).reshape(1, 1, 1, 4)
        found, _ = attention(queries, encoder_hidden_states=maps, position_embeddings=queries, reference_points=box)
    assert found.tolist() == [[[1, 1, 1, 1]]]
