"""Runtimes and libraries that are broken, missing or for another GPU; a scripted NVML."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from fastervit_trt import __version__
from fastervit_trt.deploy.doctor.runtimes import (
    check_onnxruntime,
    check_plugins,
    check_pycuda,
    check_tensorrt,
    check_tensorrt_rtx,
)
from fastervit_trt.deploy.targets import Here
from fastervit_trt.plugins.library import INTERFACE, VARIABLE
from tests.conftest import TESTS
from tests.deploy.targets.machines import container, nvidia_smi

L4 = Here(platform="linux-x86_64", gpu="NVIDIA L4", capability="8.9", driver="580.65.06")
ABORTS = "#include <stdlib.h>\n__attribute__((constructor)) static void end(void) { abort(); }\n"
LIBRARY = """
int fastervit_interface(void) { return %d; }
const char* fastervit_version(void) { return "%s"; }
void getCreators(void) {}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A module that processes of this test find before any real one."""

    def make(name: str, content: str) -> None:
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(content)

    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}{os.pathsep}{before}")
    return make


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A library of C, with ``more`` at its end, that is the plugin library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler")

    def make(source: str, more: bytes = b"") -> Path:
        (tmp_path / "library.c").write_text(source)
        path = tmp_path / "library.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", tmp_path / "library.c", "-o", path], check=True)
        path.write_bytes(path.read_bytes() + more)
        monkeypatch.setenv(VARIABLE, str(path))
        return path

    return make


def with_versions(**versions: str) -> Here:
    return Here(**{**vars(L4), "versions": {name.replace("_", "-"): version for name, version in versions.items()}})


def test_a_library_that_ends_its_process_is_a_finding(package: Callable[[str, str], None]) -> None:
    package("tensorrt", "import os\nos.abort()\n")
    (found,) = check_tensorrt(with_versions(tensorrt="10.3.0"))
    assert (found.state, found.concerns) == ("problem", ("tensorrt",))
    assert found.text == "TensorRT 10.3.0 is installed and does not load: it ended its process with SIGABRT"
    assert found.advice == "pip install --force-reinstall tensorrt==10.3.0"


def test_a_library_that_lacks_another_says_which(package: Callable[[str, str], None]) -> None:
    package("tensorrt", 'raise ImportError("libnvinfer.so.10: cannot open shared object file")\n')
    (found,) = check_tensorrt(with_versions(tensorrt="10.3.0"))
    assert found.text.endswith("does not load: ImportError: libnvinfer.so.10: cannot open shared object file")


def test_what_loads_says_its_version(package: Callable[[str, str], None]) -> None:
    package("tensorrt", '__version__ = "10.16.2.10"\n')
    (found,) = check_tensorrt(with_versions(tensorrt="10.16.2.10"))
    assert (found.state, found.text) == ("ok", "10.16.2.10")
    package("pycuda", 'VERSION_TEXT = "2026.1"\n')
    (old,) = check_tensorrt(with_versions(tensorrt="8.6.1"))
    assert (old.state, "too old" in old.text) == ("problem", True)


def test_onnxruntime_without_the_gpu_and_broken(package: Callable[[str, str], None]) -> None:
    content = '__version__ = "1.22.0"\ndef get_available_providers():\n    return ["CPUExecutionProvider"]\n'
    package("onnxruntime", content)
    works, blind = check_onnxruntime(with_versions(onnxruntime="1.22.0"))
    assert (works.state, works.text) == ("ok", "1.22.0, providers CPU")
    assert (blind.state, blind.advice) == ("note", "pip uninstall onnxruntime && pip install onnxruntime-gpu")
    (missing,) = check_onnxruntime(L4)
    assert (missing.state, missing.advice) == ("note", "pip install onnxruntime")


def test_the_real_tensorrt_rtx_loads() -> None:
    pytest.importorskip("tensorrt_rtx")
    version = Here.detect().versions["tensorrt-rtx"]
    (found,) = check_tensorrt_rtx(with_versions(tensorrt_rtx=version))
    assert (found.state, found.text.split()[0]) == ("ok", version)


def test_pycuda_matters_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)  # as where it is missing
    for here, state in ((L4, "problem"), (Here(platform="linux-x86_64"), "note")):
        (found,) = check_pycuda(here)
        assert found.state == state


def test_a_plugin_library_for_another_gpu(compiled: Callable[..., Path]) -> None:
    source = LIBRARY % (INTERFACE, __version__)
    compiled(source, container((2, 80), (2, 87)) + container((2, 80), (2, 87), (2, 90)))
    for capability, state in (("8.0", "ok"), ("8.9", "ok"), ("8.7", "ok"), ("9.0", "problem"), ("11.0", "problem")):
        (found,) = check_plugins(Here(**{**vars(L4), "capability": capability}))
        assert found.state == state, found
    assert "but for sm80, sm87" in found.text
    assert "-DFASTERVIT_TRT_CUDA_ARCHITECTURES=110" in found.advice
    compiled(source, container((2, 90), (1, 90)))
    (later,) = check_plugins(Here(**{**vars(L4), "capability": "12.1"}))
    assert later.state == "ok"  # the driver compiles PTX for it


def test_a_plugin_library_that_is_missing_stale_or_broken(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(LIBRARY % (INTERFACE, "0.0.1"))
    (stale,) = check_plugins(L4)
    assert (stale.state, "is of version 0.0.1" in stale.text) == ("problem", True)
    compiled(ABORTS)
    (broken,) = check_plugins(L4)
    assert (broken.state, broken.text) == ("problem", "it ended its process with SIGABRT")
    monkeypatch.setenv(VARIABLE, "/nowhere/library.so")
    (missing,) = check_plugins(L4)
    assert (missing.state, "Plugin library not found" in missing.text) == ("note", True)


NVML = """
import dataclasses, json, sys
from fastervit_trt.deploy.doctor.gpu import check_clocks, check_gpu
from fastervit_trt.deploy.targets import Here
here = Here(platform="linux-x86_64", gpu="NVIDIA L4", capability="8.9", driver="580.65.06")
print(json.dumps([dataclasses.asdict(found) for found in (*check_gpu(here), *check_clocks(here))]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no scripted driver")
def test_nvml_says_who_is_on_the_gpu_that_cuda_means_and_what_slows_it(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for a scripted driver")
    pytest.importorskip("pynvml")
    source = TESTS / "benchmarks" / "telemetry" / "scripted_driver.c"
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):
        subprocess.run([compiler, "-shared", "-fPIC", "-w", source, "-o", tmp_path / name], check=True)
    (tmp_path / "script").write_text(
        f"1.pid0 4000000\n1.memory0 {900 << 20}\n1.reasons {0x40 | 0x4}\n0.reasons 0\n1.sm_clock 1500\n"
    )
    answers = {"memory.total": "23034", "memory.used": "900", "power.limit": "72", "power.default_limit": "72"}
    nvidia_smi(tmp_path / "bin", answers, ("0000:65:00.0",))  # CUDA's first GPU, NVML's second
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "SCRIPTED_DRIVER": str(tmp_path / "script"),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run([sys.executable, "-c", NVML], capture_output=True, text=True, env=environment, check=True)
    findings = {found["text"]: found for found in json.loads(done.stdout)}
    assert any("other processes are on it: 4000000 (900 MiB)" in text for text in findings)
    slowed = findings["it is slowed right now: hardware thermal"]
    assert (slowed["state"], slowed["concerns"]) == ("problem", ["gpu"])
    assert findings["22134 of 23034 MiB are free"]["state"] == "ok"
    assert asdict(L4)["gpu"] in done.stdout
