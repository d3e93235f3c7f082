"""A library that computes nothing: made from the headers, it writes down what its functions are called with."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

from fastervit_trt import __version__
from fastervit_trt.plugins.kernels import Kernels
from fastervit_trt.plugins.library import INTERFACE
from tests.conftest import ROOT

__all__ = ["HEADERS", "Recorder", "compile_c", "declarations", "recorder_source"]

HEADERS = sorted((ROOT / "plugins" / "csrc").glob("*/kernel.h"))
DECLARATION = re.compile(r"FASTERVIT_API\s+([\w\s*]+?)\s*\bfastervit_(\w+)\(([^)]*)\);")


def declarations(text: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """C functions: name → what it returns, types and names of its parameters."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = {}
    for returns, name, parameters in DECLARATION.findall(text):
        pairs = [re.fullmatch(r"(.*?)\s*(\w+)", " ".join(parameter.split())) for parameter in parameters.split(",")]
        assert all(pairs), (name, parameters)
        found[name] = (returns, [(pair[1], pair[2]) for pair in pairs if pair])
    return found


def recorder_source(emulated: bool = True) -> str:
    """Every function of the headers: launchers and questions write their arguments down, one ``name=value`` each."""
    bodies = []
    for name, (returns, parameters) in [item for h in HEADERS for item in declarations(h.read_text()).items()]:
        formats = {"int": "%d", "float": "%.9g"}
        text = " ".join(f"{parameter}={formats.get(kind, '%p')}" for kind, parameter in parameters)
        values = ", ".join(parameter for _, parameter in parameters)
        answer = {"const char*": "refusal[0] ? refusal : NULL", "int": "code", "long long": "48"}[returns]
        signature = ", ".join(f"{kind} {parameter}" for kind, parameter in parameters)
        bodies.append(
            f"{returns} fastervit_{name}({signature}) {{\n"
            f'  snprintf(calls[count++ % 8], 1024, "{name} {text}", {values});\n  return {answer};\n}}\n'
        )
    includes = "".join(f'#include "{header}"\n' for header in HEADERS)
    emulator = 'const char* fastervit_emulator_error(void) { return "thread 3 of block 1 fell over"; }'
    return f"""
        #include <stdio.h>
        {includes}
        static char calls[8][1024];
        static int count, code;
        static char refusal[256];
        int fastervit_interface(void) {{ return {INTERFACE}; }}
        const char* fastervit_version(void) {{ return "{__version__}"; }}
        const char* recorded(int i) {{ return i < count ? calls[i] : NULL; }}
        void prepare(const char* text, int error) {{ snprintf(refusal, 256, "%s", text); code = error; count = 0; }}
        {emulator if emulated else ""}
        {"".join(bodies)}
    """


def compile_c(source: str, path: Path) -> Path:
    path.with_suffix(".c").write_text(source)
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", "-shared", "-fPIC", *warnings, "-o", str(path), str(path.with_suffix(".c"))], check=True)
    return path


class Recorder:
    """The library, and what its functions were called with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kernels = Kernels(path)
        self.library = ctypes.CDLL(str(path))
        self.library.recorded.restype = ctypes.c_char_p

    def prepare(self, refusal: str = "", code: int = 0) -> None:
        self.library.prepare(refusal.encode(), code)

    @property
    def calls(self) -> list[tuple[str, dict[str, str]]]:
        texts = [text.decode().split() for i in range(8) if (text := self.library.recorded(i)) is not None]
        return [(name, dict(pair.split("=") for pair in pairs)) for name, *pairs in texts]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]
