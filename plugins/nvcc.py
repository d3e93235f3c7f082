"""The CUDA compiler, wherever it is, and what its assembler says of a file."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt.artifacts import new_file
from fastervit_trt.errors import FasterViTError

__all__ = ["Nvcc", "find_nvcc"]

DEFAULT_HOME = Path("/usr/local/cuda")

# A release build as CMake makes it; -cubin: no code for the CPU.
_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin")


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler."""

    path: Path

    @functools.cached_property
    def version(self) -> str:
        """As in 13.0.88."""
        answer = self._ask("--version")
        found = re.search(r"\bV(\d+(?:\.\d+)+)", answer)
        if found is None:
            raise FasterViTError(f"'{self.path} --version' does not say which nvcc it is: {answer}")
        return found[1]

    @functools.cached_property
    def architectures(self) -> frozenset[int]:
        """That it compiles for."""
        return frozenset(int(number) for number in re.findall(r"\bsm_(\d+)", self._ask("--list-gpu-code")))

    def _ask(self, option: str) -> str:
        return subprocess.run([self.path, option], capture_output=True, text=True).stdout

    def ptxas_report(self, source: Path, architecture: int, cache: Path | None = None) -> str:
        """What ``ptxas -v`` says of the kernels of one file, with names demangled.

        Args:
            cache: folder that keeps reports: they are the same as long as the file, what it includes and nvcc are.

        Raises:
            FasterViTError: the file does not compile, without warnings.
        """
        if cache is None:
            return self._compile(source, architecture)
        name = f"{source.parent.name}-{source.stem}-sm_{architecture}-{self.fingerprint(source, architecture)}"
        kept = cache / f"{name}.txt"
        if not kept.is_file():
            report = self._compile(source, architecture)
            with new_file(kept, overwrite=True) as temporary:
                temporary.write_text(report)
        return kept.read_text()

    def fingerprint(self, source: Path, architecture: int) -> str:
        """Hash of all that the report depends on: nvcc and its options, the file and what it includes."""
        contents = [path.read_bytes() for path in _with_includes(source)]
        return hashlib.sha256(repr((self.version, _arguments(architecture), contents)).encode()).hexdigest()[:16]

    def _compile(self, source: Path, architecture: int) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            command = [str(self.path), *_arguments(architecture), "-o", f"{scratch}/cubin", str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
        output = done.stdout + done.stderr
        if done.returncode:
            culprit = re.search(r"^.*(?:error|fatal).*$", output, re.MULTILINE)
            reason = culprit[0] if culprit else f"nvcc exited with {done.returncode}"
            raise FasterViTError(f"{source} does not compile for sm_{architecture}: {reason}")
        return _demangled(output)


def find_nvcc() -> Nvcc:
    """The compiler of ``$CUDA_HOME``, of the PATH, of /usr/local/cuda, or of the packages of the extra cuda-compiler.

    Raises:
        FasterViTError: there is none.
    """
    home, in_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    candidates = [Path(home, "bin", "nvcc")] if home else []
    candidates += [Path(in_path)] if in_path else []
    candidates += [DEFAULT_HOME / "bin" / "nvcc", *_of_packages()]
    for path in candidates:
        if path.is_file():
            return Nvcc(path)
    places = f"$CUDA_HOME, the PATH, {DEFAULT_HOME} and Python's packages"
    raise FasterViTError(f"nvcc not found in {places}; pip install 'fastervit-trt[cuda-compiler]' brings one")


def _of_packages() -> Iterator[Path]:
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc") or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (Path(str(file.locate())) for file in files if file.match("bin/nvcc"))


def _arguments(architecture: int) -> tuple[str, ...]:
    return (*_FLAGS, f"-arch=sm_{architecture}")


def _with_includes(source: Path) -> list[Path]:
    """A file and what it includes by a relative name, directly or not; the rest is the compiler's."""
    found = [source.resolve()]
    for path in found:  # which grows
        for name in re.findall(r'^\s*#\s*include\s*"(.+?)"', path.read_text(), re.MULTILINE):
            header = (path.parent / name).resolve()
            if header.is_file() and header not in found:
                found.append(header)
    return found


def _demangled(text: str) -> str:
    """binutils has it, which the compiler that nvcc needs brings along."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
