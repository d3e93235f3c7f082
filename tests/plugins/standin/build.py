"""Compiles fastervit-runner with sanitizers, against stand-ins of TensorRT and the CUDA runtime that need no GPU.

The stand-in of TensorRT has the virtual functions of the headers at hand, whichever release they are of: the runner
calls what it would call on a GPU.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.plugins.plugin_driver import CACHE, CSRC, cuda_headers, said, tensorrt_headers

__all__ = ["StandIn", "runner_with_stand_ins"]

HERE = Path(__file__).resolve().parent
WARNINGS = "-std=c++17 -Wall -Wextra -Werror".split()
SANITIZED = "-O0 -g1 -fPIC -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer".split()
# Class of the interface (None: it is all there is) and class with its virtual functions.
INTERFACES = {
    "Runtime": ("IRuntime", "VRuntime"),
    "CudaEngine": ("ICudaEngine", "VCudaEngine"),
    "ExecutionContext": ("IExecutionContext", "VExecutionContext"),
    "PluginRegistry": (None, "IPluginRegistry"),
}


@dataclass(frozen=True)
class StandIn:
    """A folder with what was compiled."""

    folder: Path
    major: int  # of TensorRT

    @property
    def runner(self) -> Path:
        return self.folder / "fastervit-runner"

    @property
    def tensorrt(self) -> Path:
        return self.folder / f"libnvinfer.so.{self.major}"

    @property
    def plugins(self) -> Path:
        return self.folder / "libplugins.so"

    @property
    def reader(self) -> Path:
        return self.folder / "read-tensors"


@functools.cache
def runner_with_stand_ins() -> StandIn:
    """Compiled where sources, headers or compiler changed.

    Raises:
        AssertionError: a source does not compile without warnings.
    """
    headers = tensorrt_headers()
    assert headers is not None
    version = (headers / "NvInferVersion.h").read_text()
    found = re.search(r"define (?:NV_TENSORRT|TRT)_MAJOR\w* (\d+)", version)
    assert found is not None
    sources = sorted([*(CSRC / "runner").iterdir(), *HERE.iterdir()])
    contents = [path.read_bytes() for path in sources if path.is_file()]
    key = hashlib.sha256(repr((said("g++", "--version"), WARNINGS, SANITIZED, contents, version)).encode()).hexdigest()
    result = StandIn(CACHE / f"runner-{key[:16]}", int(found[1]))
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{result.folder}.lock"):  # several processes share the tests
        if not result.folder.is_dir():
            _make(result, headers)
    return result


def _make(result: StandIn, headers: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        scratch = StandIn(Path(name, "done"), result.major)
        scratch.folder.mkdir()
        (Path(name) / "bases.h").write_text(bases(headers))
        _compile(scratch, headers, Path(name))
        scratch.folder.replace(result.folder)


def _compile(result: StandIn, headers: Path, generated: Path) -> None:
    flags = [*WARNINGS, *SANITIZED, "-isystem", headers, "-isystem", cuda_headers(), f"-I{HERE}", f"-I{generated}"]
    cuda = result.folder / "libcudart.so"
    said("g++", *flags, "-shared", f"-Wl,-soname,{cuda.name}", HERE / "cuda.cpp", "-o", cuda)
    linked = [cuda, "-Wl,-rpath,$ORIGIN", "-ldl"]
    jobs = [
        (*flags, CSRC / "runner" / "runner.cpp", *linked, "-o", result.runner),
        # Of the functions that end the process, none uses its arguments; some are deprecated in some releases.
        (
            *flags,
            *"-Wno-unused-parameter -Wno-deprecated-declarations -fvisibility=hidden -shared".split(),
            f"-Wl,-soname,{result.tensorrt.name}",
            HERE / "nvinfer.cpp",
            *linked,
            "-o",
            result.tensorrt,
        ),
        (*flags, "-shared", HERE / "plugins.cpp", "-o", result.plugins),
        (*flags, f"-I{CSRC}", HERE / "read_tensors.cpp", "-o", result.reader),
    ]
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda job: said("g++", *job), jobs):
            pass


def bases(headers: Path) -> str:
    """A header with a class for each interface in which every virtual function ends the process."""
    text = "\n".join(path.read_text() for path in sorted(headers.glob("NvInfer*.h")))
    text = re.sub(r"//.*|/\*.*?\*/", "", text, flags=re.MULTILINE)
    classes = []
    for name, (interface, table) in INTERFACES.items():
        parents = f"public {table}" if interface is None else f"public {interface}, public apiv::{table}"
        functions = "\n".join(f"  {function}" for function in _overrides(text, table))
        classes.append(f"class {name}Base : {parents} {{\n public:\n{functions}\n}};\n")
    return (
        "#include <NvInferRuntime.h>\n#include <cstdio>\n#include <cstdlib>\n"
        "namespace nvinfer1::standin {\nusing namespace apiv;\n"
        "[[noreturn]] inline void unexpected(const char* what) {\n"
        '  std::fprintf(stderr, "stand-in: %s\\n", what);\n  std::abort();\n}\n'
        f"{''.join(classes)}}}  // namespace nvinfer1::standin\n"
    )


def _overrides(text: str, table: str) -> Iterator[str]:
    found = re.search(rf"^class {table}\b[^;{{]*\{{(.*?)^\}};", text, re.MULTILINE | re.DOTALL)
    assert found is not None, table
    pure = r"virtual\s+([^()~;]+?)\s*\b(\w+)\s*\(([^()]*)\)\s*(const)?\s*(noexcept)?\s*=\s*0\s*;"
    for result, name, arguments, const, noexcept in re.findall(pure, found[1]):
        qualifiers = " ".join(word for word in (const, noexcept) if word)
        arguments = " ".join(arguments.split())
        yield f'{result} {name}({arguments}) {qualifiers} override {{ unexpected("{table}::{name}"); }}'
