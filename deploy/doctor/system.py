"""The system around the GPU: operating system, C library, Python, container, disk, the folders for cache and keys."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from fastervit_trt.benchmarks.telemetry.board import read_text
from fastervit_trt.deploy.doctor.findings import Finding, note, ok, problem
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.engines.api import version_tuple
from fastervit_trt.engines.keys import KEYS_VARIABLE, keys_folder
from fastervit_trt.engines.private_folder import why_not_private
from fastervit_trt.host import CACHE_VARIABLE, cache_folder

__all__ = ["check_container", "check_disk", "check_folders", "check_python", "check_system"]

_MIB, _GIB = 1 << 20, 1 << 30
_OLDEST_PYTHON = (3, 10)  # of this package, and of TensorRT 11
# TensorRT's x86-64 build since 10.8 (https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/
# release-notes-10/10.8.0.html); its packages for aarch64 are manylinux_2_35.
_OLDEST_GLIBC = {"linux-x86_64": (2, 28), "linux-aarch64": (2, 35)}
_FEW_BYTES, _LITTLE_BYTES = 2 * _GIB, 10 * _GIB  # a bundle of FasterViT-4 and its engine: 1.4 GB; of -6: 5.4 GB
_SHARED_BYTES = 256 * _MIB  # Docker gives 64 MiB, NVIDIA's containers ask for 1 GiB
_IN_CONTAINER = re.compile(r"docker|kubepods|containerd|libpod|lxc")
_DEVICES = ("nvidia[0-9]*", "nvidiactl", "nvhost-gpu", "nvmap", "nvgpu", "dxg")  # PCI, Jetson, WSL


def check_system(here: Here) -> list[Finding]:
    """Operating system and C library."""
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', read_text(here.root / "etc/os-release"), re.MULTILINE)
    library, version = platform.libc_ver()
    text = ", ".join(
        filter(None, (name[1] if name else platform.platform(), here.platform, f"{library} {version}".strip()))
    )
    if not here.platform.startswith("linux"):
        return [ok("system", text)]
    if library != "glibc":
        advice = "use a distribution with glibc, such as Ubuntu 22.04 or later"
        return [problem("system", f"{text}: TensorRT is built for glibc", advice, "tensorrt", "tensorrt-rtx")]
    oldest = _OLDEST_GLIBC.get(here.platform)
    if oldest is not None and version_tuple(version) < oldest:
        needed = ".".join(map(str, oldest))
        text = f"{text}: pip's TensorRT packages need glibc {needed}"
        return [
            problem("system", text, "use Ubuntu 22.04 or later, or TensorRT of the system", "tensorrt", "tensorrt-rtx")
        ]
    return [ok("system", text)]


def check_python(here: Here) -> list[Finding]:
    """Version, and whether it sees what JetPack installs."""
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return [problem("python", f"Python {version} is too old", "install Python 3.10 or later")]
    found = [ok("python", f"{version} ({sys.executable})")]
    if here.board.is_jetson and sys.prefix != sys.base_prefix and not _sees_system():
        text = "this virtual environment does not see the system's packages, where JetPack puts TensorRT"
        found.append(note("python", text, "python3 -m venv --system-site-packages .venv"))
    return found


def check_container(here: Here) -> list[Finding]:
    """Whether the GPU was passed in, and how much shared memory there is."""
    root = here.root
    marks = (root / ".dockerenv", root / "run/.containerenv")
    if not any(mark.exists() for mark in marks) and not _IN_CONTAINER.search(read_text(root / "proc/1/cgroup")):
        return []
    found = []
    if any(next((root / "dev").glob(pattern), None) for pattern in _DEVICES):
        found.append(ok("container", "a container with a GPU passed in"))
    else:
        option = "--runtime nvidia" if here.board.is_jetson else "--gpus all"
        text = "a container without a GPU: /dev has no nvidia device"
        found.append(problem("container", text, f"docker run {option} … (needs the NVIDIA Container Toolkit)", "gpu"))
    shared = _size(root / "dev/shm")
    if shared is not None and shared < _SHARED_BYTES:
        text = f"shared memory is {shared // _MIB} MiB: Triton's Python steps pass images through it"
        found.append(note("container", text, "docker run --shm-size=1g …"))
    return found


def check_disk(here: Here) -> list[Finding]:
    """Room for a bundle, its engine, and the cache of engines."""
    folder = _existing(cache_folder())
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB are free at '{folder}'"
    advice = f"free some room, or set {CACHE_VARIABLE} to a folder on another disk"
    if free < _FEW_BYTES:
        return [problem("disk", f"{text}, too little for a bundle and its engine", advice)]
    return [note("disk", text, advice)] if free < _LITTLE_BYTES else [ok("disk", text)]


def check_folders(here: Here) -> list[Finding]:
    """Cache and keys: writable, and by nobody else."""
    del here  # they are the user's, wherever the machine's files are
    return [
        _folder("cache", cache_folder(), cache_folder() / "engines", CACHE_VARIABLE),
        _folder("keys", keys_folder(), keys_folder(), KEYS_VARIABLE),
    ]


def _folder(area: str, folder: Path, private: Path, variable: str) -> Finding:
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return problem(area, f"'{folder}' cannot be written to", f"set {variable} to a folder that you may write to")
    if not private.exists():
        return ok(area, f"'{folder}' will be made when it is needed" if there != folder else f"'{folder}'")
    why = why_not_private(private)
    if why is None:
        return ok(area, f"'{folder}', private")
    return problem(area, f"'{private}' {why}, so it is not trusted", f"chmod go-w '{private}', or chown it to yourself")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.exists())


def _size(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _sees_system() -> bool:
    settings = read_text(Path(sys.prefix) / "pyvenv.cfg").lower()
    return re.search(r"include-system-site-packages *= *true", settings) is not None
