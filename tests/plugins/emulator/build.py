"""Compiles CUDA kernels for the CPU: sources in, a library out that answers to the same C functions.

Only what changed is compiled again: objects are kept in build/emulator under a hash of all that went into them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from fastervit_trt import __version__

__all__ = ["emulated_library", "kernel_sources", "unavailable"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
KERNELS = ROOT / "plugins" / "csrc"
CACHE = ROOT / "build" / "emulator"
SCRIPT = HERE / "shared.ld"
KEPT_S = 24 * 3600  # since last use
JOBS = os.cpu_count() or 1

COMMON = [
    *"-std=c++17 -g1 -fPIC -fvisibility=hidden -U_FORTIFY_SOURCE -Wall -Wextra -Werror".split(),
    f"-I{HERE / 'include'}",
]
ENGINE = [*COMMON, "-O2"]
KERNEL = [
    *COMMON,
    "-O1",
    # Calls before accesses to memory and on undefined behaviour. The engine answers them, no sanitizer is linked.
    "-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    *"-Wno-tsan -fno-threadsafe-statics".split(),
    "-Wno-unknown-pragmas",  # unroll
    f'-DFASTERVIT_VERSION="{__version__}"',
    *"-x c++ -include prelude.h".split(),
]


def kernel_sources() -> list[Path]:
    """What of plugins/csrc the launchers are made of."""
    return sorted([*KERNELS.glob("*/*.cu"), *KERNELS.glob("common/*.cpp")])


@functools.cache
def unavailable() -> str | None:
    """Why nothing can be compiled here; None: it can."""
    if sys.platform != "linux":
        return "the CUDA emulator runs on Linux only"
    if shutil.which("g++") is None:
        return "the CUDA emulator needs g++"
    return None


def emulated_library(sources: Sequence[Path] | None = None) -> Path:
    """The library of these sources (all kernels of the project by default), compiled where it is not there yet.

    Raises:
        RuntimeError: with what the compiler said.
    """
    sources = kernel_sources() if sources is None else [path.resolve() for path in sources]
    kernel = [*KERNEL, *_options()]
    work = [(path, ENGINE) for path in sorted(HERE.glob("*.cpp"))] + [(path, kernel) for path in sources]
    CACHE.mkdir(parents=True, exist_ok=True)
    # The compilers of one process keep all cores busy; another one that wants the same waits and finds it compiled.
    with FileLock(CACHE / "lock"), ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda item: _object(*item), work))
    library = CACHE / f"{_hash([SCRIPT.read_text(), *(path.name for path in objects)])}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            result = Path(scratch) / "library.so"
            _run("g++", "-shared", *objects, f"-Wl,-z,defs,-T,{SCRIPT}", "-ldl", "-pthread", "-o", result)
            result.replace(library)
    for path in (library, *objects):
        path.touch()
    for path in CACHE.glob("*.*"):
        if path.suffix in (".o", ".so") and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
    return library


def _object(source: Path, flags: list[str]) -> Path:
    """Compile a source, unless it was compiled before with the same contents of all that it includes."""
    name = f"{source.parent.name}-{source.stem}-{_hash([_compiler(), str(source), *flags])}"
    makefile = CACHE / f"{name}.d"  # what it included last time
    if makefile.is_file() and (known := _contents(makefile)) and (CACHE / f"{name}-{known}.o").is_file():
        return CACHE / f"{name}-{known}.o"
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        result, includes, now = Path(scratch) / "object.o", Path(scratch) / "object.d", Path(scratch) / "now"
        now.touch()
        _run("g++", *flags, "-c", source, "-MMD", "-MF", includes, "-o", result)
        if any(path.stat().st_mtime >= now.stat().st_mtime for path in _included(includes)):
            return _object(source, flags)  # edited meanwhile
        known = _contents(includes)
        includes.replace(makefile)
        return result.replace(CACHE / f"{name}-{known}.o")


def _included(makefile: Path) -> list[Path]:
    """The files that a rule of make names."""
    return [Path(name) for name in makefile.read_text().replace("\\\n", " ").split()[1:]]


def _contents(makefile: Path) -> str | None:
    """Hash of the files that were included; None where one is gone."""
    files = _included(makefile)
    return _hash(path.read_text() for path in files) if all(path.is_file() for path in files) else None


def _run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


@functools.cache
def _options() -> list[str]:
    """What only newer compilers understand: variables start as garbage, the same every time."""
    garbage = "-ftrivial-auto-var-init=pattern"
    known = (
        subprocess.run(["g++", garbage, "-xc++", "-E", "/dev/null"], capture_output=True, check=False).returncode == 0
    )
    return [garbage] if known else []


@functools.cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    print(emulated_library([Path(name) for name in sys.argv[1:]] or None))
