"""This machine as an engine sees it: which TensorRT is installed, and which GPU there is to run on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Machine", "installed_version", "platform_name"]

# A package and those that it stands for; the plain name is also what JetPack's Debian package registers.
_PACKAGES = {
    runtime: (runtime, *(f"{runtime}-cu{cuda}{part}" for part in ("", "-bindings") for cuda in (13, 12)))
    for runtime in ("tensorrt", "tensorrt-rtx")
}
_SECONDS = 20


def platform_name() -> str:
    """Operating system and processor, "linux-x86_64" or "linux-aarch64": engines of TensorRT do not cross it."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"


@dataclass(frozen=True)
class Machine:
    """What is installed and present for one runtime; None where there is none."""

    runtime: str  # "tensorrt" or "tensorrt-rtx"
    version: str | None  # of the runtime
    gpu: str | None = None  # the device's name
    capability: str | None = None  # "8.9"
    driver: str | None = None
    platform: str = field(default_factory=platform_name)

    @classmethod
    def detect(cls, runtime: str, device: int = 0) -> Machine:
        """This machine; neither TensorRT nor a CUDA context is touched.

        Args:
            device: number of the GPU, as CUDA counts those that are visible.
        """
        gpu = _gpu_of_cuda(device) or _gpu_of_nvidia_smi(device) or _Gpu(None, None, None)
        return cls(runtime, installed_version(runtime), *gpu)


def installed_version(runtime: str) -> str | None:
    """The installed version of ``"tensorrt"`` or ``"tensorrt-rtx"``, without importing it; None where it is missing."""
    for name in _PACKAGES.get(runtime, ()):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


class _Gpu(NamedTuple):
    name: str | None
    capability: str | None
    driver: str | None


def _gpu_of_cuda(device: int) -> _Gpu | None:
    """What CUDA says, through PyCUDA; nvidia-smi is asked for the version of the driver only."""
    try:
        import pycuda.driver as cuda

        cuda.init()
        found = cuda.Device(device)
        major, minor = found.compute_capability()
        name = found.name()
        runtime = cuda.get_driver_version()
    except Exception:  # PyCUDA's own errors, and those of a driver that is missing or too old
        return None
    asked = _gpu_of_nvidia_smi(device)
    driver = asked.driver if asked is not None else f"CUDA {runtime // 1000}.{runtime % 1000 // 10}"
    return _Gpu(name, f"{major}.{minor}", driver)


def _gpu_of_nvidia_smi(device: int) -> _Gpu | None:
    """What the driver says; it counts all GPUs, CUDA those of ``CUDA_VISIBLE_DEVICES``."""
    index = str(device)
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        if device >= len(names):
            return None
        index = names[device]
    command = ["nvidia-smi", "-i", index, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.strip().splitlines()
    texts = [text.strip() for text in lines[0].rsplit(",", 2)] if answer.returncode == 0 and lines else []
    return _Gpu(*texts) if len(texts) == len(_Gpu._fields) else None
