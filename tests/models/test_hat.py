"""Hierarchical attention on its own: in other networks, on other maps, and what it promises to connect."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.graph import save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import FLOATS
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models import HATBlock, HATStage
from fastervit_trt.models.geometry import StageGeometry
from fastervit_trt.models.hat_examples import ConvNetWithHAT, PatchMerging, SwinWithHAT
from fastervit_trt.models.position import PositionModule
from tests.conftest import ROOT, fill_from_names

pytestmark = pytest.mark.usefixtures("one_thread")  # tensors are small: threads cost more than they save

PAGE = ROOT / "models" / "README.md"
DERIVED = ("relative_bias", "relative_coords_table", "relative_position_index")

Size = tuple[int, int]

EXAMPLES: dict[str, Callable[[Size], Any]] = {
    "convnet": lambda size: ConvNetWithHAT(size, 4, dim=32, window=2, ct_size=1),
    "swin": lambda size: SwinWithHAT(size, 4, depths=(1, 1), heads=(1, 2), window=4),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_map(size: Size, depth: int = 2, **options: Any) -> HATStage:
    """A stage of 8 channels with weights large enough for every path to show in the output."""
    stage = fill_from_names(HATStage.on_map(8, depth, 2, size, **options))
    assert isinstance(stage, HATStage)
    return stage


def changed_windows(before: torch.Tensor, after: torch.Tensor) -> set[int]:
    """Windows, of the first dimension, in which any value differs at all."""
    return set(torch.nonzero((before != after).flatten(1).any(1)).flatten().tolist())


# Which quarter of the image is bright: only a network that knows where its windows lie can tell.
def quarters(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = 0.3 * noise(count, 3, side, side), torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = label // 2 * side // 2 + 4, label % 2 * side // 2 + 4
        image[:, top : top + 6, left : left + 6] += 2
    return images, labels


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_learn(example: str) -> None:
    torch.manual_seed(0)
    model, (images, labels) = EXAMPLES[example]((32, 32)), quarters(16, 32)
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=5e-4), []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.2  # chance is log 4 = 1.39
    assert losses[-1] < 0.5


@pytest.mark.parametrize(("example", "size"), [("convnet", (64, 64)), ("swin", (45, 70))])
def test_examples_export_through_the_projects_own_path(tmp_path: Path, example: str, size: Size) -> None:
    model = EXAMPLES[example]((64, 64))
    fill_from_names(model)
    model.set_resolution(size)
    typed = TypedModel(deploy_form(model)[0], FLOATS["fp32"])
    (path,) = save_onnx(onnx_from_torch(typed, (3, *size), BatchRange(1, 2, 5)), tmp_path)
    session = OnnxCpuSession(path)
    for batch in (1, 2, 5):
        images = noise(batch, 3, *size, seed=batch)
        with torch.inference_mode():
            expected = model(images).numpy()
        (logits,) = session(images.numpy())
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("example", EXAMPLES)
@torch.inference_mode()
def test_examples_serve_any_resolution_and_return_unchanged(example: str) -> None:
    model = EXAMPLES[example]((64, 64))
    fill_from_names(model)
    images = noise(2, 3, 64, 64)
    expected = model(images)
    for size in ((16, 16), (33, 95), (96, 48)):
        model.set_resolution(size)
        assert model(noise(2, 3, *size)).isfinite().all()
    model.set_resolution((64, 64))
    assert torch.equal(model(images), expected)


@torch.inference_mode()
def test_an_example_that_cannot_serve_a_resolution_stays_as_it_was() -> None:
    model = EXAMPLES["swin"]((32, 32))  # its second stage is one window, without carriers
    model.set_resolution((24, 32))
    images = noise(1, 3, 24, 32)
    expected = model(images)
    with pytest.raises(FasterViTError, match="needs carrier tokens"):
        model.set_resolution((64, 64))
    assert torch.equal(model(images), expected)


@torch.inference_mode()
def test_patch_merging_puts_neighbours_side_by_side() -> None:
    merging = PatchMerging(2)
    merging.norm = nn.Identity()  # type: ignore[assignment]
    merging.reduction = nn.Identity()  # type: ignore[assignment]
    x = noise(2, 2, 5, 6)
    merged = merging(x)
    assert merged.shape == (2, 8, 3, 3)
    assert torch.equal(merged[:, :, 1, 2], x[:, :, 2:4, 4:6].permute(0, 2, 3, 1).flatten(1))
    assert merged[:, 4:, 2].eq(0).all()  # the lower neighbours of an odd last row


@pytest.mark.parametrize("window", range(1, 17))
def test_any_window_carrier_grid_and_map(window: int) -> None:
    rng = random.Random(window)
    for ct_size in range(1, window + 1):
        side, width = rng.randint(window + 1, 2 * window), rng.randint(2 * window + 1, 3 * window)
        for size in ((side, side), (window, width), (width, side)):
            options: dict[str, Any] = {"propagate": rng.random() < 0.5, "layer_scale": rng.choice([None, 0.5])}
            check_stage(on_map(size, 1, window=window, ct_size=ct_size, **options))


def check_stage(stage: HATStage) -> None:
    """Shape kept, finite, and a gradient in every parameter."""
    geometry = stage.geometry
    assert geometry.has_carriers
    x = noise(2, 8, *geometry.size)
    y = stage.train()(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    (y * noise(*y.shape, seed=1)).sum().backward()
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), (geometry, name)
        side = geometry.carrier_side if ".hat_" in name else geometry.window
        if side > 1 or not name.endswith("cpb_mlp.0.weight"):  # the only coordinates of a 1x1 grid are 0, 0
            assert parameter.grad.any(), (geometry, name)


@torch.inference_mode()
def test_images_of_a_batch_do_not_meet() -> None:
    stage, x = on_map((7, 13), window=3), noise(3, 8, 7, 13)
    y = stage(x)
    for i in range(3):
        torch.testing.assert_close(stage(x[i : i + 1]), y[i : i + 1])


@pytest.mark.parametrize("size", [(7, 7), (5, 3)])
def test_a_map_of_one_window_is_plain_attention(size: Size) -> None:
    stage = fill_from_names(HATStage(8, 1, 2, StageGeometry(size, window=7, ct_size=2, hat=True)))
    assert not any("hat_" in name or "global_tokenizer" in name for name in stage.state_dict())
    y = stage(noise(2, 8, *size))
    assert y.shape == (2, 8, *size)
    assert y.isfinite().all()


@pytest.mark.parametrize("size", [(12, 12), (7, 13)])
@torch.inference_mode()
def test_only_carriers_connect_windows(size: Size) -> None:
    geometry = StageGeometry(size, window=4, ct_size=2, hat=False)
    without = fill_from_names(HATStage(8, 3, 2, geometry))
    x = noise(1, 8, *size)
    for row, col in ((0, 0), (5, 6), (size[0] - 1, size[1] - 1)):
        y = x.clone()
        y[:, :, row, col] += noise(8, seed=1)  # LayerNorm would not see the same step in every channel
        for stage, expected in ((without, 1), (on_map(size, window=4), geometry.windows)):
            difference = geometry.pad((stage(x) - stage(y)).abs().amax(1, keepdim=True))
            windows = nn.functional.max_pool2d(difference, 4).flatten()
            assert int(windows.count_nonzero()) == expected
            assert windows[row // 4 * geometry.grid[1] + col // 4] > 0


@pytest.mark.parametrize("size", [(6, 6), (4, 6)])
@torch.inference_mode()
def test_news_of_a_window_reach_all_others_in_the_next_block(size: Size) -> None:
    # In float64: position biases weigh some carriers e^-16 of others, which float32 may round away.
    stage = on_map(size, window=2, ct_size=1).double()
    (first, second), windows = stage.blocks, stage.geometry.windows
    tok, ct = noise(windows, 4, 8).double(), noise(1, windows, 8, seed=1).double()
    for window in range(windows):
        other = tok.clone()
        other[window, 2] += noise(8, seed=2)
        (tok_1, ct_1), (other_1, other_ct_1) = first(tok, ct), first(other, ct)
        assert changed_windows(tok_1, other_1) == {window}
        assert changed_windows(ct_1[0], other_ct_1[0]) == {window}
        tok_2, other_2 = second(tok_1, ct_1)[0], second(other_1, other_ct_1)[0]
        assert changed_windows(tok_2, other_2) == set(range(windows))


def reached_by_carriers_of(window: int, block: HATBlock) -> set[int]:
    """Windows whose tokens change with the carriers of ``window`` while carriers do not attend to each other."""
    for silent in (block.hat_attn.proj, block.hat_mlp.fc2):
        silent.weight.zero_()
        silent.bias.zero_()
    geometry = block.geometry
    tok, ct = noise(geometry.windows, geometry.window**2, 8), noise(1, geometry.carriers, 8, seed=1)
    marked = ct.clone()
    marked[:, window * geometry.carriers_per_window : (window + 1) * geometry.carriers_per_window] += noise(8, seed=2)
    return changed_windows(block(tok, ct)[0], block(tok, marked)[0])


@pytest.mark.parametrize("size", [(4, 6), (6, 2), (4, 4)])
@torch.inference_mode()
def test_corrected_order_brings_carriers_home_and_the_reference_order_only_on_square_grids(size: Size) -> None:
    geometry = StageGeometry(size, window=2, ct_size=2, hat=True)
    orders: dict[Any, bool] = {"corrected": True, "reference": geometry.square}
    for order, home in orders.items():
        block = fill_from_names(HATBlock(8, 2, geometry, carrier_order=order))
        assert isinstance(block, HATBlock)
        strays = [w for w in range(geometry.windows) if reached_by_carriers_of(w, block) != {w}]
        assert (strays == []) == home, (order, strays)


def test_defaults_of_the_carrier_order() -> None:
    (block,) = on_map((4, 6), 1, window=2).blocks
    assert block.carrier_order == "corrected"
    geometry = StageGeometry((4, 6), window=2, ct_size=2, hat=True)
    assert HATBlock(8, 2, geometry).carrier_order == "reference"


def with_parameters_of(source: HATStage, stage: HATStage) -> HATStage:
    """``stage`` with every parameter that ``source`` has too; it must have no other."""
    state = {key: value for key, value in source.state_dict().items() if not key.endswith(DERIVED)}
    absent = stage.load_state_dict({k: v for k, v in state.items() if k in stage.state_dict()}, strict=False)
    assert [key for key in absent.missing_keys if not key.endswith(DERIVED)] == []
    return stage


# From a square map, the sizes differ in the number of windows, in squareness, in padding, and in having carriers.
@pytest.mark.parametrize("size", [(12, 12), (9, 9), (6, 15), (13, 5), (3, 3), (2, 3)])
@pytest.mark.parametrize("order", ["corrected", "reference"])
@torch.inference_mode()
def test_another_resolution_is_a_stage_built_there(size: Size, order: str) -> None:
    options: dict[str, Any] = {"propagate": True, "layer_scale": 0.5, "carrier_order": order}
    stage = on_map((6, 6), window=3, **options)
    before, x = stage(noise(2, 8, 6, 6)), noise(2, 8, *size)
    buffers = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    stage.set_resolution(size)
    geometry = StageGeometry(size, window=3, ct_size=2, hat=True)
    built = with_parameters_of(stage, HATStage(8, 2, 2, geometry, **options))
    assert torch.equal(stage(x), built(x))
    stage.set_resolution((6, 6))
    assert torch.equal(stage(noise(2, 8, 6, 6)), before)
    assert buffers.keys() == dict(stage.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in stage.named_buffers())


def without_position_mlps(stage: HATStage) -> HATStage:
    """As loaded from a checkpoint that kept the tables and dropped the MLPs."""
    for module in stage.modules():
        if isinstance(module, PositionModule):
            module.refresh_stored_table()
            module.keep_stored_table()
    return stage


REFUSALS: dict[str, tuple[Callable[[], HATStage], Size, str]] = {
    "one window has no carriers": (lambda: on_map((4, 4), window=4), (8, 8), "needs carrier tokens, which this"),
    "non-square has no embedding": (lambda: on_map((4, 8), window=4), (8, 8), "needs a carrier position embedding"),
    "tables without MLPs": (lambda: without_position_mlps(on_map((8, 8), window=4)), (12, 12), "MLPs were dropped"),
    "nothing": (lambda: on_map((8, 8), window=4), (0, 8), "a 0x8 map is impossible"),
}


@pytest.mark.parametrize("case", REFUSALS)
@torch.inference_mode()
def test_a_refused_resolution_leaves_the_stage_as_it_was(case: str) -> None:
    make, size, reason = REFUSALS[case]
    stage = make()
    geometry, x = stage.geometry, noise(2, 8, *stage.geometry.size)
    expected = stage(x)
    with pytest.raises(FasterViTError, match=reason):
        stage.set_resolution(size)
    assert stage.geometry == geometry
    assert torch.equal(stage(x), expected)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "window": ({"window": 7}, "window 7 exceeds the 6x9 map; choose at most 6"),
    "no window": ({"window": 0}, "a window of 0 on a 6x9 map is impossible"),
    "carriers": (
        {"ct_size": 4},
        "a carrier grid of side 4 does not fit a window of side 3; choose ct_size from 1 to 3",
    ),
    "no carriers": ({"ct_size": 0}, "a carrier grid of side 0 does not fit a window of side 3"),
    "heads": ({"heads": 3}, "8 channels cannot be split into 3 heads; choose heads that divide them"),
    "carrier order": ({"carrier_order": "correct"}, "carrier order 'correct' must be one of reference, corrected"),
    "no heads": ({"heads": 0}, "8 channels cannot be split into 0 heads; choose heads that divide them"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_does_not_fit_is_refused_in_one_line(case: str) -> None:
    overrides, reason = ERRORS[case]
    with pytest.raises(FasterViTError, match=reason) as error:
        HATStage.on_map(**{"dim": 8, "depth": 1, "heads": 2, "size": (6, 9), "window": 3, **overrides})
    assert len(str(error.value).splitlines()) == 1


def test_a_map_of_another_size_is_refused() -> None:
    stage = on_map((6, 9), window=3)
    for size in ((9, 6), (6, 8), (3, 3)):
        reason = f"serves 6x9 maps, not {size[0]}x{size[1]}; call set_resolution first"
        with pytest.raises(FasterViTError, match=reason):
            stage(noise(1, 8, *size))


def test_the_page_runs_as_written() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), {})


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
