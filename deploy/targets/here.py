"""A file system and the tools on PATH in, what this machine is out: platform, GPU, driver, runtimes, board, memory."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastervit_trt.benchmarks.telemetry.board import Board, read_text
from fastervit_trt.engines.api import NAMES
from fastervit_trt.engines.machine import Machine, installed_version, platform_name

__all__ = ["Here"]

_KIB_PER_MIB = 1024
_ORT_PACKAGES = ("onnxruntime-gpu", "onnxruntime")
# A Jetson's driver may not say what its GPU is: name as CUDA says it, and compute capability, by chip
# (https://developer.nvidia.com/cuda-gpus; https://github.com/rbonghi/jetson_stats/issues/711).
_CHIPS = {"tegra234": ("Orin", "8.7"), "tegra264": ("NVIDIA Thor", "11.0")}
_SYSTEM_PACKAGES = re.compile(r"nvidia-jetpack|nvidia-l4t-core|libnvinfer\d+|cuda-cudart-\d+-\d+")


@dataclass(frozen=True)
class Here:
    """This machine; None and empty texts where it does not say.

    Attributes:
        gpu: as the driver calls it.
        capability: CUDA compute capability, "8.7".
        driver: version of the driver, "580.65.06".
        versions: installed for this Python, by runtime: tensorrt, tensorrt-rtx, onnxruntime.
        packages: Debian packages of JetPack and TensorRT with their versions, for programs that are not Python.
        board: of a Jetson.
        memory_mib: of the machine.
        root: of the file system that all this was read from.
    """

    platform: str
    gpu: str | None = None
    capability: str | None = None
    driver: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    board: Board = field(default_factory=lambda: Board("", "", ""))
    memory_mib: int | None = None
    root: Path = Path("/")

    @classmethod
    def detect(cls, root: Path = Path("/"), device: int = 0) -> Here:
        """This machine; neither a runtime nor a CUDA context is touched.

        Args:
            root: where its files are.
            device: number of the GPU, as CUDA counts those that are visible.
        """
        machine, board = Machine.detect("tensorrt", device), Board.read(root)
        gpu, capability = machine.gpu, machine.capability
        if capability is None or not re.fullmatch(r"\d+\.\d+", capability):
            name, capability = _CHIPS.get(board.soc, (None, None))
            gpu = gpu or name
        return cls(
            platform=platform_name(),
            gpu=gpu,
            capability=capability,
            driver=machine.driver,
            versions=_versions(),
            packages=_packages(root),
            board=board,
            memory_mib=_memory_mib(root),
            root=root,
        )

    @property
    def jetpack(self) -> str:
        """As the package says it, "6.2.1"; empty where it is not installed."""
        return self.packages.get("nvidia-jetpack", "").partition("+")[0]

    @property
    def system_tensorrt(self) -> str:
        """Of the Debian package, "10.3.0.30"; empty where there is none."""
        found = [version for name, version in self.packages.items() if name.startswith("libnvinfer")]
        return found[0].partition("-")[0] if found else ""

    def __str__(self) -> str:
        system = f"Jetson Linux {self.board.release}" if self.board.release else ""
        capability = f"{self.gpu} (compute capability {self.capability or 'unknown'})" if self.gpu else "no GPU"
        return ", ".join(text for text in (self.board.model, capability, system, self.platform) if text)


def _versions() -> dict[str, str]:
    found: dict[str, str | None] = {runtime: installed_version(runtime) for runtime in NAMES}
    for name in _ORT_PACKAGES:
        try:
            found["onnxruntime"] = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    return {name: version for name, version in found.items() if version is not None}


def _packages(root: Path) -> dict[str, str]:
    """Of dpkg's list, those that matter; a list of paragraphs of "Field: value"."""
    found: dict[str, str] = {}
    name, installed = "", False
    for line in read_text(root / "var/lib/dpkg/status").splitlines():
        key, _, value = line.partition(": ")
        if key == "Package":
            name, installed = value.strip(), False
        elif key == "Status":
            installed = value.strip().endswith(" installed")
        elif key == "Version" and installed and _SYSTEM_PACKAGES.fullmatch(name):
            found[name] = value.strip()
    return found


def _memory_mib(root: Path) -> int | None:
    total = re.search(r"^MemTotal: +(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE)
    return int(total[1]) // _KIB_PER_MIB if total else None
