"""A checkpoint file in, its state dict out; and back to safetensors.

Formats: ``.safetensors``; ``.pth``, ``.pth.tar`` and other torch files (bare state dict, or under ``state_dict`` or
``model``, with or without a ``module.`` prefix). Torch files are pickles, so only weights are ever unpickled: plain
containers, tensors, and ``argparse.Namespace``, which official checkpoints carry beside their weights.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from fastervit_trt.errors import FasterViTError

__all__ = ["StateDict", "read_checkpoint", "save_safetensors"]

StateDict = dict[str, torch.Tensor]

_CONTAINERS = ("state_dict", "model")
_FORBIDDEN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|global)\W+([\w.]+)")


def read_checkpoint(path: Path) -> StateDict:
    """The state dict stored in ``path``, on the CPU; torch zip files are memory-mapped, not read whole.

    Raises:
        FasterViTError: missing, corrupt or empty file, or a pickle that asks for more than weights.
    """
    if not path.is_file():
        raise FasterViTError(
            f"checkpoint '{path}' does not exist; pass the path of a .pth.tar, .pth or .safetensors file"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise FasterViTError(
            f"checkpoint '{path}' holds no state dict (looked at the top level and under {' and '.join(_CONTAINERS)}); "
            "save one with torch.save(model.state_dict(), FILE)"
        )
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def save_safetensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write ``state`` as safetensors; aliased entries (the tokenizer's two names) are stored under both."""
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        stored[key] = tensor.clone() if tensor.data_ptr() in seen else tensor  # the format refuses shared memory
        seen.add(tensor.data_ptr())
    save_file(stored, path)


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise _corrupt(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = _FORBIDDEN_GLOBAL.search(str(error))
        if named is None and not _is_bare_pickle(path):
            raise _corrupt(path, error) from error
        wanted = f"to load '{named[1] or named[2]}'" if named else "for more than plain weights"
        raise FasterViTError(
            f"checkpoint '{path}' is refused: its pickle asks {wanted}, which could run code; if you trust the "
            "file, re-save only its weights with torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise _corrupt(path, error) from error


def _is_bare_pickle(path: Path) -> bool:
    """Whether the file starts as pickles of protocol 2 and later do."""
    with path.open("rb") as stream:
        return stream.read(1) == pickle.PROTO


def _corrupt(path: Path, error: Exception) -> FasterViTError:
    reason = str(error).strip().splitlines()
    detail = f" ({reason[0][:120]})" if reason else ""
    return FasterViTError(f"checkpoint '{path}' is corrupt or no checkpoint{detail}; download or save it again")
