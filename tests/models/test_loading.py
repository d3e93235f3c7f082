"""Strict loading, and the differences between files in the wild that it tolerates and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import FasterViT, create_model
from fastervit_trt.models.loading import load_state_dict, looks_like
from fastervit_trt.models.position import PositionModule
from tests.conftest import fill_from_names

State = dict[str, torch.Tensor]
NAME = "faster_vit_digits_m"
DERIVED = ("relative_bias", "relative_coords_table", "relative_position_index")


def trained(resolution: int | tuple[int, int] = 224, **overrides: Any) -> FasterViT:
    model = create_model(NAME, resolution, **overrides)
    fill_from_names(model)
    return model


def state_of(model: FasterViT, *, tables: bool = False) -> State:
    """The state dict, with the position tables filled in where asked."""
    for module in model.modules():
        if tables and isinstance(module, PositionModule):
            module.refresh_stored_table()
    return {key: value.clone() for key, value in model.state_dict().items()}


def images(resolution: tuple[int, int] = (224, 224)) -> torch.Tensor:
    return torch.randn(2, 3, *resolution, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_a_complete_file_is_loaded_without_remarks() -> None:
    model, other = trained(), create_model(NAME).eval()
    assert load_state_dict(other, state_of(model), "file") == []
    assert torch.equal(other(images()), model(images()))


def without(state: State, *fragments: str) -> State:
    return {key: value for key, value in state.items() if not any(fragment in key for fragment in fragments)}


def nested_head(state: State) -> State:
    return {key.replace("head.", "head.1."): value for key, value in state.items()}


def other_window(state: State) -> State:
    foreign = state_of(create_model(NAME, window_size=(7, 7, 5, 5)))
    return {key: foreign[key] if key.endswith(DERIVED) else value for key, value in state.items()}


TOLERATED: dict[str, tuple[Callable[[State], State], str]] = {
    "derived tables left out": (lambda s: without(s, *DERIVED), "position tables are made anew"),
    "tables of another window": (other_window, "position tables are made anew"),
    "deploy form": (lambda s: without(s, "cpb_mlp"), "10 position modules have only their stored table"),
    "deploy form, tables only": (
        lambda s: without(s, "cpb_mlp", "relative_coords_table", "relative_position_index"),
        "10 position modules have only their stored table",
    ),
    "one name of the tokenizer": (lambda s: without(s, "to_global_feature"), "under one of its two names"),
    "the other name of the tokenizer": (lambda s: without(s, "tokenizer.pos_embed"), "under one of its two names"),
    "head in a container": (nested_head, "head.1 is read as head"),
}


@pytest.mark.parametrize("kind", TOLERATED)
@torch.inference_mode()
def test_what_does_not_change_the_function_is_tolerated_and_listed(kind: str) -> None:
    change, note = TOLERATED[kind]
    model, other = trained(), create_model(NAME).eval()
    tolerated = load_state_dict(other, change(state_of(model, tables=True)), "file")
    assert any(note in line for line in tolerated)
    torch.testing.assert_close(other(images()), model(images()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("resolution", [(160, 320), (112, 112), (448, 448), (97, 225)])
@torch.inference_mode()
def test_a_checkpoint_of_224_serves_any_resolution(resolution: tuple[int, int]) -> None:
    model, other = trained(), create_model(NAME, resolution).eval()
    tolerated = load_state_dict(other, state_of(model, tables=True), "file")
    assert tolerated
    model.set_resolution(resolution)
    assert torch.equal(other(images(resolution)), model(images(resolution)))


@torch.inference_mode()
def test_backbone_takes_the_classifiers_file() -> None:
    model = trained()
    backbone = create_model(NAME, features_only=True, out_indices=(0, 2)).eval()
    (note,) = load_state_dict(backbone, state_of(model), "file")
    assert "outside the backbone are left out" in note
    x = model.levels[0](model.patch_embed(images()), downsample=False)
    assert torch.equal(backbone(images())[0], x)


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "carriers missing": (lambda s: without(s, "hat_"), r"hat_norm1.weight .* is missing from the file"),
    "stored tables all zero": (
        lambda s: {k: v * 0 if k.endswith("relative_bias") else v for k, v in without(s, "cpb_mlp").items()},
        "is all zeros: it was saved in deploy form before any forward pass",
    ),
    "stored tables of another size": (
        lambda s: without(other_window(s), "cpb_mlp"),
        "has no MLP in this checkpoint, and its stored table",
    ),
    "half an MLP": (lambda s: without(s, "cpb_mlp.0"), r"cpb_mlp.0.weight \(512, 2\) is missing from the file"),
    "missing and left over": (
        lambda s: {**without(s, "norm.weight"), "extra.weight": s["head.bias"]},
        r"is missing from the file; .*and \d+ more",
    ),
    "no head": (lambda s: without(s, "head."), r"head.weight \(10, 64\) is missing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_change_the_function_is_refused(kind: str) -> None:
    change, message = REFUSED[kind]
    with pytest.raises(FasterViTError, match=message):
        load_state_dict(create_model(NAME), change(state_of(trained(), tables=True)), "file")


def test_a_model_without_carriers_by_design_refuses_a_file_with_them() -> None:
    """Only a resolution may leave carriers unused, never a variant."""
    with pytest.raises(FasterViTError, match="it looks like faster_vit_digits_m"):
        load_state_dict(create_model(NAME, hat=(False,) * 4), state_of(trained()), "file")


def test_another_class_count_asks_for_num_classes() -> None:
    with pytest.raises(FasterViTError, match=r"has 37 classes, the model 10; pass --num-classes 37$"):
        load_state_dict(create_model(NAME), state_of(create_model(NAME, num_classes=37)), "file")


def test_another_variant_is_named_with_keys_and_both_shapes() -> None:
    with pytest.raises(FasterViTError) as caught:
        load_state_dict(create_model("faster_vit_digits_s"), state_of(trained()), "m.pth")
    message = str(caught.value)
    assert "patch_embed.conv_down.0.weight is (8, 3, 3, 3) in the file and (4, 3, 3, 3) in the model" in message
    assert message.count(" in the file and ") == 3
    assert message.endswith("more; it looks like faster_vit_digits_m")


@pytest.mark.parametrize(
    "name", ["faster_vit_0_224", "faster_vit_3_224", "faster_vit_4_224", "faster_vit_6_224", "faster_vit_4_21k_384"]
)
def test_variants_are_recognised_by_their_state_dict(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name).state_dict()
    assert looks_like(state) == name
    assert looks_like({key: value for key, value in state.items() if not key.endswith(DERIVED)}) is not None
    assert looks_like({"conv1.weight": torch.zeros(1)}) is None


@torch.inference_mode()
def test_assigned_tensors_are_kept_not_copied() -> None:
    model, other = trained(), create_model(NAME)
    state = state_of(model)
    load_state_dict(other, state, "file", assign=True)
    assert other.head.weight.data_ptr() == state["head.weight"].data_ptr()
    assert other.head.weight.requires_grad
