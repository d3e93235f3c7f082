"""The files of a Jetson in, which board and system it is and what limits its clocks out; on other machines, nothing.

Names of files: Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Board", "gpu_clock_folder", "power_mode", "read_number", "read_text"]

_GPU_CLOCK = re.compile(r".*\.(gpu|ga10b|gv11b)|gpu-gpc-0")  # folders of devfreq: Orin, JetPack 5, Xavier, Thor
_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_SOC = re.compile(r"nvidia,(tegra\d+)")
_SECONDS = 10


@dataclass(frozen=True)
class Board:
    """What the device tree and Jetson Linux say; empty texts where they say nothing."""

    model: str  # "NVIDIA Jetson AGX Orin Developer Kit"
    soc: str  # "tegra234"
    release: str  # of Jetson Linux (L4T), "36.4.3"

    @classmethod
    def read(cls, root: Path = Path("/")) -> Board:
        """The board that the file system under ``root`` belongs to."""
        chip = _SOC.search(read_text(root / "proc/device-tree/compatible"))
        found = _RELEASE.search(read_text(root / "etc/nv_tegra_release"))
        return cls(
            model=read_text(root / "proc/device-tree/model"),
            soc=chip[1] if chip else "",
            release=f"{found[1]}.{found[2]}" if found else "",
        )

    @property
    def is_jetson(self) -> bool:
        return "Jetson" in self.model or bool(self.release)


def power_mode() -> str:
    """As ``nvpmodel -q`` says, "NV Power Mode: MAXN" and its number on the next line: "MAXN"; empty without it."""
    try:
        asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"NV Power Mode: *(\S+)", asked.stdout)
    return found[1] if found else ""


def gpu_clock_folder(root: Path = Path("/")) -> Path | None:
    """The devfreq folder of the GPU: cur_freq, min_freq, max_freq and available_frequencies, in Hz."""
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return next((folder for folder in folders if _GPU_CLOCK.fullmatch(folder.name)), None)


def read_text(path: Path) -> str:
    """What a small file says, without the end of its line; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:  # absent, or a sensor that is powered down
        return ""


def read_number(path: Path | None) -> float | None:
    """The number that a small file holds; None where there is none."""
    try:
        return float(read_text(path)) if path is not None else None
    except ValueError:
        return None
