from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import FasterViT, create_model
from fastervit_trt.models.checkpoint import read_checkpoint, save_safetensors
from fastervit_trt.models.loading import load_state_dict

State = dict[str, torch.Tensor]

WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s},
    "model": lambda s: {"model": s},
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    # the top-level keys of the official files
    "official": lambda s: {
        "epoch": 309,
        "arch": "faster_vit_0_224",
        "state_dict": s,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "version": 2,
        "args": argparse.Namespace(model="faster_vit_0_224", opset=None),
        "amp_scaler": {"scale": 65536.0},
        "metric": 82.1,
    },
}


@pytest.fixture(scope="module")
def model() -> FasterViT:
    torch.manual_seed(1)
    return create_model("faster_vit_digits_s")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_files_as_they_exist_in_the_wild(model: FasterViT, tmp_path: Path, wrapping: str, legacy: bool) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(WRAPPINGS[wrapping](model.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    assert_loads_as(model, path)


def test_safetensors_round_trip_keeps_both_names_of_the_tokenizer(model: FasterViT, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_safetensors(model.state_dict(), path)
    assert {k for k in read_checkpoint(path) if "global_tokenizer" in k and k.endswith("weight")} == {
        "levels.2.global_tokenizer.pos_embed.weight",
        "levels.2.global_tokenizer.to_global_feature.pos.weight",
    }
    assert_loads_as(model, path)


class _Payload:
    """What a hostile pickle looks like: unpickling it creates a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path: Path, container: str) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"state_dict": {"w": torch.zeros(1)}, "args": _Payload(victim)}
    if container == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(_Payload(victim)))
    with pytest.raises(FasterViTError, match=r"is refused: its pickle asks .+, which could run code"):
        read_checkpoint(path)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pth.tar", "weights.safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated", "flipped"])
def test_corrupt_files_are_named_as_such(model: FasterViT, tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    if content == "empty":
        path.touch()
    elif content == "text":
        path.write_text("<!DOCTYPE html><title>Sign in</title>")
    else:
        save = save_safetensors if path.suffix == ".safetensors" else torch.save
        save(model.state_dict(), path)
        intact = path.read_bytes()
        damaged = {"truncated": intact[: len(intact) // 2], "flipped": bytes([intact[0] ^ 255]) + intact[1:]}
        path.write_bytes(damaged[content])
    with pytest.raises(FasterViTError, match=rf"checkpoint '.*{name}' is corrupt or no checkpoint"):
        read_checkpoint(path)


def test_missing_file_and_empty_content(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match=r"nowhere.pth' does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(FasterViTError, match="holds no state dict"):
        read_checkpoint(tmp_path / "empty.pth")


def assert_loads_as(model: FasterViT, path: Path) -> None:
    other = create_model("faster_vit_digits_s")
    load_state_dict(other, read_checkpoint(path), str(path))
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))
