"""The sources of the plugins as a bundle has them, and how a build that cannot succeed says so."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastervit_trt import __version__
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins import sources
from fastervit_trt.plugins.sources import build_command, build_library, write_sources
from tests.conftest import ROOT

PLUGINS = ROOT / "plugins"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources, as they lie in a bundle."""
    write_sources(tmp_path / "sources")
    return tmp_path / "sources"


# The folder.


def test_everything_that_is_compiled_is_there_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "plugins"
    paths = write_sources(folder)
    assert paths == sorted(path for path in folder.rglob("*") if path.is_file())
    tracked = {
        str(path.relative_to(PLUGINS))
        for path in PLUGINS.rglob("*")
        if path.suffix in (".cu", ".cpp", ".h", ".cmake", ".map") or path.name == "CMakeLists.txt"
    }
    written = contents(folder)
    assert written.keys() == tracked | {"VERSION", "BUILD.txt"}
    assert all(written[name] == (PLUGINS / name).read_bytes() for name in tracked)
    assert written["VERSION"].decode() == f"{__version__}\n"
    note = written["BUILD.txt"].decode()
    assert f"    {build_command(Path(), architectures='87')}\n" in note
    assert str(ROOT) not in note


def test_an_installed_package_writes_the_same(folder: Path, tmp_path: Path) -> None:
    """What pyproject.toml lets into the wheel is enough, and no folder around it is needed."""
    site = tmp_path / "site"
    shutil.copytree(
        ROOT / "src" / "fastervit_trt", site / "fastervit_trt", ignore=shutil.ignore_patterns("__pycache__")
    )
    package = site / "fastervit_trt" / "plugins"
    package.mkdir()
    for pattern in ("*.py", *packaged()):
        for path in PLUGINS.glob(pattern):
            (package / path.relative_to(PLUGINS)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, package / path.relative_to(PLUGINS))
    code = "import pathlib; from fastervit_trt.plugins.sources import *; write_sources(pathlib.Path('out')); "
    code += "import sys; assert not {'torch', 'tensorrt', 'pycuda'} & set(sys.modules)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(site)!r}, *{sys.path!r}]; {code}"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert contents(tmp_path / "out") == contents(folder)


def packaged() -> list[str]:
    """Patterns of data that the package ``plugins`` has."""
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith('"fastervit_trt.plugins" = ['):
            return [part.strip(' "[]') for part in line.partition("=")[2].split(",")]
    raise AssertionError("none")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(
        FasterViTError, match="is not empty; write the sources of the plugins into a folder of their own"
    ):
        write_sources(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# The command.


def test_the_command_is_one_line_for_a_shell() -> None:
    assert build_command(Path("plugins"), architectures="87") == (
        "cmake -S plugins -B plugins/build -DFASTERVIT_TRT_REQUIRE_PLUGINS=ON -DFASTERVIT_TRT_CUDA_ARCHITECTURES=87 "
        "&& cmake --build plugins/build --parallel 4"
    )
    command = build_command(Path("a b"), tensorrt_root=Path("/opt/T R T"), architectures="87;90")
    assert shlex.split(command)[:8] == [
        *("cmake", "-S", "a b", "-B", "a b/build", "-DFASTERVIT_TRT_REQUIRE_PLUGINS=ON", "-DTENSORRT_ROOT=/opt/T R T"),
        "-DFASTERVIT_TRT_CUDA_ARCHITECTURES=87;90",
    ]
    assert "ARCHITECTURES" not in build_command(Path("plugins"))


@pytest.mark.parametrize("architectures", ["", "8.7", "sm_87", "87;", "87 90", "87;x", "$(x)"])
def test_what_is_no_architecture_is_refused(architectures: str) -> None:
    with pytest.raises(FasterViTError, match="are no GPU architectures; write 87, or 87;90"):
        build_command(Path("plugins"), architectures=architectures)


# The build. Where it succeeds: test_cmake.py.


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A PATH with programs of the test's own: name → what a shell does. The real CMake is ``$CMAKE``."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no CMake; pip install cmake")
    monkeypatch.setenv("CMAKE", cmake)
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)

    def make(*, keep: bool = True, **scripts: str) -> Path:
        folder = tmp_path / "tools"
        folder.mkdir()
        for name, script in scripts.items():
            path = folder / name.replace("cxx", "c++")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}" if keep else str(folder))
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        (tmp_path / "cuda" / "bin").mkdir(parents=True)
        (tmp_path / "cuda" / "bin" / "nvcc").touch()
        return folder

    return make


def refused(folder: Path, output: Path) -> str:
    with pytest.raises(FasterViTError) as error:
        build_library(folder, output, architectures="89")
    assert not output.exists()
    assert not list(output.parent.glob(".*"))  # what was compiled, half-written files
    return str(error.value)


def test_tools_that_are_missing(folder: Path, tmp_path: Path, tools: Callable[..., Path]) -> None:
    made = tools(keep=False)
    line = refused(folder, tmp_path / "lib.so")
    assert line == "the plugins do not build: cmake is not installed; sudo apt install cmake, or pip install cmake"
    (made / "cmake").symlink_to("/bin/true")
    line = refused(folder, tmp_path / "lib.so")
    assert line == "the plugins do not build: c++ is not installed; sudo apt install build-essential"
    (made / "c++").symlink_to("/bin/true")
    (tmp_path / "cuda" / "bin" / "nvcc").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastervit_trt.plugins.nvcc.DEFAULT_HOME", tmp_path)
        patch.setattr("fastervit_trt.plugins.nvcc._of_packages", lambda: iter(()))
        line = refused(folder, tmp_path / "lib.so")
    assert line.startswith(
        "the plugins do not build: nvcc is not installed; on a Jetson sudo apt install nvidia-jetpack, "
    )


def test_sources_of_another_version_cost_no_minutes(folder: Path, tmp_path: Path) -> None:
    (folder / "VERSION").write_text("0.0.9\n")
    line = refused(folder, tmp_path / "lib.so")
    assert line == (
        f"the sources in '{folder}' are of version 0.0.9, fastervit-trt is {__version__}; install that version, or "
        "pack the bundle again with this one"
    )
    assert "holds no sources of the plugins: it has no file VERSION" in refused(tmp_path, tmp_path / "lib.so")


def test_the_words_of_cmake_come_through(folder: Path, tmp_path: Path, tools: Callable[..., Path]) -> None:
    tools()
    (folder / "cmake" / "CudaArchitectures.cmake").write_text("")  # which looks for CUDA
    line = refused(folder, tmp_path / "lib" / "lib.so")
    if "No TensorRT headers" not in line:
        pytest.skip("this machine has TensorRT's headers")
    assert line.startswith(
        "the plugins do not build: No TensorRT headers: no plugins without them. Install those of the "
    )
    assert line.endswith(f"-DFASTERVIT_TRT_FETCH_TENSORRT=ON; {tmp_path}/lib/lib.log has all that was said")
    assert "CMake Error" in (tmp_path / "lib" / "lib.log").read_text()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("a.cu(3): error: 'x' is undefined\nmake: *** [a.o] Error 1", "a.cu(3): error: 'x' is undefined"),
        ("a.cu:1:10: fatal error: NvInfer.h: No such file", "a.cu:1:10: fatal error: NvInfer.h: No such file"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "a compiler ran out of memory; stop"),
        ("make[2]: *** [a.o] Error 137", "a compiler ran out of memory; stop other programs, or add swap"),
        ("CMake Error: The source directory is odd.\nmore", "The source directory is odd"),
        ("nothing of interest", "CMake gave no reason"),
    ],
)  # fmt: skip
def test_the_words_of_compilers_come_through(
    folder: Path, tmp_path: Path, tools: Callable[..., Path], said: str, reason: str
) -> None:
    tools(cmake=f'case "$1" in --build) cat <<"END"\n{said}\nEND\nexit 2;; esac')
    line = refused(folder, tmp_path / "lib.so")
    assert line.startswith(f"the plugins do not build: {reason}")
    assert line.endswith(f"; {tmp_path}/lib.log has all that was said")
    assert said in (tmp_path / "lib.log").read_text()


def test_a_library_that_is_not_of_this_version_replaces_nothing(
    folder: Path, tmp_path: Path, tools: Callable[..., Path]
) -> None:
    (tmp_path / "made.c").write_text("int fastervit_interface(void) { return 7; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "made.so", tmp_path / "made.c"], check=True)
    tools(cmake=f'[ "$1" = --build ] && mkdir -p "$2/lib" && cp {tmp_path}/made.so "$2/lib/{sources.LIBRARY}"; true')
    (tmp_path / "lib.so").write_text("the one before")
    with pytest.raises(FasterViTError, match="is no library of FasterViT plugins"):
        build_library(folder, tmp_path / "lib.so", architectures="89")
    assert (tmp_path / "lib.so").read_text() == "the one before"
    assert not list(tmp_path.glob(".*"))


def test_interrupted_builds_leave_no_compilers_behind(folder: Path, tmp_path: Path, tools: Callable[..., Path]) -> None:
    tools(cmake=f"sleep 600 & echo $! > {tmp_path}/child; echo '[  1%] Building'; wait")

    def interrupt(step: str) -> None:
        raise KeyboardInterrupt(step)

    with pytest.raises(KeyboardInterrupt, match="Building"):
        build_library(folder, tmp_path / "lib.so", architectures="89", show=interrupt)
    child = int((tmp_path / "child").read_text() or 0)
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the child still runs")
    assert not list(tmp_path.glob(".build-*"))
