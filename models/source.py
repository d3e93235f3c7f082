"""Where a model's weights come from, recorded well enough to build the same model again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.checkpoint import read_checkpoint, save_safetensors
from fastervit_trt.models.download import download_checkpoint, official_file
from fastervit_trt.models.factory import ModelSpec, construct, get_variant
from fastervit_trt.models.fastervit import Trunk
from fastervit_trt.models.loading import load_state_dict
from fastervit_trt.models.position import PositionModule

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.model import TaskModel

__all__ = ["WeightSource", "build_model", "pretrained_source", "resolve_source", "save_model"]

_SHIPPED = [Path(__file__).parent / folder / "weights" for folder in ("digits", "scenes")]


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint file (a user's, shipped with the package, or official), or a seed for random weights."""

    kind: Literal["checkpoint", "shipped", "official", "random"]
    path: str | None = None
    model: str | None = None  # whose official file it is
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
        return cls(**{f.name: record[f.name] for f in fields(cls) if f.name in record})

    def record(self) -> dict[str, Any]:
        """For a manifest: only what applies."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def pretrained_source(name: str) -> WeightSource:
    """The trained weights of variant ``name``: those that ship with the package, or the official file.

    Raises:
        FasterViTError: unknown variant, or one without trained weights.
    """
    if shipped := get_variant(name).shipped_weights:
        return WeightSource("shipped", path=shipped)
    if official := official_file(name):
        return WeightSource("official", path=official.name, model=name)
    raise FasterViTError(f"there are no trained weights of {name}; pass --checkpoint FILE or --random-init")


def resolve_source(source: WeightSource) -> WeightSource:
    """``source`` with its file at hand (official ones are downloaded) and hashed.

    Raises:
        FasterViTError: the file is missing or cannot be downloaded, or no longer has the recorded hash.
    """
    if source.kind == "random":
        return source
    path = _file(source)
    if not path.is_file():
        raise FasterViTError(
            f"checkpoint '{path}' does not exist; pass the path of a .pth.tar, .pth or .safetensors file"
        )
    digest = sha256_file(path)
    if source.sha256 not in (None, digest):
        raise FasterViTError(f"checkpoint '{path}' has changed since it was exported; export it again")
    return replace(source, sha256=digest)


def build_model(spec: ModelSpec, source: WeightSource) -> tuple[Trunk | TaskModel, list[str]]:
    """The model of ``spec`` in eval mode with the weights of ``source``, and the differences tolerated in loading them.

    Weights of a file are not copied: the model keeps the tensors that were read, which for torch zip files are mapped
    from the file, so that a 16 GB file with optimizer state never is in memory.

    Raises:
        FasterViTError: an impossible spec, or a file that is unreadable or does not fit.
    """
    config = spec.config()

    if source.kind == "random":
        assert source.seed is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            model = construct(config, spec.head, spec.out_indices).eval()
            if spec.head is not None:
                from fastervit_trt.models.tasks.settling import settle_norms

                settle_norms(model)
            return model, []
    path = _file(source)
    with torch.device("meta"):
        model = construct(config, spec.head, spec.out_indices)
    model.to_empty(device="cpu")
    model.reset_derived_buffers()
    tolerated = load_state_dict(model, read_checkpoint(path), where=path.name, assign=True)
    if (network := getattr(model, "network", None)) is not None:
        network.tie_weights()  # files hold what detectors share under each of its names
    return model.eval(), tolerated


def save_model(model: Trunk | TaskModel, path: Path) -> None:
    """Write ``model`` as safetensors with its position tables filled in, as readers of the deploy buffers expect."""
    for module in model.modules():
        if isinstance(module, PositionModule):
            module.refresh_stored_table()
    save_safetensors(model.state_dict(), path)


def _file(source: WeightSource) -> Path:
    assert source.path is not None
    if source.kind == "official":
        assert source.model is not None
        return download_checkpoint(source.model)
    if source.kind != "shipped":
        return Path(source.path)
    return next((folder / source.path for folder in _SHIPPED if (folder / source.path).is_file()), _SHIPPED[0])
