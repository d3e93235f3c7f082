"""What machine and which versions a result came from."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import psutil
from platformdirs import user_cache_path

__all__ = ["CACHE_VARIABLE", "cache_folder", "cpu_name", "peak_rss_mib", "release_memory", "usable_cpus", "versions"]

CACHE_VARIABLE = "FASTERVIT_TRT_CACHE"

_PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)


def versions() -> dict[str, str]:
    """Installed versions of everything that shapes a result; absent packages are left out."""
    from fastervit_trt import __version__

    found = {"fastervit-trt": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cache_folder() -> Path:
    """Where downloads and built engines are kept: ``$FASTERVIT_TRT_CACHE``, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else user_cache_path("fastervit-trt", appauthor=False)


def cpu_name() -> str:
    """The processor's marketing name, or what the platform knows of it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Logical CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def release_memory() -> None:
    """Give freed memory back to the system: the C library keeps it otherwise, gigabytes after a large model."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def peak_rss_mib() -> int:
    """Largest resident set of this process so far, in MiB.

    Linux carries ``ru_maxrss`` over from the parent at exec, so the kernel's own high-water mark is read there.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peak_kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak_kib) // 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset // 2**20)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # bytes on macOS
