"""The CMake build: what it makes, what it says, and that what it makes stands by itself. Needs nvcc, no GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastervit_trt import __version__
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.kernels import SIGNATURES
from fastervit_trt.plugins.library import Kind, load
from fastervit_trt.plugins.nvcc import find_nvcc
from fastervit_trt.plugins.operators import OPERATORS
from fastervit_trt.plugins.sources import build_library, write_sources
from tests.conftest import ROOT
from tests.plugins.plugin_driver import CSRC, tensorrt_headers

ARCHITECTURE = "89"
KEPT = ROOT / "build" / "cmake-test"  # what is compiled is kept
WITHOUT_TENSORRT = "-DCMAKE_DISABLE_FIND_PACKAGE_TensorRT=ON"  # whatever this machine has
PROGRAMS = {"fastervit-plugin-driver", "fastervit-runner"}
LEFT_OUT = "building the kernels, leaving out the TensorRT plugins. To have them, set TENSORRT_ROOT to a folder with"


@dataclass(frozen=True)
class Said:
    """How CMake ended, and all it said, as one line."""

    code: int
    text: str


def cmake(*arguments: object, **environment: str) -> Said:
    command = ["cmake", *map(str, arguments)]
    given = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "TENSORRT_ROOT")}
    done = subprocess.run(command, cwd=ROOT, env={**given, **environment}, capture_output=True, text=True, check=False)
    return Said(done.returncode, " ".join(f"{done.stdout}\n{done.stderr}".split()))


@pytest.fixture(scope="module")
def nvcc() -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("no CMake; pip install cmake")
    try:
        return find_nvcc().path
    except FasterViTError as error:
        pytest.skip(str(error))


@pytest.fixture
def configure(nvcc: Path, tmp_path: Path) -> Callable[..., Said]:
    """Configure into a folder of the test's own, for one GPU unless told otherwise."""

    def run(*arguments: object, **environment: str) -> Said:
        one = f"-DFASTERVIT_TRT_CUDA_ARCHITECTURES={ARCHITECTURE}"
        options = (one, "-DFASTERVIT_TRT_WERROR=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *arguments)
        return cmake("-S", ROOT, "-B", tmp_path / "build", *options, **{"CUDACXX": str(nvcc), **environment})

    return run


@pytest.fixture(scope="module")
def built(nvcc: Path) -> Path:
    """A build for one GPU of the sources that a bundle has, with plugins where TensorRT's headers are."""
    headers = tensorrt_headers()
    folder = KEPT / (re.sub(r"\W+", "-", str(headers)).strip("-") if headers else "kernels") / "build"
    sources = folder.with_name("sources")
    shutil.rmtree(sources, ignore_errors=True)
    write_sources(sources)
    environment = {name: os.environ[name] for name in ("TENSORRT_ROOT",) if name in os.environ}
    options = [f"-DFASTERVIT_TRT_CUDA_ARCHITECTURES={ARCHITECTURE}", "-DFASTERVIT_TRT_WERROR=ON"]
    if "-Ofc" in subprocess.run([nvcc, "--help"], capture_output=True, text=True, check=True).stdout:
        options.append("-DCMAKE_CUDA_FLAGS=-Ofc=max")  # compiles in a quarter of the time, and nothing runs here
    done = cmake("-S", sources, "-B", folder, *options, CUDACXX=str(nvcc), **environment)
    assert done.code == 0, done.text
    done = cmake("--build", folder, "--parallel", "2")
    assert done.code == 0, done.text
    return folder


@pytest.fixture
def libraries(built: Path) -> dict[Kind, Path]:
    kinds: list[Kind] = ["kernels", "plugins"] if tensorrt_headers() else ["kernels"]
    return {kind: built / "lib" / f"libfastervit_{kind}.so" for kind in kinds}


@pytest.fixture
def with_plugins(built: Path) -> Path:
    if tensorrt_headers() is None:
        pytest.skip("no TensorRT headers; set TENSORRT_ROOT to a folder with include/NvInfer.h")
    return built


def fake_headers(folder: Path, version: str) -> Path:
    """What CMake looks at of TensorRT's headers."""
    include = folder / "include"
    include.mkdir(parents=True)
    (include / "NvInfer.h").touch()
    parts = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    (include / "NvInferVersion.h").write_text("".join(f"#define NV_TENSORRT_{name} {n}\n" for name, n in parts))
    return folder


def targets(build: Path) -> set[str]:
    return set(re.findall(r"fastervit[\w-]+", cmake("--build", build, "--target", "help").text))


# What it says.


def test_without_tensorrt_it_builds_the_kernels_and_says_so(configure: Callable[..., Said], tmp_path: Path) -> None:
    said = configure(WITHOUT_TENSORRT)
    assert said.code == 0, said.text
    assert f"No TensorRT headers: {LEFT_OUT}" in said.text
    assert targets(tmp_path / "build") == {"fastervit_kernels"}
    (link,) = (tmp_path / "build").rglob("fastervit_kernels.dir/link.txt")
    (output,) = re.findall(r" -o (\S+)", link.read_text())  # from the folder of the target
    made = Path(os.path.normpath(link.parents[2] / output))
    assert made == ROOT / "build" / "lib" / "libfastervit_kernels.so"  # where the package looks

    said = configure(WITHOUT_TENSORRT, "-DFASTERVIT_TRT_REQUIRE_PLUGINS=ON")
    assert said.code != 0
    assert (
        "No TensorRT headers: no plugins without them. Install those of the TensorRT in use (Jetson: sudo " in said.text
    )


@pytest.mark.parametrize("place", ["VERSION", "../src/fastervit_trt/__init__.py", "../__init__.py"])
def test_the_version_is_found_in_a_bundle_a_checkout_and_a_package(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "package" / "plugins"
    write_sources(folder)
    (folder / "VERSION").unlink()
    command = ("-S", folder, "-B", tmp_path / "build", "-DCMAKE_CUDA_COMPILER=false")  # it need not come that far
    said = cmake(*command)
    assert said.code != 0
    assert (
        f"{folder} has no file VERSION and is no folder of the package: these sources were not copied whole"
        in said.text
    )
    path = Path(os.path.normpath(folder / place))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("7.8.9\n" if place == "VERSION" else '"""A package."""\n__version__ = "7.8.9"\n')
    assert "-- fastervit-trt 7.8.9 --" in cmake(*command).text


def test_headers_come_from_tensorrt_root(configure: Callable[..., Said], tmp_path: Path) -> None:
    first, second = fake_headers(tmp_path / "first", "10.3.0"), fake_headers(tmp_path / "second", "12.34.5")
    said = configure(TENSORRT_ROOT=str(first))
    assert f"TensorRT 10.3.0 headers: {first}/include" in said.text
    assert targets(tmp_path / "build") == PROGRAMS | {"fastervit_kernels", "fastervit_plugins"}
    said = configure(f"-DTENSORRT_ROOT={second}", TENSORRT_ROOT=str(first))  # nor what was found before
    assert f"TensorRT 12.34.5 headers: {second}/include" in said.text


def test_headers_without_the_plugin_interface_are_passed_over(configure: Callable[..., Said], tmp_path: Path) -> None:
    said = configure(TENSORRT_ROOT=str(fake_headers(tmp_path / "root", "8.6.1")))
    assert said.code == 0, said.text
    assert f"TensorRT 8.6.1 headers in {tmp_path}/root/include are too old: {LEFT_OUT}" in said.text
    assert targets(tmp_path / "build") == {"fastervit_kernels"}


def test_a_wrong_tensorrt_root_is_an_error(configure: Callable[..., Said], tmp_path: Path) -> None:
    said = configure(TENSORRT_ROOT=str(tmp_path))
    assert said.code != 0
    assert f"TENSORRT_ROOT is {tmp_path}, which has no include/NvInfer.h; name the folder above include" in said.text


def test_headers_can_be_fetched(
    configure: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a repository of which nothing else is wanted, least of all its CMakeLists.txt."""
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    if tensorrt_headers() is not None:
        pytest.skip("the headers of this machine are taken")
    repository = fake_headers(tmp_path / "repository", "11.9.0")
    (repository / "CMakeLists.txt").write_text('message(FATAL_ERROR "built")')
    (repository / "plugin").mkdir()
    (repository / "plugin" / "large.cpp").touch()
    name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "--quiet"], ["add", "."], [*name, "commit", "--quiet", "-m", "11.9"], ["tag", "v11.9"]):
        subprocess.run(["git", *arguments], cwd=repository, check=True)
    source = f"-DFASTERVIT_TRT_TENSORRT_REPOSITORY=file://{repository}"
    said = configure("-DFASTERVIT_TRT_FETCH_TENSORRT=ON", source, "-DFASTERVIT_TRT_TENSORRT_TAG=v11.9")
    assert said.code == 0, said.text
    assert "TensorRT 11.9.0 headers: " in said.text
    assert "fastervit_plugins" in targets(tmp_path / "build")
    fetched = next((tmp_path / "build").rglob("NvInfer.h")).parents[1]
    assert not (fetched / "plugin").exists()


def test_without_a_compiler_it_says_how_to_get_one(configure: Callable[..., Said]) -> None:
    folders = [*os.environ["PATH"].split(os.pathsep), *(f"{os.environ.get(v)}/bin" for v in ("CUDA_HOME", "CUDA_PATH"))]
    hidden = {folder for folder in folders if Path(folder, "nvcc").is_file()} | {"/usr/local/cuda/bin"}
    if any(Path(folder, "c++").exists() for folder in hidden):
        pytest.skip("nvcc lies beside the C++ compiler")
    said = configure(f"-DCMAKE_IGNORE_PATH={';'.join(hidden)}", CUDACXX="")
    assert said.code != 0
    assert "No CUDA compiler: put nvcc on PATH or set CUDACXX to it. It needs no GPU" in said.text
    assert "pip install 'fastervit-trt[cuda-compiler]'" in said.text


# What it compiles.


def compile_commands(build: Path) -> dict[str, str]:
    """Source below csrc → command."""
    commands = json.loads((build / "compile_commands.json").read_text())
    return {str(Path(c["file"]).relative_to(CSRC)): " ".join(c["command"].split()) for c in commands}


def test_every_source_is_compiled_for_every_gpu(configure: Callable[..., Said], nvcc: Path, tmp_path: Path) -> None:
    """Machine code for each, and PTX of the last for those to come; GPUs that this nvcc does not know are left out."""
    configure("-UFASTERVIT_TRT_CUDA_ARCHITECTURES", WITHOUT_TENSORRT)  # after the one, which goes first
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    served = [sm for sm in "80 87 89 90 100 110 120".split() if f"sm_{sm}" in known.split()]
    commands = compile_commands(tmp_path / "build")
    assert {name for name in commands if name.endswith(".cu")} == {
        str(p.relative_to(CSRC)) for p in CSRC.glob("*/*.cu")
    }
    for name, command in commands.items():
        if name.endswith(".cu"):
            assert re.findall(r"code=\[?sm_(\d+)", command) == served, name
            assert re.findall(r"code=\[?compute_(\d+)", command) == served[-1:], name
            assert "-Werror=all-warnings" in command
        assert re.search(r"-Wall[ ,]-Wextra.* (-Xcompiler=)?-Werror\b", command), name
    assert f'-DFASTERVIT_VERSION=\\"{__version__}\\"' in commands["common/version.cpp"]


def test_gpus_that_the_compiler_does_not_know(configure: Callable[..., Said], tmp_path: Path) -> None:
    said = configure("-DFASTERVIT_TRT_CUDA_ARCHITECTURES=90;999", WITHOUT_TENSORRT)
    assert said.code == 0, said.text
    assert re.search(r"Left out GPUs that \S+ does not know: 999", said.text)
    assert "sm_90" in compile_commands(tmp_path / "build")["window_attention/kernel.cu"]
    said = configure("-DFASTERVIT_TRT_CUDA_ARCHITECTURES=99;999", WITHOUT_TENSORRT)
    assert said.code != 0
    assert "knows none of the GPUs 99;999 (FASTERVIT_TRT_CUDA_ARCHITECTURES), but" in said.text


# What it makes.


def test_libraries_are_of_this_version(libraries: dict[Kind, Path]) -> None:
    for kind, path in libraries.items():
        load(path, kind)  # refuses others


def test_the_library_is_built_where_it_is_to_run(with_plugins: Path, tmp_path: Path) -> None:
    """As an installation does it, from what a bundle has; here it goes on from a build that is there."""
    output, told = tmp_path / "lib" / "libfastervit_plugins.so", list[str]()
    headers = tensorrt_headers()
    assert headers is not None
    sources = with_plugins.with_name("sources")
    made = build_library(
        sources,
        output,
        architectures=ARCHITECTURE,
        tensorrt_root=headers.parent,
        build=with_plugins,
        show=told.append,
    )
    assert made == output
    load(output, "plugins")  # refuses another version
    assert output.read_bytes() == (with_plugins / "lib" / output.name).read_bytes()
    assert f"fastervit-trt {__version__}" in told
    assert "Built target fastervit_plugins" in told
    log = output.with_suffix(".log").read_text()
    assert f"cmake -S {sources} -B {with_plugins}" in log
    assert {path.name for path in output.parent.iterdir()} == {output.name, "libfastervit_plugins.log"}


def test_only_the_interface_leaves_the_libraries(libraries: dict[Kind, Path]) -> None:
    c_interface = {f"fastervit_{name}" for name in (*SIGNATURES, "interface", "version")}
    for kind, path in libraries.items():
        lines = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        exported = {line.split()[-1] for line in lines.splitlines()}
        assert exported == c_interface | ({"getCreators", "setLoggerFinder"} if kind == "plugins" else set())


def test_libraries_need_neither_cuda_nor_tensorrt(libraries: dict[Kind, Path]) -> None:
    for path in libraries.values():
        text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"NEEDED.*\[([\w+-]+)\.so", text)
        assert needed
        assert set(needed) <= {
            "libstdc++",
            "libm",
            "libgcc_s",
            "libc",
            "libdl",
            "libpthread",
            "librt",
            "ld-linux-x86-64",
        }


def test_the_plugin_library_stays_once_it_is_loaded(with_plugins: Path) -> None:
    """TensorRT may hold its objects for longer than the one who opened it."""
    library = with_plugins / "lib" / "libfastervit_plugins.so"
    code = f"""
import _ctypes, ctypes, pathlib
library = ctypes.CDLL({str(library)!r})
_ctypes.dlclose(library._handle)
assert {library.name!r} in pathlib.Path("/proc/self/maps").read_text()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_driver_finds_every_plugin(with_plugins: Path) -> None:
    """Its own calls of the CUDA runtime need no GPU until something runs."""
    program, library = (
        with_plugins / "bin" / "fastervit-plugin-driver",
        with_plugins / "lib" / "libfastervit_plugins.so",
    )
    done = subprocess.run([program, library], capture_output=True, text=True, check=True)
    assert {creator["name"] for creator in json.loads(done.stdout)} == {operator.onnx_name for operator in OPERATORS}


def test_the_runner_starts_without_tensorrt_and_without_a_gpu(with_plugins: Path) -> None:
    done = subprocess.run(
        [with_plugins / "bin" / "fastervit-runner", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fastervit-runner ENGINE IMAGES")


def test_installed_headers_are_plain_c(built: Path, tmp_path: Path) -> None:
    done = cmake("--install", built, "--prefix", tmp_path)
    assert done.code == 0, done.text
    installed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    expected = {f"include/fastervit/{path.relative_to(CSRC)}" for path in CSRC.glob("*/kernel.h")}
    headers = {name for name in installed if name.startswith("include/")}
    assert headers == {*expected, "include/fastervit/common/types.h"}
    plugins = PROGRAMS | {"libfastervit_plugins.so"} if tensorrt_headers() else set()
    assert {Path(name).name for name in installed - headers} == {"libfastervit_kernels.so", *plugins}

    program = tmp_path / "program.c"
    includes = "".join(f'#include "{tmp_path / name}"\n' for name in sorted(headers))
    program.write_text(f"{includes}int main(void) {{ return fastervit_interface(); }}\n")
    subprocess.run(
        ["cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", program], check=True
    )


def test_the_version_is_that_of_the_package(built: Path) -> None:
    strings = (built / "lib" / "libfastervit_kernels.so").read_bytes()
    assert b"\0" + __version__.encode() + b"\0" in strings
