"""The TensorRT plugins on emulated kernels, and the program that drives them; neither needs TensorRT or a GPU."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.kernels import Kernels
from fastervit_trt.plugins.library import find_library
from fastervit_trt.plugins.nvcc import find_nvcc
from tests.conftest import ROOT
from tests.plugins.emulator import build

__all__ = [
    "Driver",
    "Input",
    "cuda_driver",
    "cuda_headers",
    "emulated_driver",
    "said",
    "tensorrt_headers",
    "unavailable",
]

CSRC = ROOT / "plugins" / "csrc"
CACHE = ROOT / "build" / "emulator"
FLAGS = "-std=c++17 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror".split()
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}
DTYPES = {name: dtype for dtype, name in TYPES.items()}


def tensorrt_headers() -> Path | None:
    """The folder that ``plugins/cmake/FindTensorRT.cmake`` finds."""
    root = os.environ.get("TENSORRT_ROOT")
    folders = [Path(root, "include")] if root else [Path("/usr/include"), Path("/usr/local/include")]
    candidates = [*folders, *(path for folder in folders for path in folder.glob("*-linux-gnu"))]
    return next((path for path in candidates if (path / "NvInferRuntime.h").is_file()), None)


@functools.cache
def unavailable() -> str | None:
    """Why plugins cannot be compiled here; None: they can."""
    if tensorrt_headers() is None:
        return "no TensorRT headers; set TENSORRT_ROOT to a folder with include/NvInfer.h"
    try:
        find_nvcc()
    except FasterViTError as error:
        return f"no CUDA headers: {error}"
    return build.unavailable()


@dataclass(frozen=True)
class Input:
    """A tensor for the driver.

    Args:
        unknown: axes whose sizes are known only at run time, each with the largest there can be.
        channels_last: lies in memory as (B, H, W, C).
    """

    tensor: Tensor
    unknown: Mapping[int, int] | None = None
    channels_last: bool = False

    def argument(self, file: Path | str) -> str:
        most = self.unknown or {}
        shape = "x".join(f"{size}?{most[i]}" if i in most else str(size) for i, size in enumerate(self.tensor.shape))
        return f"{file}:{TYPES[self.tensor.dtype]}:{shape}:{_format(self.tensor.dtype, self.channels_last)}"

    def bytes(self) -> bytes:
        tensor = self.tensor.permute(0, 2, 3, 1) if self.channels_last else self.tensor
        return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Described:
    """What the driver says of an operator on given inputs, and how it ended."""

    code: int
    errors: list[str]
    answer: dict[str, Any]


@dataclass(frozen=True)
class Executed:
    """What came out of a run, whether it left something in the workspace, and what it complained about."""

    result: Tensor
    workspace_used: bool
    errors: list[str]


@dataclass(frozen=True)
class Driver:
    """The program, the library that it drives, and its kernels by themselves."""

    program: Path
    library: Path
    kernels: Kernels

    @property
    def device(self) -> torch.device:
        """Where the kernels run."""
        return torch.device(self.kernels.device_type)

    def creators(self) -> list[dict[str, Any]]:
        return json.loads(self.command([]).stdout)

    def describe(
        self, operator: str, attributes: Mapping[str, int | float], inputs: Sequence[Input], *options: str
    ) -> Described:
        """Everything but running it."""
        files = [f"-{i}" for i in range(len(inputs))]
        done = self.command([*self._arguments(operator, attributes, inputs, files), *options])
        return Described(done.returncode, done.stderr.splitlines(), json.loads(done.stdout or "{}"))

    def run(self, operator: str, attributes: Mapping[str, int | float], inputs: Sequence[Input], **how: Any) -> Tensor:
        """The result, which must come without complaints; ``how`` as of :meth:`execute`."""
        executed = self.execute(operator, attributes, inputs, **how)
        assert executed.errors == []
        return executed.result

    def execute(
        self,
        operator: str,
        attributes: Mapping[str, int | float],
        inputs: Sequence[Input],
        *,
        tactic: int = 0,
        channels_last: bool = False,
        graph: bool = False,
    ) -> Executed:
        """One tactic of the operator."""
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch, str(i)) for i in range(len(inputs))]
            for file, tensor in zip(files, inputs, strict=True):
                file.write_bytes(tensor.bytes())
            output = Path(scratch, "output")
            arguments = self._arguments(operator, attributes, inputs, files)
            layout = _format(inputs[0].tensor.dtype, channels_last)
            options = ["--output", f"{output}:{layout}", "--tactic", str(tactic), *(["--graph"] if graph else [])]
            done = self.command([*arguments, *options])
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            data, dtype = output.read_bytes(), DTYPES[answer["type"]]
        (ran,) = answer["ran"]
        assert ran["tactic"] == tactic
        result = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if channels_last:
            batch, channels, height, width = answer["shape"]
            result = result.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return Executed(result.reshape(answer["shape"]), ran["workspace_used"], done.stderr.splitlines())

    def _arguments(
        self,
        operator: str,
        attributes: Mapping[str, int | float],
        inputs: Sequence[Input],
        files: Sequence[Path | str],
    ) -> list[str]:
        tensors = [("--input", tensor.argument(file)) for tensor, file in zip(inputs, files, strict=True)]
        scalars = [("--attribute", f"{name}={value}") for name, value in attributes.items()]
        return [operator, *(part for pair in (*scalars, *tensors) for part in pair)]

    def command(self, arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
        """The program with arguments behind the library."""
        command = [self.program, self.library, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@functools.cache
def emulated_driver() -> Driver:
    """Compiled where sources, headers or compiler changed.

    Raises:
        subprocess.CalledProcessError: a source does not compile without warnings.
    """
    kernels, headers = build.emulated_library(), tensorrt_headers()
    assert headers is not None
    flags = [*FLAGS, "-isystem", str(headers), "-isystem", cuda_headers()]
    sources = sorted({*CSRC.glob("plugin/*.cpp"), *CSRC.glob("*/plugin.cpp")})
    driver = CSRC / "driver" / "driver.cpp"
    exports = ROOT / "plugins" / "cmake" / "exports.map"

    included = sorted(path for path in CSRC.rglob("*.h") if path.parent.name != "runner")
    contents = [path.read_bytes() for path in (*sources, driver, exports, *included)]
    version = (headers / "NvInferVersion.h").read_bytes()
    key = hashlib.sha256(repr((said("g++", "--version"), flags, contents, version, kernels.name)).encode()).hexdigest()
    folder = CACHE / f"plugins-{key[:16]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            scratch = Path(name, "done")
            scratch.mkdir()
            objects = [Path(name, f"{i}.o") for i in range(len(sources))]
            with ThreadPoolExecutor(2) as pool:
                jobs = [
                    pool.submit(said, "g++", *flags, "-c", s, "-o", o) for s, o in zip(sources, objects, strict=True)
                ]
                program = ["-DFASTERVIT_EMULATED", driver, "-o", scratch / "driver", "-ldl"]
                jobs.append(pool.submit(said, "g++", *flags, *program))
                for job in jobs:
                    job.result()
            link = ["-shared", "-Wl,-z,defs", f"-Wl,--version-script={exports}", f"-Wl,-rpath,{kernels.parent}"]
            said("g++", *link, *objects, kernels, "-ldl", "-o", scratch / "libfastervit_plugins.so")
            scratch.replace(folder)
    return Driver(folder / "driver", folder / "libfastervit_plugins.so", Kernels(kernels))


def cuda_headers() -> str:
    """The folder that nvcc takes them from."""
    found = re.search(r'INCLUDES="-I([^"]+)"', said(find_nvcc().path, "--dryrun", "-x", "cu", os.devnull))
    assert found is not None
    return found[1]


def cuda_driver() -> Driver:
    """As CMake has built it.

    Raises:
        FasterViTError: it has not.
    """
    library, program = find_library("plugins"), ROOT / "build" / "bin" / "fastervit-plugin-driver"
    if not program.is_file():
        raise FasterViTError(f"{program} not found; build it with CMake")
    return Driver(program, library, Kernels(library))


def _format(dtype: torch.dtype, channels_last: bool) -> str:
    if not channels_last:
        return "linear"
    return "hwc" if dtype == torch.float32 else "hwc8"


def said(*command: object) -> str:
    """What a compiler says, which must end well."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
