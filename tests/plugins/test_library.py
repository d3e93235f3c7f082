"""Which library is found, and which are refused before a kernel of theirs runs. The libraries are compiled here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastervit_trt import __version__
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins import library
from fastervit_trt.plugins.library import INTERFACE, VARIABLE, find_library, load

BUILD = "cmake --preset release && cmake --build --preset release"
VERSION = f"""
int fastervit_interface(void) {{ return {INTERFACE}; }}
const char* fastervit_version(void) {{ return "{__version__}"; }}
"""
CREATORS = "void* getCreators(int* count) { return *count = 0, (void*)0; }"


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[str], Path]:
    """C source → shared library."""

    def compile_c(source: str, name: str = "library.so") -> Path:
        (tmp_path / "source.c").write_text(source)
        command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / name), str(tmp_path / "source.c")]
        subprocess.run(command, check=True)
        return tmp_path / name

    return compile_c


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which nothing has been built; library.py lies in its plugins."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "plugins" / "library.py"))
    (tmp_path / "CMakePresets.json").touch()
    return tmp_path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def refusal(path: Path, *arguments: str) -> str:
    with pytest.raises(FasterViTError) as error:
        load(path, *arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_variable_goes_before_everything(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(checkout / "build" / "lib" / "libfastervit_plugins.so")
    monkeypatch.setenv(VARIABLE, str(put(checkout / "elsewhere.so")))
    assert find_library("plugins") == find_library("kernels") == checkout / "elsewhere.so"


def test_a_variable_that_names_no_file_is_not_passed_over(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(checkout / "build" / "lib" / "libfastervit_plugins.so")
    monkeypatch.setenv(VARIABLE, str(checkout / "build" / "lib"))  # a folder
    with pytest.raises(FasterViTError) as error:
        find_library("plugins")
    assert str(error.value) == (
        f"Plugin library not found. Looked in: {checkout / 'build' / 'lib'}. Build it with `{BUILD}` or set {VARIABLE}."
    )


def test_the_checkout_goes_before_the_package_and_plugins_before_kernels(checkout: Path) -> None:
    folders = [checkout / "plugins" / "lib", checkout / "build" / "lib"]  # the last one wins
    for folder in folders:
        kernels = put(folder / "libfastervit_kernels.so")
        assert find_library("kernels") == kernels
        plugins = put(folder / "libfastervit_plugins.so")
        assert find_library("kernels") == find_library("plugins") == plugins


def test_kernels_alone_are_no_plugins(checkout: Path) -> None:
    put(checkout / "build" / "lib" / "libfastervit_kernels.so")
    with pytest.raises(FasterViTError) as error:
        find_library("plugins")
    folders = [checkout / "build" / "lib", checkout / "plugins" / "lib"]
    places = ", ".join(str(folder / "libfastervit_plugins.so") for folder in folders)
    assert str(error.value) == (
        f"Plugin library not found. Looked in: {places}. Build it with `{BUILD}` or set {VARIABLE}."
    )


def test_an_installed_package_looks_in_itself_only(checkout: Path) -> None:
    (checkout / "CMakePresets.json").unlink()
    put(checkout / "build" / "lib" / "libfastervit_plugins.so")  # of whatever surrounds the package
    with pytest.raises(FasterViTError, match="not found") as error:
        find_library("kernels")
    assert "build/lib" not in str(error.value)
    path = put(checkout / "plugins" / "lib" / "libfastervit_kernels.so")
    assert find_library("kernels") == path


def test_a_library_of_this_version_is_loaded(compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiled(VERSION + CREATORS)
    assert load(path).fastervit_interface() == INTERFACE
    assert load(path, "plugins").fastervit_interface() == INTERFACE
    monkeypatch.chdir(path.parent)
    assert load(Path(path.name)).fastervit_interface() == INTERFACE


def test_another_interface_is_refused(compiled: Callable[..., Path]) -> None:
    path = compiled(VERSION.replace(f"return {INTERFACE};", "return 7;"))
    message = refusal(path)
    assert message.startswith(f"{path} has interface 7, version {__version__} needs {INTERFACE}.")
    assert BUILD in message
    assert VARIABLE in message


@pytest.mark.parametrize(("version", "spelled"), [('"0.0.9"', "0.0.9"), ('""', ""), ("(char*)0", "")])
def test_another_version_is_refused(compiled: Callable[..., Path], version: str, spelled: str) -> None:
    path = compiled(f"""
        int fastervit_interface(void) {{ return {INTERFACE}; }}
        const char* fastervit_version(void) {{ return {version}; }}
    """)
    message = refusal(path)
    assert message.startswith(f"{path} is of version {spelled}, fastervit-trt is {__version__}.")
    assert BUILD in message
    assert VARIABLE in message


def test_a_library_of_something_else_is_refused(compiled: Callable[..., Path]) -> None:
    path = compiled("int nothing(void) { return 0; }")
    assert refusal(path).startswith(f"{path} is no library of FasterViT kernels: it lacks fastervit_interface.")
    path = compiled(VERSION, "kernels.so")
    assert refusal(path, "plugins").startswith(f"{path} is no library of FasterViT plugins: it lacks getCreators.")


@pytest.mark.parametrize("content", ["not a library\n", "", None], ids=["text", "empty", "missing"])
def test_what_is_no_library_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    if content is not None:
        path.write_text(content)
    message = refusal(path)
    assert message.startswith(f"{path} cannot be loaded: ")
    assert BUILD in message


def test_importing_needs_neither_torch_nor_a_library(tmp_path: Path) -> None:
    code = f"import os; os.environ['{VARIABLE}'] = 'nowhere'; import sys, fastervit_trt.plugins.library as l; "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
