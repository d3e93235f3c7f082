"""Which target a machine is, read from its files and tools, and what is said where it is none, or another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.deploy.targets import TARGETS, Here, detect_target, get_target, why_not_here
from fastervit_trt.engines.machine import platform_name
from fastervit_trt.errors import FasterViTError
from tests.deploy.targets.machines import AGX_ORIN, SERVER, THOR, nvidia_smi, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tools are scripts")
Machine = Callable[..., Here]
ARM, X86 = "linux-aarch64", "linux-x86_64"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine, as if it had these files, this GPU and these runtimes; PyCUDA would see the real one."""
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(
        files: Mapping[str, str], gpu: str = "", platform: str = X86, versions: Mapping[str, str] | None = None
    ) -> Here:
        if gpu:
            name, capability, driver = gpu.split("; ")
            nvidia_smi(tmp_path / "bin", {"name": name, "compute_cap": capability, "driver_version": driver})
        here = Here.detect(write(tmp_path / "root", files))
        return replace(here, platform=platform, versions=versions or {})

    return make


def test_a_jetson_agx_orin_with_jetpack_6(machine: Machine) -> None:
    # nvidia-smi of JetPack 6 says N/A of nearly everything: https://github.com/anduril/jetpack-nixos/pull/371
    here = machine(AGX_ORIN, "Orin (nvgpu); [N/A]; 540.4.0", ARM, {"tensorrt": "10.3.0"})
    assert (here.gpu, here.capability, here.driver) == ("Orin (nvgpu)", "8.7", "540.4.0")
    assert (here.board.model, here.board.release) == ("NVIDIA Jetson AGX Orin Developer Kit", "36.4.4")
    assert (here.jetpack, here.system_tensorrt) == ("6.2.1", "10.3.0.30")
    assert here.packages.keys() == {"nvidia-jetpack", "libnvinfer10", "cuda-cudart-12-6"}  # not what was removed
    assert here.memory_mib == 64349696 // 1024
    assert detect_target(here).name == "jetson-orin-jp6"
    assert why_not_here(get_target("jetson-orin-jp6"), here) == []


def test_a_jetson_without_nvidia_smi_says_its_chip(machine: Machine) -> None:
    orin = machine(AGX_ORIN, platform=ARM)
    assert (orin.gpu, orin.capability) == ("Orin", "8.7")
    assert detect_target(orin).name == "jetson-orin-jp6"
    newer = {**AGX_ORIN, "etc/nv_tegra_release": "# R39 (release), REVISION: 2.1, GCID: 1"}
    assert detect_target(machine(newer, platform=ARM)).name == "jetson-orin-jp7"
    assert detect_target(machine(THOR, platform=ARM)).name == "jetson-thor"


def test_a_jetson_in_a_container_is_told_by_its_tensorrt(machine: Machine) -> None:
    files = {name: text for name, text in AGX_ORIN.items() if not name.startswith(("etc/", "var/"))}
    here = machine(files, platform=ARM)
    assert detect_target(replace(here, versions={"tensorrt": "10.3.0"})).name == "jetson-orin-jp6"
    assert detect_target(replace(here, versions={"tensorrt": "10.16.2.10"})).name == "jetson-orin-jp7"
    system = {"libnvinfer10": "10.3.0.30-1+cuda12.5"}
    assert detect_target(replace(here, packages=system)).name == "jetson-orin-jp6"
    with pytest.raises(FasterViTError, match=r"without a sign of its JetPack.*jetson-orin-jp6 or jetson-orin-jp7"):
        detect_target(here)


def test_a_jetson_with_another_jetpack_is_told_which_there_are(machine: Machine) -> None:
    old = machine({**AGX_ORIN, "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1"}, platform=ARM)
    with pytest.raises(FasterViTError, match=r"Jetson Linux 35\.4\.1.*JetPack 6\.1.*jetson-orin-jp7.*update it"):
        detect_target(old)
    (reason,) = [r for r in why_not_here(get_target("jetson-orin-jp6"), old) if "Jetson Linux" in r]
    assert reason.endswith("this is Jetson Linux 35.4.1: update to JetPack 6.1 and later 6.x")


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA A100-SXM4-80GB; 8.0", "a100"),
        ("NVIDIA A30; 8.0", "a30"),
        ("NVIDIA A10G; 8.6", "a10"),
        ("NVIDIA H200; 9.0", "h200"),
        ("NVIDIA GeForce RTX 3090; 8.6", "rtx-30"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition; 12.0", "rtx-50"),
    ],
)
def test_a_server_or_workstation(machine: Machine, gpu: str, name: str) -> None:
    assert detect_target(machine(SERVER, f"{gpu}; 580.65.06")).name == name


def test_no_gpu_is_the_cpu(machine: Machine) -> None:
    here = machine({}, versions={"onnxruntime": "1.31.1"})
    assert (here.gpu, here.capability, here.memory_mib) == (None, None, None)
    assert detect_target(here).name == "cpu"
    assert why_not_here(get_target("cpu"), here) == []
    with pytest.raises(FasterViTError, match="linux-riscv64 is no platform"):
        detect_target(replace(here, platform="linux-riscv64"))


@pytest.mark.parametrize(
    ("gpu", "platform", "nearest"),
    [
        ("NVIDIA L20; 8.9; 580.65.06", X86, "l4"),
        ("Tesla T4; 7.5; 580.65.06", X86, "a100"),
        ("NVIDIA B300; 10.3; 580.65.06", X86, "b200"),
        ("Xavier; 7.2; 35.4.1", ARM, "jetson-orin-jp6"),
        ("NVIDIA GH200 480GB; 9.0; 580.65.06", ARM, "h100"),
    ],
)
def test_an_unknown_gpu_is_named_with_the_nearest_target(
    machine: Machine, gpu: str, platform: str, nearest: str
) -> None:
    with pytest.raises(FasterViTError) as refusal:
        detect_target(machine({"proc/device-tree/model": "Jetson-AGX"} if "Xavier" in gpu else SERVER, gpu, platform))
    name, capability, _ = gpu.split("; ")
    line = str(refusal.value)
    assert f"{name} (compute capability {capability})" in line
    assert f"the nearest is {nearest} (" in line and "--target" in line


def test_every_reason_is_there_and_says_what_to_do(machine: Machine) -> None:
    server = machine(SERVER, "NVIDIA L4; 8.9; 580.65.06", versions={"tensorrt": "11.1.0.106"})
    assert why_not_here(get_target("l4"), server) == []
    reasons = why_not_here(get_target("jetson-orin-jp6"), server)
    assert [reason.split(",")[0].split(":")[0] for reason in reasons] == [
        "jetson-orin-jp6 is linux-aarch64",
        "jetson-orin-jp6 has compute capability 8.7",
        "jetson-orin-jp6 needs TensorRT 10.3 to before 10.8",
    ]
    assert reasons[2].endswith("this is 11.1.0.106: update to JetPack 6.1 and later 6.x, which brings it")
    (old,) = why_not_here(get_target("l4"), replace(server, versions={"tensorrt": "8.6.1"}))
    assert old.endswith("this is 8.6.1: pip install 'tensorrt>=10.3,<12'")
    (missing,) = why_not_here(get_target("rtx-40"), server)
    assert "needs TensorRT-RTX, which this Python does not have: pip install" in missing
    everything = {reason for row in TARGETS.values() for reason in why_not_here(row, machine({}))}
    assert all(": " in reason and "\n" not in reason for reason in everything)


def test_a_jetson_s_tensorrt_may_be_out_of_this_python_s_sight(machine: Machine) -> None:
    (reason,) = why_not_here(get_target("jetson-orin-jp6"), machine(AGX_ORIN, platform=ARM))
    assert "the system has 10.3.0.30" in reason
    assert "--system-site-packages" in reason
    (gap,) = why_not_here(get_target("jetson-thor"), machine(THOR, platform=ARM, versions={"tensorrt": "11.2.1"}))
    assert "not 11.0 to before 11.4.1, this is 11.2.1: update to JetPack 7.0" in gap


def test_two_jetpacks_of_one_board_are_told_apart(machine: Machine) -> None:
    here = machine(AGX_ORIN, platform=ARM, versions={"tensorrt": "10.3.0"})
    reasons = why_not_here(get_target("jetson-orin-jp7"), here)
    assert reasons[0] == (
        "jetson-orin-jp7 is JetPack 7.2 and later, this is Jetson Linux 36.4.4: pack the export with --target "
        "jetson-orin-jp6"
    )


def test_this_machine_is_seen_as_it_is() -> None:
    here = Here.detect()
    assert here.platform == platform_name()
    if sys.platform == "linux":
        assert here.memory_mib is not None and here.memory_mib > 256
    assert "onnxruntime" in here.versions


def test_targets_need_no_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys; from fastervit_trt.deploy.targets import Here, detect_target; "
        "from fastervit_trt.deploy.doctor import examine; Here.detect(); "
        "heavy = {'torch', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'onnxruntime', 'fastapi', 'tritonclient'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "set()"
