"""Which runtimes are installed, whether they load, and whether the plugin library serves this GPU.

Each is loaded in a process of its own: a broken library can end the process that loads it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from fastervit_trt.deploy.doctor.findings import Finding, note, ok, problem
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.engines.api import INSTALL, MODULES, NAMES, RuntimeName, unsuitable_reason
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.fatbin import read_architectures
from fastervit_trt.plugins.library import VARIABLE, find_library

__all__ = ["check_onnxruntime", "check_plugins", "check_pycuda", "check_tensorrt", "check_tensorrt_rtx", "cuda_of"]

_SECONDS = 120  # a cold import from a Jetson's SD card takes tens of seconds
_LOAD = "import json, {0}; print(json.dumps({{'version': {0}.__version__}}))"
_LOAD_ORT = (
    "import json, onnxruntime; "
    "print(json.dumps({'version': onnxruntime.__version__, 'providers': onnxruntime.get_available_providers()}))"
)
_LOAD_PLUGINS = (
    "import json, sys; from pathlib import Path; from fastervit_trt.plugins.library import load; "
    "load(Path(sys.argv[1]), 'plugins'); print(json.dumps({}))"
)
_LOAD_PYCUDA = "import json, pycuda, pycuda.driver; print(json.dumps({'version': pycuda.VERSION_TEXT}))"
_SYSTEM_PYTHON = "python3 -m venv --system-site-packages .venv (after sudo apt install python3-libnvinfer)"
_BUILD = "cmake --preset release && cmake --build --preset release"
_SEES_NO_GPU = "it was built for CPUs"


@dataclass(frozen=True)
class _Loaded:
    """What a process that loaded something said, or why it did not."""

    said: dict[str, Any]
    why: str = ""


def check_tensorrt(here: Here) -> list[Finding]:
    """Installed, new enough, loads."""
    if "tensorrt" not in here.versions and here.system_tensorrt:
        text = f"TensorRT {here.system_tensorrt} is on the system (libnvinfer), but this Python does not see it"
        return [problem("TensorRT", text, _SYSTEM_PYTHON, "tensorrt")]
    return _runtime(here, "tensorrt")


def check_tensorrt_rtx(here: Here) -> list[Finding]:
    """Installed, new enough, loads."""
    return _runtime(here, "tensorrt-rtx")


def check_onnxruntime(here: Here) -> list[Finding]:
    """Installed, loads, and with which providers."""
    area = "ONNX Runtime"
    if "onnxruntime" not in here.versions:
        return [note(area, "ONNX Runtime is not installed", "pip install onnxruntime")]
    loaded = _load(_LOAD_ORT)
    if loaded.why:
        again = "pip install --force-reinstall onnxruntime"
        return [problem(area, f"ONNX Runtime does not load: {loaded.why}", again, "onnxruntime")]
    providers = [name.removesuffix("ExecutionProvider") for name in loaded.said["providers"]]
    found = [ok(area, f"{loaded.said['version']}, providers {', '.join(providers)}")]
    if here.gpu is not None and "CUDA" not in providers:
        text = f"this ONNX Runtime does not use {here.gpu}: {_SEES_NO_GPU}"
        found.append(note(area, text, "pip uninstall onnxruntime && pip install onnxruntime-gpu"))
    return found


def check_pycuda(here: Here) -> list[Finding]:
    """Engines are run through it."""
    if importlib.util.find_spec("pycuda") is None:
        text = "PyCUDA is not installed; engines are run through it"
        if here.gpu is None:
            return [note("PyCUDA", text)]
        return [problem("PyCUDA", text, "pip install pycuda", "tensorrt", "tensorrt-rtx")]
    loaded = _load(_LOAD_PYCUDA)
    if loaded.why:
        again = "pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda"
        return [problem("PyCUDA", f"PyCUDA does not load: {loaded.why}", again, "tensorrt", "tensorrt-rtx")]
    return [ok("PyCUDA", str(loaded.said["version"]))]


def check_plugins(here: Here) -> list[Finding]:
    """Found, of this version, and with kernels for this GPU; engines without plugins do not need it."""
    try:
        path = find_library("plugins")
    except FasterViTError as error:
        return [note("plugins", f"{error} Engines without plugins run all the same.")]
    loaded = _load(_LOAD_PLUGINS, str(path))
    if loaded.why:
        return [problem("plugins", loaded.why, f"{_BUILD}, or set {VARIABLE} to another library", "plugins")]
    held = read_architectures(path)
    if here.capability is None:
        return [ok("plugins", f"'{path}' for {held}")]
    if not held.serve(here.capability):
        number = here.capability.replace(".", "")
        text = f"'{path}' has no kernels for {here.gpu} (compute capability {here.capability}), but for {held}"
        rebuild = (
            f"cmake --preset release -DFASTERVIT_TRT_CUDA_ARCHITECTURES={number} && cmake --build --preset release"
        )
        return [problem("plugins", text, rebuild, "plugins")]
    return [ok("plugins", f"'{path}' has kernels for this GPU ({held})")]


def cuda_of(runtime: RuntimeName) -> int | None:
    """Major version of CUDA that the installed runtime was built for; None where its packages do not say."""
    for cuda in (13, 12):
        for part in ("", "-libs", "-bindings"):
            try:
                importlib.metadata.version(f"{runtime}-cu{cuda}{part}")
            except importlib.metadata.PackageNotFoundError:
                continue
            return cuda
    return None


def _runtime(here: Here, runtime: RuntimeName) -> list[Finding]:
    name, version = NAMES[runtime], here.versions.get(runtime)
    if version is None:
        return [note(name, f"{name} is not installed", INSTALL[runtime])]
    old = unsuitable_reason(runtime, version)
    if old is not None:
        return [problem(name, old, INSTALL[runtime], runtime)]
    loaded = _load(_LOAD.format(MODULES[runtime]))
    if loaded.why:
        text = f"{name} {version} is installed and does not load: {loaded.why}"
        return [problem(name, text, f"pip install --force-reinstall {runtime}=={version}", runtime)]
    cuda = cuda_of(runtime)
    return [ok(name, f"{loaded.said['version']}" + (f" for CUDA {cuda}" if cuda else ""))]


def _load(code: str, *arguments: str) -> _Loaded:
    """Run ``code`` in a Python of its own; it prints JSON on its last line."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _Loaded({}, f"it did not come to an end in {_SECONDS} s")
    except OSError as error:
        return _Loaded({}, str(error))
    if done.returncode < 0:
        return _Loaded({}, f"it ended its process with {signal.Signals(-done.returncode).name}")
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
    if done.returncode:
        return _Loaded({}, last[0].partition("FasterViTError: ")[2] or last[0] if last else "it failed without a word")
    try:
        return _Loaded(json.loads(last[0]))
    except (IndexError, ValueError):
        return _Loaded({}, "it loads, but does not say its version")
