"""The sources of the plugins as a folder that builds by itself, and the library built from it where it is to run.

A checkout and an installed package give the same folder, byte for byte. Importing this needs neither CUDA nor TensorRT.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import psutil

from fastervit_trt import __version__
from fastervit_trt.artifacts import new_file, new_folder
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus
from fastervit_trt.plugins.library import load
from fastervit_trt.plugins.nvcc import find_nvcc

__all__ = ["LIBRARY", "VERSION_FILE", "build_command", "build_library", "write_sources"]

LIBRARY = "libfastervit_plugins.so"
VERSION_FILE = "VERSION"  # what CMake reads where there is no package around the sources

_TARGET = "fastervit_plugins"
_HERE = Path(__file__).resolve().parent
_SOURCES = ("CMakeLists.txt", "cmake/*.cmake", "cmake/exports.map", "csrc/*/*.h", "csrc/*/*.cu", "csrc/*/*.cpp")
_JOBS = 4  # where nobody knows the machine; one needs 0.2 GiB (nvcc 13.0)
_JOB_BYTES = 1 << 29
_TOOLS = {
    "cmake": "sudo apt install cmake, or pip install cmake",
    "c++": "sudo apt install build-essential",
}
_NVCC_REMEDY = "on a Jetson sudo apt install nvidia-jetpack, elsewhere the CUDA toolkit that fits the driver"
_READ_ME = """\
Kernels and TensorRT plugins of fastervit-trt {version}, and fastervit-runner, which runs an engine without Python.

To build them here: CMake 3.22, a C++17 compiler, nvcc 12 or 13, TensorRT's headers (10.0 or later), no GPU.

    {command}

87 is the compute capability of the GPU without the dot: 87 Orin, 89 L4, 90 H100, 110 Thor. Where TensorRT's headers are
not in the system's folders, add -DTENSORRT_ROOT=FOLDER, the folder above include. What comes out is
build/lib/{library} and build/bin/fastervit-runner, whose --help lists its options.
"""


def write_sources(folder: Path) -> list[Path]:
    """Everything that the library is built from, with the version it is of and a note on how to build it.

    Args:
        folder: new, or empty.

    Returns:
        The files, sorted.

    Raises:
        FasterViTError: ``folder`` holds something, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FasterViTError(f"'{folder}' is not empty; write the sources of the plugins into a folder of their own")
    names = sorted(path.relative_to(_HERE) for pattern in _SOURCES for path in _HERE.glob(pattern))
    with new_folder(folder, overwrite=True) as temporary:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_HERE / name, temporary / name)
            times = (_HERE / name).stat()
            os.utime(temporary / name, ns=(times.st_atime_ns, times.st_mtime_ns))  # a build goes on where it was
        (temporary / VERSION_FILE).write_text(f"{__version__}\n")
        command = build_command(Path(), architectures="87")
        text = _READ_ME.format(version=__version__, command=command, library=LIBRARY)
        (temporary / "BUILD.txt").write_text(text)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def build_command(folder: Path, *, tensorrt_root: Path | None = None, architectures: str | None = None) -> str:
    """One line for a shell that builds the sources in ``folder`` into ``folder/build``.

    Args:
        tensorrt_root: the folder above TensorRT's ``include``; None: in the system's folders, or ``$TENSORRT_ROOT``.
        architectures: compute capabilities without the dot, as in "87" or "87;90"; None: all that FasterViT is
            served on.

    Raises:
        FasterViTError: ``architectures`` are none.
    """
    build = folder / "build"
    configure = _configure(folder, build, tensorrt_root, architectures)
    return f"{shlex.join(configure)} && {shlex.join(_compile(build, _JOBS))}"


def build_library(
    folder: Path,
    output: Path,
    *,
    architectures: str,
    tensorrt_root: Path | None = None,
    build: Path | None = None,
    show: Callable[[str], None] | None = None,
) -> Path:
    """Build the plugin library from the sources in ``folder``, here, for GPUs of the kinds given.

    What the compilers say is kept beside ``output``, with the suffix ".log".

    Args:
        output: the library's file; an older one is replaced once the new one has said that it is of this version.
        architectures: as of :func:`build_command`. Every one takes its time: minutes on a Jetson.
        build: folder that keeps what is compiled, so that the next build goes on from there; None: a temporary one.
        show: is told each step that CMake reports.

    Returns:
        ``output``.

    Raises:
        FasterViTError: no sources, or of another version; no CMake, compiler, nvcc or headers, each with how to get it;
            they do not compile.
    """
    _check_sources(folder)
    environment = {"CUDACXX": _nvcc(), **os.environ}
    log = output.with_suffix(".log")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _build_folder(output, build) as place:
        configure = _configure(folder, place, tensorrt_root, architectures)
        with log.open("w") as stream:
            for command in (configure, _compile(place, _jobs(), _TARGET)):
                _run(command, environment, stream, show)
        with new_file(output, overwrite=True) as temporary:
            shutil.copyfile(place / "lib" / LIBRARY, temporary)
            load(temporary, "plugins")
    return output


def _configure(folder: Path, build: Path, tensorrt_root: Path | None, architectures: str | None) -> list[str]:
    command = ["cmake", "-S", str(folder), "-B", str(build), "-DFASTERVIT_TRT_REQUIRE_PLUGINS=ON"]
    if tensorrt_root is not None:
        command.append(f"-DTENSORRT_ROOT={tensorrt_root}")
    if architectures is not None:
        if re.fullmatch(r"[1-9]\d+(;[1-9]\d+)*", architectures) is None:
            raise FasterViTError(f"'{architectures}' are no GPU architectures; write 87, or 87;90")
        command.append(f"-DFASTERVIT_TRT_CUDA_ARCHITECTURES={architectures}")
    return command


def _compile(build: Path, jobs: int, target: str | None = None) -> list[str]:
    return ["cmake", "--build", str(build), "--parallel", str(jobs), *(["--target", target] if target else [])]


def _check_sources(folder: Path) -> None:
    """Before minutes are spent on a library that would be refused."""
    try:
        version = (folder / VERSION_FILE).read_text().strip()
    except OSError as error:
        raise FasterViTError(f"'{folder}' holds no sources of the plugins: it has no file {VERSION_FILE}") from error
    if version != __version__:
        message = f"the sources in '{folder}' are of version {version}, fastervit-trt is {__version__}"
        raise FasterViTError(f"{message}; install that version, or pack the bundle again with this one")


def _nvcc() -> str:
    """Its path, once the other tools have been found, too."""
    for tool, remedy in _TOOLS.items():
        if shutil.which(os.environ.get("CXX") or tool if tool == "c++" else tool) is None:
            raise FasterViTError(f"the plugins do not build: {tool} is not installed; {remedy}")
    try:
        return str(find_nvcc().path)
    except FasterViTError as error:
        raise FasterViTError(f"the plugins do not build: nvcc is not installed; {_NVCC_REMEDY}") from error


def _jobs() -> int:
    jobs: int = min(usable_cpus(), psutil.virtual_memory().available // _JOB_BYTES)
    return max(1, jobs)


@contextmanager
def _build_folder(output: Path, build: Path | None) -> Iterator[Path]:
    if build is not None:
        yield build
        return
    with tempfile.TemporaryDirectory(prefix=".build-", dir=output.parent) as name:
        yield Path(name)


def _run(
    command: Sequence[str], environment: Mapping[str, str], log: TextIO, show: Callable[[str], None] | None
) -> None:
    log.write(f"{shlex.join(command)}\n")
    said = []
    # A session of its own: make and the compilers below cmake can then be stopped together.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            said.append(line)
            if show is not None and (step := re.match(r"(?:-- |\[[^\]]*\] )(.*)", line)):
                show(step[1])
        code = process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        raise FasterViTError(f"the plugins do not build: {_reason(''.join(said))}; {log.name} has all that was said")


def _reason(said: str) -> str:
    """What went wrong first, in the words of CMake or of the compiler."""
    of_cmake = re.search(r"^CMake Error[^\n]*:\n\s*\n?((?:  .+\n)+)|^CMake Error: (.+\n)", said, re.MULTILINE)
    if of_cmake is not None:
        return " ".join((of_cmake[1] or of_cmake[2]).split()).rstrip(".")
    if re.search(r"\bKilled\b|\bError 137\b|Cannot allocate memory", said):
        return "a compiler ran out of memory; stop other programs, or add swap"
    of_compiler = re.search(r"^.*(?:\berror\b|fatal|undefined reference|No space left).*$", said, re.MULTILINE)
    return of_compiler[0].strip() if of_compiler is not None else "CMake gave no reason"
