"""The wheel holds what the checkout holds, nothing leaks into the global namespace, and importing is light."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = {
    "src/fastervit_trt": "",
    **{name: f"{name}/" for name in ("models", "export", "plugins", "engines", "benchmarks")},
}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    target = tmp_path_factory.mktemp("wheel")
    shutil.rmtree(ROOT / "build" / "python", ignore_errors=True)  # setuptools would pack what it staged there before
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_tracked_file_of_the_package(wheel_names: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = set()
    for line in tracked.splitlines():
        folder = next(f for f in FOLDERS if line.startswith(f"{f}/"))
        if not line.endswith(".md") and not line.startswith("benchmarks/results/"):
            expected.add(f"fastervit_trt/{FOLDERS[folder]}{line.removeprefix(f'{folder}/')}")
    inside = {name for name in wheel_names if name.startswith("fastervit_trt/")}
    assert inside == expected


def test_the_wheel_brings_its_licence_and_nothing_else_at_the_top(wheel_names: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel_names} == {"fastervit_trt"}
    assert {Path(n).name for n in wheel_names if "/licenses/" in n} == {"LICENSE", "NOTICE"}


def test_root_folders_do_not_leak(tmp_path: Path) -> None:
    names = ["models", "export", "plugins", "engines", "benchmarks"]
    code = f"import importlib.util as u, fastervit_trt; print([n for n in {names} if u.find_spec(n)])"
    assert run_python(code, tmp_path) == "[]"


def test_importing_needs_neither_torch_nor_cuda_nor_tensorrt(tmp_path: Path) -> None:
    code = "import sys, fastervit_trt; print({'torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime'} & set(sys.modules))"
    assert run_python(code, tmp_path) == "set()"


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="nothing to keep out")
def test_tensorrt_is_never_loaded_into_the_callers_process(tmp_path: Path) -> None:
    code = "import sys, fastervit_trt.workflow, fastervit_trt.benchmarks.bench; print('tensorrt_rtx' in sys.modules)"
    assert run_python(code, tmp_path) == "False"


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
