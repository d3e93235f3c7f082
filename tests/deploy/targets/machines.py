"""Machines as their files and tools are, written under a folder: what the code reads on them is really read."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["AGX_ORIN", "SERVER", "THOR", "nvidia_smi", "tool", "write"]

# Board, chip and system: https://github.com/dusty-nv/jetson-containers/issues/1403 (JetPack 6.2.1),
# https://github.com/rbonghi/jetson_stats/issues/476 (model, chip). Clocks, zones and fan: Jetson Linux Developer Guide
# 36.3, "Platform Power and Performance"; memory of the 64 GB kit.
AGX_ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\n',
    "proc/meminfo": "MemTotal:       64349696 kB\nMemFree:        50000000 kB\nMemAvailable:   58000000 kB\n",
    "proc/swaps": (
        "Filename\tType\tSize\tUsed\tPriority\n"
        "/dev/zram0\tpartition\t2681236\t0\t5\n/dev/zram1\tpartition\t2681236\t0\t5\n"
    ),
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000",
    "sys/class/hwmon/hwmon2/name": "pwmfan",
    "sys/class/hwmon/hwmon2/pwm1": "51",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48125",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "52500",
    "sys/class/thermal/thermal_zone1/trip_point_0_type": "active",
    "sys/class/thermal/thermal_zone1/trip_point_0_temp": "35000",
    "sys/class/thermal/thermal_zone1/trip_point_1_type": "passive",
    "sys/class/thermal/thermal_zone1/trip_point_1_temp": "99000",
    "dev/nvhost-gpu": "",
    "var/lib/dpkg/status": (
        "Package: nvidia-jetpack\nStatus: install ok installed\nArchitecture: arm64\nVersion: 6.2.1+b38\n\n"
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
        "Package: cuda-cudart-11-4\nStatus: deinstall ok config-files\nVersion: 11.4.298-1\n\n"
        "Package: cuda-cudart-12-6\nStatus: install ok installed\nVersion: 12.6.68-1\n"
    ),
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
}

# https://github.com/rbonghi/jetson_stats/issues/711 (JetPack 7.0); the clock's folder: jetson_stats pull request 732.
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "proc/meminfo": "MemTotal:       128815744 kB\nMemAvailable:   120000000 kB\n",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/swapfile\tfile\t8388604\t0\t-2\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
    "sys/class/devfreq/gpu-gpc-0/min_freq": "1575000000",
    "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000",
    "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "41000",
    "dev/nvidia0": "",
}

SERVER = {
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "proc/meminfo": "MemTotal:       527000000 kB\nMemAvailable:   500000000 kB\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.0.20250803"}}',
    "dev/nvidia0": "",
    "dev/nvidiactl": "",
}

# As nvidia-smi does: it refuses all where it does not know one field, and says [N/A] of what a GPU lacks.
_SMI = """#!{python}
import json, sys
answers = json.loads({answers!r})
arguments = sys.argv[1:]
device = arguments[arguments.index("-i") + 1]
if device not in {devices!r}:
    sys.exit(6)
fields = next(a for a in arguments if a.startswith("--query-gpu=")).partition("=")[2].split(",")
for field in fields:
    if field not in answers:
        print(f'Field "{{field}}" is not a valid field to query.')
        sys.exit(2)
print(", ".join(answers[field] for field in fields))
"""


def write(root: Path, files: Mapping[str, str]) -> Path:
    """A machine's files below ``root``."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def tool(folder: Path, name: str, script: str) -> None:
    """A program that is found where ``folder`` is on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def nvidia_smi(folder: Path, answers: Mapping[str, str], devices: tuple[str, ...] = ("0",)) -> None:
    """One GPU, known by ``devices``, that answers these fields and no others."""
    tool(folder, "nvidia-smi", _SMI.format(python=sys.executable, answers=json.dumps(dict(answers)), devices=devices))


def container(*images: tuple[int, int]) -> bytes:
    """What nvcc writes of one file: images of (kind, architecture) with 24 bytes each."""
    bodies = [struct.pack("<HHIQ12xI", kind, 0x101, 32, 24, number) + bytes(24) for kind, number in images]
    body = b"".join(bodies)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
