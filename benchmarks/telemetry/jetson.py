"""A Jetson's files in, what its GPU and power rails do out; NVML says little there.

Names of files: Jetson Linux Developer Guide, "Platform Power and Performance"; the kernel's ina3221 driver. Total power
is that of the rail of the whole module where there is one (VDD_IN: Orin NX and Nano), on AGX Orin, as is customary, the
sum of its three supplies; VDDQ_VDD2_1V8AO, which it has too, is fed by one of them. Of other boards none is said.
"""

from __future__ import annotations

from pathlib import Path

from fastervit_trt.benchmarks.telemetry.board import Board, gpu_clock_folder, power_mode, read_number, read_text
from fastervit_trt.benchmarks.telemetry.gpu_sample import GpuSample
from fastervit_trt.benchmarks.telemetry.throttle import JETSON_EVENTS

__all__ = ["Jetson"]

_TOTALS = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
_CHANNELS = (1, 2, 3)  # of an INA3221; what else it lists are sums and shunt voltages
_GPU_ZONES = ("gpu-thermal", "gpu-therm")

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
        clocks = gpu_clock_folder(root)
        self._clock = clocks / "cur_freq" if clocks is not None else None
        self._temperature = _zone(root / "sys/class/thermal")
        self._counters = _counters(root / "sys/class/hwmon")
        self._counted = self._count()

    @classmethod
    def find(cls, root: Path = Path("/")) -> Jetson | None:
        """This machine, if it is one."""
        return cls(root) if Board.read(root).is_jetson else None

    @property
    def release(self) -> str:
        """Of the system with its driver, and the power mode, which limits all clocks: "Jetson Linux 36.4.3, MAXN"."""
        release, mode = Board.read(self._root).release, power_mode()
        said = (f"Jetson Linux {release}" if release else "", f"power mode {mode}" if mode else "")
        return ", ".join(text for text in said if text)

    def sample(self) -> GpuSample:
        hertz, millidegrees = read_number(self._clock), read_number(self._temperature)
        return GpuSample(
            sm_clock_mhz=hertz / 1e6 if hertz is not None else None,
            power_w=self._power_w(),
            temperature_c=millidegrees / 1e3 if millidegrees is not None else None,
            throttle=self._events(),
        )

    def _power_w(self) -> float | None:
        total = 0.0
        for voltage, current in self._total:
            millivolts, milliamperes = read_number(voltage), read_number(current)
            if millivolts is None or milliamperes is None:
                return None
            total += millivolts * milliamperes / 1e6
        return total if self._total else None

    def _events(self) -> tuple[str, ...]:
        before, self._counted = self._counted, self._count()
        return tuple(reason for reason, count in self._counted.items() if count > before.get(reason, 0))

    def _count(self) -> dict[str, float]:
        return {reason: read_number(path) or 0 for reason, path in self._counters.items()}


def _rails(driver: Path) -> dict[str, _Rail]:
    rails: dict[str, _Rail] = {}
    for folder in sorted(driver.glob("*/hwmon/hwmon*")):
        for channel in _CHANNELS:
            label = read_text(folder / f"in{channel}_label")
            if label:
                rails[label] = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
    return rails


def _zone(parent: Path) -> Path | None:
    zones = sorted(parent.glob("thermal_zone*"))
    return next((zone / "temp" for zone in zones if read_text(zone / "type").lower() in _GPU_ZONES), None)


def _counters(parent: Path) -> dict[str, Path]:
    folder = next((one for one in sorted(parent.glob("hwmon*")) if read_text(one / "name") == "soctherm_oc"), None)
    return {reason: folder / f"oc{i}_event_cnt" for i, reason in JETSON_EVENTS.items()} if folder else {}
