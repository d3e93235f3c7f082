"""Stage ``build``: the kernels compiled for one GPU into ``BUILD/lib``, and what ptxas says of them.

By CMake where it is there, else by nvcc itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fastervit_trt import __version__
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus
from fastervit_trt.plugins.library import load
from fastervit_trt.plugins.nvcc import find_nvcc
from fastervit_trt.plugins.resources import KernelResources, parse_ptxas

__all__ = ["LIBRARY", "build_with_cmake", "build_with_nvcc", "library_path", "run"]

LIBRARY = "libfastervit_kernels.so"
_FLAGS = ("-std=c++17", "-O3", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden")


def library_path(build: Path) -> Path:
    """Where the library of a build folder is, or will be."""
    return build / "lib" / LIBRARY


def run(job: Job, report: Report) -> None:
    """The library, a row for the build and one for each kernel."""
    architecture = job.architecture or _architecture()
    root, build = Path(job.checkout), job.build_path
    report.start("library", LIBRARY)
    tool, make = ("CMake", build_with_cmake) if shutil.which("cmake") else ("nvcc", build_with_nvcc)
    start = time.perf_counter()
    try:
        said = make(root, build, architecture)
    except FasterViTError as error:
        if tool == "nvcc":
            raise
        report.failed("library", "CMake", error)
        tool, said = "nvcc", build_with_nvcc(root, build, architecture)
    seconds = time.perf_counter() - start
    load(library_path(build))
    setting = f"{tool}, nvcc {find_nvcc().version}, sm_{architecture}"
    report.add("library", LIBRARY, OK, setting=setting, value=seconds, unit="s")
    report.idle()
    for resources in _resources(said, build):
        _report(report, resources)


def build_with_cmake(root: Path, build: Path, architecture: str) -> str:
    """``BUILD/lib/libfastervit_kernels.so`` from the project's own CMake files; what the compilers said.

    Raises:
        FasterViTError: it does not build.
    """
    folder = build / "cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure: list[str | Path] = ["cmake", "-S", root, "-B", folder, *generator, "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DFASTERVIT_TRT_CUDA_ARCHITECTURES={architecture}", "-DFASTERVIT_TRT_WERROR=OFF"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'lib'}", "-DCMAKE_CUDA_FLAGS=-Xptxas -v"]
    said = _run(configure)
    return said + _run(["cmake", "--build", folder, "--target", "fastervit_kernels", "-j", str(usable_cpus())])


def build_with_nvcc(root: Path, build: Path, architecture: str) -> str:
    """The same without CMake.

    Raises:
        FasterViTError: it does not build.
    """
    csrc, objects = root / "plugins" / "csrc", build / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    library = library_path(build)
    library.parent.mkdir(parents=True, exist_ok=True)
    nvcc = [find_nvcc().path, f"-arch=sm_{architecture}", f'-DFASTERVIT_VERSION="{__version__}"', *_FLAGS]
    sources = [*sorted(csrc.glob("*/*.cu"), key=lambda path: -path.stat().st_size), csrc / "common" / "version.cpp"]
    if len(sources) == 1:
        raise FasterViTError(f"no kernels in {csrc}; pass --checkout, the folder of the sources")
    targets = [objects / f"{source.parent.name}-{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(usable_cpus()) as pool:
        jobs = ([*nvcc, "-c", "-o", target, source] for source, target in zip(sources, targets, strict=True))
        said = list(pool.map(_run, jobs))
    exports = root / "plugins" / "cmake" / "exports.map"
    hide = ["-Xlinker", f"--version-script={exports}", "-Xlinker", "-Bsymbolic-functions"] if exports.is_file() else []
    return "".join(said) + _run([find_nvcc().path, "-shared", "-cudart", "static", *hide, "-o", library, *targets])


def _run(command: Sequence[str | os.PathLike[str]]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if re.search(r"error|fatal", line, re.IGNORECASE)]
        culprit = (lines or said.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise FasterViTError(f"{Path(command[0]).name}: {culprit}")
    return said


def _resources(said: str, build: Path) -> list[KernelResources]:
    """Of what ptxas said, which a build that had nothing to do keeps from the last."""
    kept = build / "ptxas.txt"
    if "Compiling entry function" in said:
        kept.write_text(said)
    said = kept.read_text() if kept.is_file() else said
    if shutil.which("c++filt"):
        said = subprocess.run(["c++filt"], input=said, capture_output=True, text=True, check=True).stdout
    rows = []
    for part in re.split(r"(?=Compiling entry function)", said):
        operator = re.search(r"\bfastervit::(\w+)::", part)
        rows += parse_ptxas(part, operator[1] if operator else "")
    return rows


def _report(report: Report, kernel: KernelResources) -> None:
    spilled = kernel.spill_stores + kernel.spill_loads + kernel.stack_bytes
    note = f"stack {kernel.stack_bytes}, spilled {kernel.spill_stores} out and {kernel.spill_loads} in, bytes"
    note = f"{kernel.shared_bytes} bytes of static shared memory" + (f"; {note}" if spilled else "")
    status = FAILED if spilled else OK
    report.add(f"resources {kernel.operator}", kernel.kernel, status, note, value=kernel.registers, unit="registers")


def _architecture() -> str:
    if not torch.cuda.is_available():
        raise FasterViTError("no GPU to compile for; pass --architecture, as in 90")
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"
