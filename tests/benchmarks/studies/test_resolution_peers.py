from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastervit_trt.benchmarks.studies.resolution_peers import (
    NETWORKS,
    GlobalStage,
    PlainViT,
    ShiftedStage,
    make_network,
    region_mask,
)
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.models.factory import resolve_config
from fastervit_trt.models.geometry import StageGeometry, window_partition
from fastervit_trt.models.hat import HATStage

HYBRIDS = [name for name in NETWORKS if name != "vit"]
DIM, HEADS, WINDOW, SIDE = 8, 2, 4, 12  # nine windows


def stage(name: str, depth: int) -> nn.Module:
    """A transformer stage of a peer with random weights, in double precision."""
    torch.manual_seed(0)
    own = HATStage(DIM, depth, HEADS, StageGeometry((SIDE, SIDE), WINDOW, 2, hat=name == "hat"))
    made: nn.Module = own
    if name == "shifted":
        made = ShiftedStage(own, DIM, HEADS, 4.0)
    elif name == "global":
        made = GlobalStage(own, DIM, HEADS, 4.0, explicit=False)
    return made.eval().double()


@torch.no_grad()
def reached(module: nn.Module, row: int, column: int) -> torch.Tensor:
    """Which tokens of a map change when one does: (SIDE, SIDE) bool."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, DIM, SIDE, SIDE, generator=generator, dtype=torch.float64)
    changed = images.clone()
    changed[0, :, row, column] += torch.randn(DIM, generator=generator, dtype=torch.float64)
    return (module(images) != module(changed)).any(dim=1)[0]


def window_of(row: int, column: int) -> torch.Tensor:
    own = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    top, left = row // WINDOW * WINDOW, column // WINDOW * WINDOW
    own[top : top + WINDOW, left : left + WINDOW] = True
    return own


@pytest.mark.parametrize(("name", "depth"), [("windows", 3), ("shifted", 1)])
def test_without_shift_a_window_sees_itself_alone(name: str, depth: int) -> None:
    assert torch.equal(reached(stage(name, depth), 5, 6), window_of(5, 6))


def test_shifted_windows_reach_their_neighbours_and_no_farther() -> None:
    seen = reached(stage("shifted", 2), 5, 6)
    # The window of rows and columns 4..7 is cut in four by windows from 2 to 5 and from 6 to 9.
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[2:10, 2:10] = True
    assert torch.equal(seen, expected)


def test_shifted_windows_do_not_join_opposite_ends_of_the_map() -> None:
    seen = reached(stage("shifted", 2), 0, 0)
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[:6, :6] = True  # its window, and the shifted one that begins in it
    assert torch.equal(seen, expected)


@pytest.mark.parametrize(("name", "depth"), [("global", 1), ("hat", 2)])
def test_global_and_hierarchical_attention_reach_everything(name: str, depth: int) -> None:
    assert reached(stage(name, depth), 0, 0).all()


@pytest.mark.parametrize(("size", "window"), [((12, 12), 4), ((14, 14), 7), ((10, 10), 4)])
def test_the_mask_lets_pairs_through_that_are_as_far_apart_as_they_were(size: tuple[int, int], window: int) -> None:
    geometry, shift = StageGeometry(size, window, 2, hat=False), window // 2
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in geometry.padded), indexing="ij")
    before = torch.stack([rows, columns])[None].float()
    at = window_partition(before.roll((-shift, -shift), dims=(2, 3)), window)  # where each token of a window came from
    here = window_partition(before, window)
    moved = at[:, :, None] - at[:, None, :]
    together = (moved == here[:, :, None] - here[:, None, :]).all(dim=3)
    mask = region_mask(geometry, shift)
    assert torch.equal(mask == 0, together)
    assert torch.equal(torch.isinf(mask), ~together)


def test_a_map_of_one_window_is_not_shifted() -> None:
    geometry = StageGeometry((WINDOW, WINDOW), WINDOW, 2, hat=False)
    module = ShiftedStage(HATStage(DIM, 2, HEADS, geometry), DIM, HEADS, 4.0)
    assert module.shift == 0
    module.retarget(replace(geometry, size=(SIDE, SIDE)))
    assert module.shift == WINDOW // 2


@torch.no_grad()
def test_scores_in_memory_give_what_the_fused_kernel_gives() -> None:
    config = resolve_config("faster_vit_digits_m")
    fused, explicit = (make_network(name, config).eval() for name in ("global", "global-explicit"))
    explicit.load_state_dict(fused.state_dict())
    images = torch.randn(2, 3, 224, 224)
    assert torch.allclose(fused(images), explicit(images), atol=1e-5)


@pytest.mark.parametrize("name", HYBRIDS)
def test_peers_differ_from_fastervit_in_attention_alone(name: str) -> None:
    config = resolve_config("faster_vit_0_224")
    with torch.device("meta"):
        own, peer = make_network("fastervit", config), make_network(name, config)

    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        parts = ("patch_embed.", "levels.0.", "levels.1.", "levels.2.downsample.", "norm.", "head.")
        weights = ("qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
        found = model.state_dict().items()
        return {k: v.shape for k, v in found if "hat_" not in k and (k.startswith(parts) or k.endswith(weights))}

    assert shapes(peer) == shapes(own)
    assert len([key for key in shapes(peer) if "qkv" in key]) == 11  # 6 blocks of stage 2, 5 of stage 3
    heads = [m.heads for m in peer.modules() if hasattr(m, "heads") and isinstance(getattr(m, "qkv", None), nn.Linear)]
    assert set(heads) == {8, 16}


@pytest.mark.parametrize("name", ["faster_vit_0_224", "faster_vit_1_224", "faster_vit_2_224", "faster_vit_4_224"])
def test_the_isotropic_vit_has_as_many_parameters(name: str) -> None:
    config = resolve_config(name)
    with torch.device("meta"):
        own, vit = make_network("fastervit", config), make_network("vit", config)
    counts = [sum(p.numel() for p in model.parameters()) for model in (own, vit)]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)
    assert isinstance(vit, PlainViT)
    assert 9 <= len(vit.blocks) <= 16


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_serves_every_size_and_has_the_same_deploy_form(name: str) -> None:
    torch.manual_seed(0)
    model = make_network(name, replace(resolve_config("faster_vit_digits_m"), resolution=(256, 256))).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    for side in (224, 72, 160, 256):  # one window, windows that fill the map, and padding
        model.set_resolution((side, side))
        images = torch.randn(2, 3, side, side)
        expected = model(images)
        deployed, report = deploy_form(model)
        assert expected.shape == (2, 10)
        assert torch.allclose(deployed(images), expected, atol=1e-5 * float(expected.abs().max()))
        assert report.changes["bake_position_tables"] > 0


def test_what_cannot_be_compared_is_refused() -> None:
    config = resolve_config("faster_vit_digits_s")
    with pytest.raises(FasterViTError, match="no network 'mamba'; choose from fastervit, windows"):
        make_network("mamba", config)
    with pytest.raises(FasterViTError, match="square images, not 64x96"):
        make_network("global", replace(config, resolution=(64, 96)))
