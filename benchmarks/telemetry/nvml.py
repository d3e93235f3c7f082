"""The number of a GPU as CUDA counts in, what NVML says of that very GPU out: clocks, power, energy, who else is on it.

NVML counts all GPUs in an order of its own, CUDA those that ``CUDA_VISIBLE_DEVICES`` leaves, in another order; the
address on the PCI bus is the same for both.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from fastervit_trt.benchmarks.telemetry.gpu_sample import GpuSample
from fastervit_trt.benchmarks.telemetry.throttle import throttle_reasons
from fastervit_trt.errors import FasterViTError

__all__ = ["NvmlGpu", "bus_address"]

_INSTALL = "pip install 'fastervit-trt[gpu]'"
_ADDRESS_LENGTH = 64
_MIB = 1 << 20


class NvmlGpu:
    """One GPU; whatever the driver or the GPU does not support is None.

    Raises:
        FasterViTError: no NVML, or it does not know the GPU.
    """

    def __init__(self, ordinal: int) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise FasterViTError(f"nvidia-ml-py is not installed ({error}): {_INSTALL}") from error
        self._nvml: Any = pynvml
        self._unsupported: set[str] = set()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise FasterViTError(f"NVML cannot be used ({error}); check the driver with nvidia-smi") from error
        try:
            self._handle = self._find(ordinal)
        except pynvml.NVMLError as error:
            pynvml.nvmlShutdown()
            raise FasterViTError(f"NVML does not know GPU {ordinal} ({error}); check with nvidia-smi -L") from error

    @property
    def driver(self) -> str:
        """As in "580.65.06"."""
        return str(self._ask("nvmlSystemGetDriverVersion") or "")

    @property
    def cuda(self) -> str:
        """The newest CUDA that the driver serves, as in "13.0"."""
        version = self._ask("nvmlSystemGetCudaDriverVersion_v2")
        return f"{version // 1000}.{version % 1000 // 10}" if version else ""

    @property
    def compute_capability(self) -> str:
        """As in "9.0"."""
        found = self._ask("nvmlDeviceGetCudaComputeCapability", self._handle)
        return f"{found[0]}.{found[1]}" if found else ""

    def sample(self) -> GpuSample:
        nvml, gpu = self._nvml, self._handle
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", gpu)
        return GpuSample(
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", gpu, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", gpu, nvml.NVML_CLOCK_MEM),
            power_w=milliwatts / 1e3 if milliwatts is not None else None,
            temperature_c=self._temperature(),
            throttle=tuple(throttle_reasons(self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu) or 0)),
        )

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded; Volta and later count them."""
        energy: int | None = self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return energy

    def processes(self) -> dict[int, int | None]:
        """Processes that compute on it, with the MiB they have there; numbers are the host's, in a container, too."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses", self._handle) or []
        return {one.pid: one.usedGpuMemory // _MIB if one.usedGpuMemory is not None else None for one in found}

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _temperature(self) -> float | None:
        sensor = (self._handle, self._nvml.NVML_TEMPERATURE_GPU)
        found: float | None = self._ask("nvmlDeviceGetTemperature", *sensor)  # to be removed in CUDA 14
        return found if found is not None else self._ask("nvmlDeviceGetTemperatureV", *sensor)

    def _find(self, ordinal: int) -> Any:
        nvml, address = self._nvml, bus_address(ordinal)
        try:
            if address is not None:
                return nvml.nvmlDeviceGetHandleByPciBusId(address)
        except nvml.NVMLError:
            if nvml.nvmlDeviceGetCount() != 1:  # an integrated GPU is on no bus, and the only one
                raise
        return nvml.nvmlDeviceGetHandleByIndex(0 if nvml.nvmlDeviceGetCount() == 1 else ordinal)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """The answer, or None; what is unsupported is not asked for again, as that can take long."""
        key = f"{name}{arguments[1:]}"
        if key in self._unsupported:
            return None
        try:
            function: Callable[..., Any] = getattr(self._nvml, name)
            return function(*arguments)
        except (AttributeError, self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            self._unsupported.add(key)
            return None
        except self._nvml.NVMLError:
            return None


def bus_address(ordinal: int) -> str | None:
    """Where GPU ``ordinal`` of those that CUDA shows is on the PCI bus, as in "0000:65:00.0"; makes no context."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, address = ctypes.c_int(), ctypes.create_string_buffer(_ADDRESS_LENGTH)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), ordinal):
        return None
    if cuda.cuDeviceGetPCIBusId(address, _ADDRESS_LENGTH, device):
        return None
    return address.value.decode()
