"""Weights can be made again from their record, and a changed file is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.checkpoint import read_checkpoint, save_safetensors
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.fastervit import FasterViT
from fastervit_trt.models.source import WeightSource, build_model, pretrained_source, resolve_source, save_model

SPEC = ModelSpec("faster_vit_digits_s")


def weights(source: WeightSource) -> torch.Tensor:
    model, _ = build_model(SPEC, resolve_source(source))
    assert not model.training
    return torch.cat([p.flatten() for p in model.parameters()])


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first, state = weights(WeightSource.random(3)), torch.random.get_rng_state()
    torch.rand(7)
    assert torch.equal(weights(WeightSource.from_record(WeightSource.random(3).record())), first)
    assert not torch.equal(weights(WeightSource.random(4)), first)
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone


def test_a_checkpoint_is_found_again_by_its_record_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_safetensors(FasterViT(SPEC.config()).state_dict(), path)
    again = WeightSource.from_record(resolve_source(WeightSource.checkpoint(path)).record())
    weights(again)
    save_safetensors(FasterViT(SPEC.config()).state_dict(), path)
    with pytest.raises(FasterViTError, match="has changed since it was exported"):
        weights(again)


def test_trained_weights_ship_or_are_official() -> None:
    assert pretrained_source("faster_vit_digits_m").record() == {
        "kind": "shipped",
        "path": "faster_vit_digits_m.safetensors",
    }
    official = pretrained_source("faster_vit_0_any_res")
    assert (official.kind, official.path) == ("official", "fastervit_0_224_1k.pth.tar")
    with pytest.raises(FasterViTError, match="unknown model"):
        pretrained_source("faster_vit_9_224")


def test_a_model_keeps_the_tensors_of_its_file_and_computes_like_a_copied_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    original = FasterViT(SPEC.config()).eval()
    torch.save({"state_dict": original.state_dict(), "optimizer": {"state": {}}}, path)
    model, tolerated = build_model(SPEC, WeightSource.checkpoint(path))
    assert tolerated == []
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(x), original(x))
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in original.named_buffers())
    assert not any(p.is_meta for p in model.parameters())


def test_half_precision_files_are_computed_in_fp32(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_safetensors(FasterViT(SPEC.config()).half().state_dict(), path)
    model, _ = build_model(SPEC, WeightSource.checkpoint(path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_saved_models_carry_their_position_tables(tmp_path: Path) -> None:
    model, _ = build_model(SPEC, WeightSource.random(0))
    assert not model.state_dict()["levels.3.blocks.0.attn.pos_emb_funct.relative_bias"].any()
    save_model(model, tmp_path / "saved.safetensors")
    saved = read_checkpoint(tmp_path / "saved.safetensors")
    tables = [key for key in saved if key.endswith("relative_bias")]
    assert len(tables) == 6
    assert all(saved[key].any() for key in tables)


def test_optimizer_state_is_never_read_into_memory(tmp_path: Path) -> None:
    """A file with half a gigabyte beside its weights, as most official ones, in a process of its own."""
    path = tmp_path / "with_optimizer.pth.tar"
    moments = {"state": {0: {"exp_avg": torch.zeros(2**27)}}}
    torch.save({"state_dict": FasterViT(SPEC.config()).state_dict(), "optimizer": moments}, path)
    code = f"""
import subprocess
import sys
from pathlib import Path
from fastervit_trt.host import peak_rss_mib
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, resolve_source
before = peak_rss_mib()
build_model(ModelSpec("faster_vit_digits_s"), resolve_source(WeightSource.checkpoint(Path({str(path)!r}))))
print(peak_rss_mib() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 2**29
    assert int(done.stdout) < 200
