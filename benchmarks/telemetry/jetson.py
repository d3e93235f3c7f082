"""A Jetson's files in, what its GPU and power rails do out; NVML says little there.

Names of files: Jetson Linux Developer Guide, "Platform Power and Performance"; the kernel's ina3221 driver. Total power
is that of the rail of the whole module where there is one (VDD_IN: Orin NX and Nano), on AGX Orin, as is customary, the
sum of its three supplies; VDDQ_VDD2_1V8AO, which it has too, is fed by one of them. Of other boards none is said.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fastervit_trt.benchmarks.telemetry.gpu_sample import GpuSample
from fastervit_trt.benchmarks.telemetry.throttle import JETSON_EVENTS

__all__ = ["Jetson"]

_TOTALS = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
_CHANNELS = (1, 2, 3)  # of an INA3221; what else it lists are sums and shunt voltages
_GPU_CLOCK = re.compile(r".*\.(gpu|ga10b|gv11b)|gpu-gpc-0")  # folders of devfreq: Orin, JetPack 5, Xavier, Thor
_GPU_ZONES = ("gpu-thermal", "gpu-therm")
_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_SECONDS = 10

_Rail = tuple[Path, Path]  # voltage in mV and current in mA


class Jetson:
    """The board that this machine is.

    Args:
        root: of its file system.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        rails = _rails(root / "sys/bus/i2c/drivers/ina3221")
        names = next((total for total in _TOTALS if rails.keys() >= set(total)), ())
        self._total = [rails[name] for name in names]
        self._clock = _first(root / "sys/class/devfreq", _GPU_CLOCK, "cur_freq")
        self._temperature = _zone(root / "sys/class/thermal")
        self._counters = _counters(root / "sys/class/hwmon")
        self._counted = self._count()

    @classmethod
    def find(cls, root: Path = Path("/")) -> Jetson | None:
        """This machine, if it is one."""
        model = _text(root / "proc/device-tree/model")
        is_one = "Jetson" in model or (root / "etc/nv_tegra_release").is_file()
        return cls(root) if is_one else None

    @property
    def release(self) -> str:
        """Of the system with its driver, and the power mode, which limits all clocks: "Jetson Linux 36.4.3, MAXN"."""
        found = _RELEASE.search(_text(self._root / "etc/nv_tegra_release"))
        release = f"Jetson Linux {found[1]}.{found[2]}" if found else ""
        return ", ".join(text for text in (release, _power_mode()) if text)

    def sample(self) -> GpuSample:
        hertz, millidegrees = _number(self._clock), _number(self._temperature)
        return GpuSample(
            sm_clock_mhz=hertz / 1e6 if hertz is not None else None,
            power_w=self._power_w(),
            temperature_c=millidegrees / 1e3 if millidegrees is not None else None,
            throttle=self._events(),
        )

    def _power_w(self) -> float | None:
        total = 0.0
        for voltage, current in self._total:
            millivolts, milliamperes = _number(voltage), _number(current)
            if millivolts is None or milliamperes is None:
                return None
            total += millivolts * milliamperes / 1e6
        return total if self._total else None

    def _events(self) -> tuple[str, ...]:
        before, self._counted = self._counted, self._count()
        return tuple(reason for reason, count in self._counted.items() if count > before.get(reason, 0))

    def _count(self) -> dict[str, float]:
        return {reason: _number(path) or 0 for reason, path in self._counters.items()}


def _rails(driver: Path) -> dict[str, _Rail]:
    rails: dict[str, _Rail] = {}
    for folder in sorted(driver.glob("*/hwmon/hwmon*")):
        for channel in _CHANNELS:
            label = _text(folder / f"in{channel}_label")
            if label:
                rails[label] = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
    return rails


def _first(parent: Path, name: re.Pattern[str], file: str) -> Path | None:
    return next((folder / file for folder in sorted(parent.glob("*")) if name.fullmatch(folder.name)), None)


def _zone(parent: Path) -> Path | None:
    zones = sorted(parent.glob("thermal_zone*"))
    return next((zone / "temp" for zone in zones if _text(zone / "type").lower() in _GPU_ZONES), None)


def _counters(parent: Path) -> dict[str, Path]:
    folder = next((one for one in sorted(parent.glob("hwmon*")) if _text(one / "name") == "soctherm_oc"), None)
    return {reason: folder / f"oc{i}_event_cnt" for i, reason in JETSON_EVENTS.items()} if folder else {}


def _power_mode() -> str:
    """As ``nvpmodel -q`` says: "NV Power Mode: MAXN", and its number on the next line."""
    try:
        asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"NV Power Mode: *(\S+)", asked.stdout)
    return f"power mode {found[1]}" if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:  # absent, or a sensor that is powered down
        return ""


def _number(path: Path | None) -> float | None:
    try:
        return float(_text(path)) if path is not None else None
    except ValueError:
        return None
