"""What driver and GPU say of themselves: versions that fit each other, memory, settings, clocks, who else is on it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Sequence

from fastervit_trt.benchmarks.telemetry.board import read_text
from fastervit_trt.benchmarks.telemetry.nvml import NvmlGpu, bus_address
from fastervit_trt.benchmarks.telemetry.throttle import IDLE, doubtful
from fastervit_trt.deploy.doctor.findings import Finding, ask, note, ok, problem
from fastervit_trt.deploy.doctor.runtimes import cuda_of
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.engines.api import NAMES, version_tuple
from fastervit_trt.errors import FasterViTError

__all__ = ["check_clocks", "check_cuda", "check_driver", "check_gpu", "free_memory_mib"]

# https://docs.nvidia.com/deeplearning/tensorrt/latest/installing-tensorrt/prerequisites.html: drivers on Linux by the
# major version of CUDA that TensorRT was built for.
_DRIVERS = {12: 535, 13: 580}
_ANY_CUDA = min(_DRIVERS)  # where the packages do not say, nothing is held against the driver that may be wrong
_LITTLE_MIB = 2048  # FasterViT-4 takes 0.7 GB as fp16 engine, and building it more than that again
_SLOW_CLOCK = 0.9  # of the most, while something runs
_DRIVER_ADVICE = "install the driver: https://www.nvidia.com/drivers, or sudo ubuntu-drivers install; then reboot"


def check_driver(here: Here) -> list[Finding]:
    """There, and new enough for the CUDA of what is installed; a Jetson's comes with its system."""
    if here.gpu is None:
        return [_no_driver(here)]
    if here.board.is_jetson:
        return [ok("driver", f"{here.driver or 'no version'}, of Jetson Linux {here.board.release or 'unknown'}")]
    if here.driver is None or not version_tuple(here.driver):
        return [note("driver", f"the driver of {here.gpu} does not say its version", "nvidia-smi")]
    found = []
    for runtime in (runtime for runtime in NAMES if runtime in here.versions):
        cuda = cuda_of(runtime) or _ANY_CUDA
        needed = _DRIVERS[cuda]
        if version_tuple(here.driver)[0] < needed:
            text = f"driver {here.driver} is too old for {NAMES[runtime]} {here.versions[runtime]} for CUDA {cuda}"
            advice = f"update the driver to {needed} or later (sudo apt install nvidia-driver-{needed}), then reboot"
            found.append(problem("driver", text, advice, runtime))
    return found or [ok("driver", here.driver)]


def check_cuda(here: Here) -> list[Finding]:
    """Runtime libraries, from pip or a toolkit; TensorRT's packages bring theirs."""
    found = []
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12"):
        try:
            found.append(f"{importlib.metadata.version(name)} ({name})")
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        toolkit = json.loads(read_text(here.root / "usr/local/cuda/version.json"))["cuda"]["version"]
        found.append(f"{toolkit} (toolkit, /usr/local/cuda)")
    except (ValueError, KeyError, TypeError):
        pass
    found += [f"{version} ({name})" for name, version in here.packages.items() if name.startswith("cuda-cudart")]
    if found:
        return [ok("CUDA", f"runtime {', '.join(found)}")]
    return [note("CUDA", "no CUDA runtime was found", "" if here.gpu is None else "pip install nvidia-cuda-runtime")]


def check_gpu(here: Here) -> list[Finding]:
    """Memory, who else is on it, and settings that shape what is measured."""
    if here.gpu is None:
        return []
    found = [ok("GPU", f"{here.gpu}, compute capability {here.capability or 'unknown'}")]
    if here.board.is_jetson:  # nvidia-smi and NVML say next to nothing there
        return found
    said = _smi("memory.total", "memory.used", "ecc.mode.current", "mig.mode.current", "persistence_mode")
    return [*found, *_memory(said), *_others(), *_settings(said)]


def check_clocks(here: Here) -> list[Finding]:
    """Power limit and clocks against the most that the board allows, and what slows it now."""
    if here.gpu is None or here.board.is_jetson:
        return []
    said = _smi("power.limit", "power.default_limit", "clocks.current.sm", "clocks.max.sm", "utilization.gpu")
    return [*_power(said), *_clocks(said), *_throttle()]


def _no_driver(here: Here) -> Finding:
    kernel = read_text(here.root / "proc/driver/nvidia/version").splitlines()
    if kernel:
        text = f"the kernel has a driver ({kernel[0]}), but neither CUDA nor nvidia-smi finds a GPU"
        return problem(
            "driver", text, "nvidia-smi; CUDA_VISIBLE_DEVICES may hide it (unset CUDA_VISIBLE_DEVICES)", "gpu"
        )
    return problem("driver", "no NVIDIA driver answers: no GPU can be used", _DRIVER_ADVICE, "gpu")


def free_memory_mib() -> int | None:
    """Free memory of the first GPU, MiB; None where there is none, or where it shares the host's."""
    free = _number(_smi("memory.free"), "memory.free")
    return None if free is None else int(free)


def _memory(said: dict[str, str]) -> list[Finding]:
    total, used = _number(said, "memory.total"), _number(said, "memory.used")
    if total is None or used is None:
        return [note("GPU", "the driver does not say how much of its memory is free, as where CPU and GPU share it")]
    free = total - used
    text = f"{free:.0f} of {total:.0f} MiB are free"
    if free < _LITTLE_MIB:
        return [problem("GPU", f"{text}, little to build in", "nvidia-smi shows who has it: end those programs", "gpu")]
    return [ok("GPU", text)]


def _others() -> list[Finding]:
    try:
        gpu = NvmlGpu(0)
    except FasterViTError as error:
        return [note("GPU", f"who else is on it is not known: {error}")]
    try:
        found = {pid: memory for pid, memory in gpu.processes().items() if pid != os.getpid()}
    finally:
        gpu.close()
    if not found:
        return []
    who = ", ".join(f"{pid} ({memory} MiB)" if memory is not None else str(pid) for pid, memory in found.items())
    return [note("GPU", f"other processes are on it: {who}; times taken beside them say little")]


def _settings(said: dict[str, str]) -> list[Finding]:
    found = []
    if said.get("mig.mode.current") == "Enabled":
        text = "MIG divides it: CUDA sees one instance, and engines are built for that instance"
        found.append(note("GPU", text, "build and serve in an instance of the same profile (nvidia-smi -L lists them)"))
    if said.get("ecc.mode.current") in ("Enabled", "Disabled"):
        found.append(ok("GPU", f"ECC is {said['ecc.mode.current'].lower()}"))
    if said.get("persistence_mode") == "Disabled":
        text = "persistence mode is off: the first call after a pause loads the driver anew"
        found.append(note("GPU", text, "sudo nvidia-smi -pm 1"))
    return found


def _power(said: dict[str, str]) -> list[Finding]:
    limit, default = _number(said, "power.limit"), _number(said, "power.default_limit")
    if limit is None or default is None:
        return []
    if limit < default:
        text = f"its power is limited to {limit:.0f} W of {default:.0f} W"
        return [note("clocks", text, f"sudo nvidia-smi -pl {default:.0f}")]
    return [ok("clocks", f"power limit {limit:.0f} W")]


def _clocks(said: dict[str, str]) -> list[Finding]:
    now, most, busy = (_number(said, name) for name in ("clocks.current.sm", "clocks.max.sm", "utilization.gpu"))
    if now is None or most is None:
        return []
    text = f"SM clock {now:.0f} of {most:.0f} MHz" + (f" at {busy:.0f} % load" if busy is not None else "")
    if busy and now < _SLOW_CLOCK * most:
        return [note("clocks", text, f"to compare times, lock it: sudo nvidia-smi -lgc {most:.0f} (undo: -rgc)")]
    return [ok("clocks", text)]


def _throttle() -> list[Finding]:
    try:
        gpu = NvmlGpu(0)
    except FasterViTError:
        return []  # said before
    try:
        reasons = [reason for reason in gpu.sample().throttle if reason != IDLE]
    finally:
        gpu.close()
    if bad := doubtful(reasons):
        advice = "see to cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
        return [problem("clocks", f"it is slowed right now: {', '.join(bad)}", advice, "gpu")]
    return [note("clocks", f"its clocks are limited by: {', '.join(reasons)}")] if reasons else []


def _smi(*fields: str) -> dict[str, str]:
    """Answers of nvidia-smi; a field that it does not know makes it refuse all, so they are then asked one by one."""
    device = bus_address(0) or os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    said = _query(device, fields)
    if said is None:
        return {field: text for field in fields for text in _query(device, [field]) or []}
    return dict(zip(fields, said, strict=False))


def _query(device: str, fields: Sequence[str]) -> list[str] | None:
    query = ["-i", device, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = ask("nvidia-smi", *query)
    return [text.strip() for text in answer.splitlines()[0].split(",")] if answer else None


def _number(said: dict[str, str], name: str) -> float | None:
    try:
        return float(said[name])
    except (KeyError, ValueError):  # "[N/A]"
        return None
