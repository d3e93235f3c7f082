"""Where a model's weights come from, recorded well enough to build the same model again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.checkpoint import load_state_dict, read_checkpoint
from fastervit_trt.models.config import FasterViTConfig
from fastervit_trt.models.digits.data import DIGITS_FOLDER
from fastervit_trt.models.factory import get_variant
from fastervit_trt.models.fastervit import FasterViT

__all__ = ["WeightSource", "model_from_source", "shipped_source"]


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint file (user's or shipped with the package), or a seed for random weights."""

    kind: Literal["checkpoint", "shipped", "random"]
    path: str | None = None
    sha256: str | None = None
    seed: int | None = None

    @classmethod
    def checkpoint(cls, path: Path) -> WeightSource:
        """The file at ``path``; its hash is taken when the model is built from it."""
        return cls("checkpoint", path=str(path))

    @classmethod
    def random(cls, seed: int = 0) -> WeightSource:
        return cls("random", seed=seed)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> WeightSource:
        return cls(**record)

    def record(self) -> dict[str, Any]:
        """For a manifest: only what applies."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def shipped_source(name: str) -> WeightSource:
    """The weights that ship with the package for variant ``name``.

    Raises:
        FasterViTError: none ship for it.
    """
    file = get_variant(name).shipped_weights
    if file is None:
        raise FasterViTError(
            f"no weights ship for {name}; download the official checkpoint (huggingface.co/nvidia/FasterViT) and pass "
            "--checkpoint FILE, or use --random-init"
        )
    return WeightSource("shipped", path=file)


def model_from_source(config: FasterViTConfig, source: WeightSource) -> tuple[FasterViT, WeightSource]:
    """A model in eval mode with the weights of ``source``, and the source with its hash filled in.

    Raises:
        FasterViTError: the file is missing, unreadable or does not fit, or no longer has the recorded hash.
    """
    if source.kind == "random":
        assert source.seed is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            return FasterViT(config).eval(), source
    assert source.path is not None
    path = DIGITS_FOLDER / "weights" / source.path if source.kind == "shipped" else Path(source.path)
    state = read_checkpoint(path)
    digest = sha256_file(path)
    if source.sha256 not in (None, digest):
        raise FasterViTError(f"checkpoint '{path}' has changed since it was exported; export it again")
    model = FasterViT(config)
    load_state_dict(model, state, where=path.name)
    return model.eval(), WeightSource(source.kind, path=source.path, sha256=digest)
