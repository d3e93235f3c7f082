"""What this machine has for an engine: installed versions, and the GPU that the driver tells of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastervit_trt.engines.machine import Machine, installed_version, platform_name


def test_installed_versions_are_told_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    packages = {"tensorrt-cu12": "10.16.1.11", "tensorrt-rtx": "1.7.1.116"}

    def version(name: str) -> str:
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_version("tensorrt") == "10.16.1.11"
    assert installed_version("tensorrt-rtx") == "1.7.1.116"
    packages["tensorrt"] = "11.4.0.106"
    assert installed_version("tensorrt") == "11.4.0.106"
    assert installed_version("openvino") is None


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that knows two GPUs and notes how it was asked."""
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> '{tmp_path}/asked'
case "$2" in
0) echo "NVIDIA GeForce RTX 4090, 8.9, 580.65.06" ;;
1|GPU-1234) echo "Quadro RTX 8000, Max-Q, 7.5, 580.65.06" ;;
*) echo "Unable to determine the device handle, GPU is lost, reboot"; exit 15 ;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "asked"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("visible", "device", "gpu"),
    [
        (None, 0, ("NVIDIA GeForce RTX 4090", "8.9", "580.65.06")),
        (None, 1, ("Quadro RTX 8000, Max-Q", "7.5", "580.65.06")),
        ("1", 0, ("Quadro RTX 8000, Max-Q", "7.5", "580.65.06")),
        ("1,0", 1, ("NVIDIA GeForce RTX 4090", "8.9", "580.65.06")),
        ("GPU-1234", 0, ("Quadro RTX 8000, Max-Q", "7.5", "580.65.06")),
        (None, 5, (None, None, None)),
        ("0", 1, (None, None, None)),
        ("", 0, (None, None, None)),
    ],
)
def test_the_driver_is_asked_for_the_gpu(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, device: int, gpu: tuple[str | None, ...]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = Machine.detect("tensorrt-rtx", device)
    assert (machine.gpu, machine.capability, machine.driver) == gpu
    assert machine.version == installed_version("tensorrt-rtx") and machine.platform == platform_name()


def test_a_machine_without_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert Machine.detect("tensorrt").gpu is None


@pytest.mark.gpu
def test_the_gpu_here_is_seen() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    machine = Machine.detect("tensorrt")
    major, minor = torch.cuda.get_device_capability(0)
    assert (machine.gpu, machine.capability) == (torch.cuda.get_device_name(0), f"{major}.{minor}")
    assert machine.driver
