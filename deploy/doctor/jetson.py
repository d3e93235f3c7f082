"""The files of a Jetson in: JetPack, power mode, clocks, fan, heat, memory and swap out, as far as it is one.

Names of files: Jetson Linux Developer Guide, "Platform Power and Performance"
(https://docs.nvidia.com/jetson/archives/r36.3/DeveloperGuide/), and the kernel's documentation of devfreq, hwmon and
thermal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastervit_trt.benchmarks.telemetry.board import gpu_clock_folder, power_mode, read_number, read_text
from fastervit_trt.deploy.doctor.findings import Finding, ask, note, ok, problem
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.table import TARGETS

__all__ = ["parts"]

_AREA = "Jetson"
_MHZ, _KIB_PER_MIB, _MILLI = 1e6, 1024, 1e3
_LITTLE_MIB = (
    1024  # the smallest model's build takes some 0.6 GB in TensorRT-RTX (benchmarks/results/export-scale-fp16.csv)
)
_SLOWING_TRIPS = ("passive", "hot", "critical")
_CLOCKS = re.compile(r"GPU MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)")
_SWAP = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"


def parts(here: Here) -> tuple[Callable[[], list[Finding]], ...]:
    """Everything that is particular to one, to be looked at one by one; nothing on other machines."""
    if not here.board.is_jetson:
        return ()
    files = (_clocks, _fan, _heat, _memory, _swap)
    return (partial(_system, here), _mode, *(partial(check, here.root) for check in files), partial(_dla, here))


def _system(here: Here) -> list[Finding]:
    release = here.board.release
    if not release:
        return [note(_AREA, f"{here.board.model}; which Jetson Linux it has is not said, as in a container")]
    text = f"{here.board.model or 'a Jetson'}, Jetson Linux {release}" + (
        f", JetPack {here.jetpack}" * bool(here.jetpack)
    )
    if not any(target.l4t is not None and release in target.l4t for target in TARGETS.values()):
        known = ", ".join(sorted({text for target in TARGETS.values() for text in target.jetpack}))
        return [problem(_AREA, f"{text} is of no target", f"install one of: {known} (SDK Manager)", "jetson")]
    if not here.jetpack:
        return [ok(_AREA, text), note(_AREA, "its SDK is not installed as a whole", "sudo apt install nvidia-jetpack")]
    return [ok(_AREA, text)]


def _mode() -> list[Finding]:
    mode = power_mode()
    if not mode:
        return [note(_AREA, "its power mode is not said", "sudo nvpmodel -q")]
    if "MAXN" in mode:
        return [ok(_AREA, f"power mode {mode}, without a limit of its own")]
    advice = "sudo nvpmodel -p --verbose lists the modes, sudo nvpmodel -m NUMBER takes one"
    return [note(_AREA, f"power mode {mode} limits its clocks: engines run slower than in MAXN", advice)]


def _clocks(root: Path) -> list[Finding]:
    found = _clocks_of_files(root) or _clocks_of_tool()
    if found is None:
        return [note(_AREA, "the GPU's clock is not said", "sudo jetson_clocks --show")]
    least, most, now = found
    text = f"GPU clock {now:.0f} MHz"
    if least == most:
        return [ok(_AREA, f"{text}, locked")]
    return [
        note(_AREA, f"{text}, free from {least:.0f} to {most:.0f}", "to compare times, lock it: sudo jetson_clocks")
    ]


def _clocks_of_files(root: Path) -> tuple[float, float, float] | None:
    folder = gpu_clock_folder(root)
    names = ("min_freq", "max_freq", "cur_freq")
    values = [read_number(folder / name) for name in names] if folder is not None else []
    numbers = [value / _MHZ for value in values if value is not None]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == len(names) else None


def _clocks_of_tool() -> tuple[float, float, float] | None:
    """It wants root's rights on most releases, and says nothing without."""
    said = _CLOCKS.search(ask("jetson_clocks", "--show") or "")
    return (float(said[1]) / _MHZ, float(said[2]) / _MHZ, float(said[3]) / _MHZ) if said else None


def _fan(root: Path) -> list[Finding]:
    folders = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    fan = next((folder for folder in folders if read_text(folder / "name") == "pwmfan"), None)
    duty = read_number(fan / "pwm1") if fan is not None else None
    return [] if duty is None else [ok(_AREA, f"fan at {duty / 255:.0%}")]


def _heat(root: Path) -> list[Finding]:
    zones = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        degrees = read_number(zone / "temp")
        if degrees is not None:
            zones[read_text(zone / "type")] = (degrees / _MILLI, _slows_at(zone))
    if not zones:
        return [note(_AREA, "no temperatures are said")]
    hot = [f"{name} {now:.0f} °C" for name, (now, limit) in zones.items() if limit is not None and now >= limit]
    if hot:
        return [
            problem(_AREA, f"heat slows it: {', '.join(hot)}", "see to its fan: sudo jetson_clocks --fan", "jetson")
        ]
    name, (now, _) = max(zones.items(), key=lambda zone: zone[1][0])
    return [ok(_AREA, f"hottest is {name} with {now:.0f} °C")]


def _slows_at(zone: Path) -> float | None:
    """Degrees from which the kernel slows or stops something; a fan is switched at others."""
    limits = [
        read_number(kind.with_name(kind.name.removesuffix("_type") + "_temp"))
        for kind in sorted(zone.glob("trip_point_*_type"))
        if read_text(kind) in _SLOWING_TRIPS
    ]
    return min((limit / _MILLI for limit in limits if limit is not None and limit > 0), default=None)


def _memory(root: Path) -> list[Finding]:
    lines = dict(re.findall(r"^(\w+): +(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in lines:
        return [note(_AREA, "how much memory is free is not said")]
    free, total = (int(lines[name]) // _KIB_PER_MIB for name in ("MemAvailable", "MemTotal"))
    text = f"{free} of {total} MiB of memory, which CPU and GPU share, are free"
    if free < _LITTLE_MIB:
        advice = "end programs, or stop the desktop: sudo systemctl isolate multi-user.target"
        return [problem(_AREA, f"{text}: too little to build an engine", advice, "jetson")]
    return [ok(_AREA, text)]


def _swap(root: Path) -> list[Finding]:
    lines = [line.split() for line in read_text(root / "proc/swaps").splitlines()[1:]]
    entries = [(line[0], int(line[2]) // _KIB_PER_MIB) for line in lines if len(line) > 2 and line[2].isdigit()]
    disk = sum(size for name, size in entries if "zram" not in name)
    zram = sum(size for name, size in entries if "zram" in name)
    if disk:
        return [ok(_AREA, f"swap: {disk} MiB on disk" + (f", {zram} MiB compressed in memory" if zram else ""))]
    held = f"only {zram} MiB compressed in memory (zram)" if zram else "none"
    return [note(_AREA, f"swap: {held}; builds of large engines may be killed", _SWAP)]


def _dla(here: Here) -> list[Finding]:
    there = "Thor has none" if here.capability == "11.0" else "AGX Orin and Orin NX have two, Orin Nano none"
    return [note(_AREA, f"the DLA is not used: it has no fused attention ({there})")]
