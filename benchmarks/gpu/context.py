"""What a GPU run is on: machine, versions, sources. Creates no CUDA context: the processes of the stages do."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from fastervit_trt import __version__
from fastervit_trt.benchmarks.gpu.rows import Context
from fastervit_trt.benchmarks.gpu.state import GpuIdentity, gpu_identity
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import cpu_name
from fastervit_trt.plugins.nvcc import find_nvcc

__all__ = ["context_of", "find_checkout", "no_gpu_reason"]

_SOURCES = ("plugins", "benchmarks", "export", "models", "engines", "src")
_SUFFIXES = (".py", ".cu", ".h", ".cpp")
_DIGITS = 16  # of a hash


def no_gpu_reason() -> str | None:
    """Why nothing can run on a GPU here; None where something can."""
    if torch.version.cuda is None:
        return f"no GPU: PyTorch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else "no GPU: PyTorch finds none"


def find_checkout(given: Path | None) -> Path:
    """The folder of the sources: ``given``, else the current one, else where this file lies.

    Raises:
        FasterViTError: none of them has kernels.
    """
    candidates = [given] if given else [Path.cwd(), Path(__file__).resolve().parents[2]]
    for folder in candidates:
        if (folder / "plugins" / "csrc").is_dir() and (folder / "CMakeLists.txt").is_file():
            return folder.absolute()
    looked_in = ", ".join(map(str, candidates))
    raise FasterViTError(f"no checkout with plugins/csrc in {looked_in}; start there, or pass --checkout")


def context_of(checkout: Path, commit: str | None, command: str) -> Context:
    """Of a run of ``command``; ``commit`` says which sources these are where there is no repository to ask."""
    gpu = gpu_identity() or GpuIdentity("", "", "")
    return Context(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        cuda=torch.version.cuda or "",
        torch=torch.__version__,
        triton=_version("triton"),
        nvcc=_nvcc(),
        python=platform.python_version(),
        os=platform.platform(),
        cpu=cpu_name(),
        fastervit_trt=__version__,
        commit=commit or _commit(checkout),
        sources_sha256=_sources(checkout),
        command=command,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _nvcc() -> str:
    try:
        return find_nvcc().version
    except FasterViTError:
        return ""


def _commit(checkout: Path) -> str:
    """With a ``+`` where files differ from it; empty where git does not know."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _sources(checkout: Path) -> str:
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((checkout / folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                digest.update(f"{path.relative_to(checkout)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:_DIGITS]
