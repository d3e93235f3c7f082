"""Finds the compiled kernels and TensorRT plugins, and refuses a library that belongs to another version.

Importing this needs neither a library nor CUDA.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

from fastervit_trt import __version__
from fastervit_trt.errors import FasterViTError

__all__ = ["INTERFACE", "VARIABLE", "Kind", "build_folder", "find_library", "load"]

INTERFACE = 1  # of plugins/csrc/common/types.h
VARIABLE = "FASTERVIT_TRT_PLUGINS"
Kind = Literal["kernels", "plugins"]

_BUILD = "`cmake --preset release && cmake --build --preset release`"
# The plugin library holds the kernels too; the one without plugins is what a build without TensorRT's headers leaves.
_NAMES: dict[Kind, tuple[str, ...]] = {
    "kernels": ("libfastervit_plugins.so", "libfastervit_kernels.so"),
    "plugins": ("libfastervit_plugins.so",),
}


def find_library(kind: Kind = "plugins", export: Path | None = None) -> Path:
    """The file that ``$FASTERVIT_TRT_PLUGINS`` names, else the one built in this checkout, else the package's own.

    Args:
        kind: "kernels" is content with a library without plugins.
        export: its folder; in an installed bundle, the library beside it comes before those built or packaged.

    Raises:
        FasterViTError: there is none, or the variable names no file.
    """
    candidates = _candidates(kind, export)
    for path in candidates:
        if path.is_file():
            return path
    looked_in = ", ".join(map(str, candidates))
    raise FasterViTError(f"Plugin library not found. Looked in: {looked_in}. Build it with {_BUILD} or set {VARIABLE}.")


def load(path: Path, kind: Kind = "kernels") -> ctypes.CDLL:
    """Load ``path`` into this process, once it has said that it is of this version.

    A library of the same interface but of another version is refused too: which sizes it serves and how it rounds
    belong to the version, and a stale one is a build away from a fresh one.

    Raises:
        FasterViTError: no library, not ours, without what ``kind`` needs, or of another interface or version.
    """
    try:
        library = ctypes.CDLL(str(path.absolute()))  # a bare name would be looked up in the system's folders
    except OSError as error:
        raise FasterViTError(f"{path} cannot be loaded: {error}. Build it with {_BUILD} or set {VARIABLE}.") from error
    for name in ("fastervit_interface", "fastervit_version", *(["getCreators"] if kind == "plugins" else [])):
        if not hasattr(library, name):
            message = f"{path} is no library of FasterViT {kind}: it lacks {name}. Build one with {_BUILD}"
            raise FasterViTError(f"{message} or set {VARIABLE}.")
    again = f"Build it again with {_BUILD}, or set {VARIABLE} to a library of this version."
    interface = library.fastervit_interface()
    if interface != INTERFACE:
        raise FasterViTError(f"{path} has interface {interface}, version {__version__} needs {INTERFACE}. {again}")
    library.fastervit_version.restype = ctypes.c_char_p
    version = (library.fastervit_version() or b"").decode(errors="replace")
    if version != __version__:
        raise FasterViTError(f"{path} is of version {version}, fastervit-trt is {__version__}. {again}")
    return library


def build_folder() -> Path | None:
    """``build`` of the checkout that this file lies in; None in an installed package."""
    root = Path(__file__).resolve().parents[1]
    return root / "build" if (root / "CMakePresets.json").is_file() else None


def _candidates(kind: Kind, export: Path | None) -> list[Path]:
    named = os.environ.get(VARIABLE)
    if named:  # what a user names is not passed over in silence
        return [Path(named)]
    build = build_folder()
    beside = [export.absolute().parent / "plugins"] if export is not None else []
    folders = [*beside, *([build / "lib"] if build else []), Path(__file__).resolve().parent / "lib"]
    return [folder / name for folder in folders for name in _NAMES[kind]]
