"""The wheel holds what the checkout holds, nothing leaks into the global namespace, and importing is light."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Finished

FOLDERS = {
    "src/fastervit_trt": "",
    **{name: f"{name}/" for name in ("models", "export", "plugins", "engines", "benchmarks", "deploy")},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    shutil.rmtree(ROOT / "build" / "python", ignore_errors=True)  # setuptools would pack what it staged there before
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, ONNX Runtime and nothing of this one: a target has no PyTorch."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(environment, with_pip=True, symlinks=os.name == "posix")
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    constraints = ["-c", str(ROOT / "requirements" / "constraints.txt")]
    pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-compile", *constraints]
    done = subprocess.run([*pip, str(wheel), "onnxruntime"], capture_output=True, text=True)
    if "NewConnectionError" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return programs


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
    names = ["models", "export", "plugins", "engines", "benchmarks", "deploy"]
    code = f"import importlib.util as u, fastervit_trt; print([n for n in {names} if u.find_spec(n)])"
    assert run_python(code, tmp_path) == "[]"


def test_importing_needs_neither_torch_nor_cuda_nor_tensorrt(tmp_path: Path) -> None:
    code = "import sys, fastervit_trt; print({'torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime'} & set(sys.modules))"
    assert run_python(code, tmp_path) == "set()"


def test_a_bundle_is_installed_and_verified_without_pytorch(
    clean: Path, exports: Path, command: Callable[..., Finished], tmp_path: Path
) -> None:
    bundle = tmp_path / "digits.tar.zst"
    assert command("fastervit-deploy", "pack", exports / "fp32", "--target", "cpu", "--output", bundle).code == 0
    key = command("fastervit-deploy", "key").out.splitlines()[0]
    variables = {"FASTERVIT_TRT_KEYS": str(tmp_path / "keys"), "FASTERVIT_TRT_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = str(clean / arguments[0])
        return subprocess.run(
            [program, *arguments[1:]], cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True
        )

    assert run("python", "-c", "import torch").returncode == 1
    refused = run("fastervit-deploy", "install", str(bundle), "--output", "there")
    assert refused.returncode == 2
    assert "fastervit-deploy trust" in refused.stderr.splitlines()[-1]
    assert run("fastervit-deploy", "trust", key).returncode == 0
    done = run("fastervit-deploy", "install", str(bundle), "--output", "there", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    assert "golden outputs: within the budget" in done.stdout
    assert "precision: proven" in done.stdout
    assert json.loads((tmp_path / "there" / "receipt.json").read_text())["bundle"]["signer"]["signed"] == "trusted key"
    assert run("fastervit-deploy", "verify", "there", "--seconds", "0.2").returncode == 0
    assert run("fastervit-deploy", "doctor", "--target", "cpu").returncode == 0
    repository = run("fastervit-deploy", "triton", "there", "--repository", "models")
    assert repository.returncode == 0, repository.stderr
    engines = run("fastervit-engine", "verify", "there/export")
    assert engines.stderr.splitlines()[-1].startswith("error: 'there/export' has no engines; build one with")
    export = run("fastervit-export", "--model", "faster_vit_0_224", "--random-init")
    assert export.returncode == 2
    assert export.stderr == (
        "error: fastervit-export needs torch, which is not installed: pip install 'fastervit-trt[export]'\n"
    )


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="nothing to keep out")
def test_tensorrt_is_never_loaded_into_the_callers_process(tmp_path: Path) -> None:
    code = "import sys, fastervit_trt.workflow, fastervit_trt.benchmarks.bench; print('tensorrt_rtx' in sys.modules)"
    assert run_python(code, tmp_path) == "False"


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
