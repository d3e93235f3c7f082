"""What the doctor says of whole machines – this one, Jetsons, a server – and which of it a target minds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.deploy.doctor import Finding, examine, for_target, problems_for
from fastervit_trt.deploy.targets import TARGETS, Here, get_target
from fastervit_trt.engines.keys import KEYS_VARIABLE
from fastervit_trt.host import CACHE_VARIABLE
from fastervit_trt.plugins.library import VARIABLE
from tests.deploy.targets.machines import AGX_ORIN, SERVER, THOR, nvidia_smi, tool, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tools are scripts")
Examined = Callable[..., list[Finding]]
# Without root's rights, as on a new board: https://docs.nvidia.com/jetson/archives/r36.3/DeveloperGuide/index.html
NVPMODEL = '#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: {}\\n{}\\n"\n'
JETSON_CLOCKS = """#!/bin/sh
[ "$1" = --show ] && echo "SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=714000000"
"""
ARM = "linux-aarch64"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools, cache, keys and plugins of the test alone; no PyCUDA, which would see a real GPU."""
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path / "keys"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no-library.so"))


@pytest.fixture
def here(tmp_path: Path) -> Callable[..., Here]:
    """A machine of these files; runtimes only as said, so that none is loaded."""

    def make(files: Mapping[str, str], platform: str = ARM, versions: Mapping[str, str] | None = None) -> Here:
        found = Here.detect(write(tmp_path / "root", files))
        return replace(found, platform=platform, versions=versions or {})

    return make


def said(findings: list[Finding], area: str, words: str = "") -> Finding:
    """The one finding of ``area`` with ``words`` in it."""
    (found,) = [one for one in findings if one.area == area and words in one.text]
    return found


def test_this_machine_is_looked_at_without_an_error() -> None:
    findings = examine(Here.detect())
    areas = {found.area for found in findings}
    assert areas >= {"system", "python", "driver", "TensorRT", "TensorRT-RTX", "ONNX Runtime", "disk", "cache", "keys"}
    assert not [found for found in findings if "cannot be looked at" in found.text]
    assert all("\n" not in found.text and found.text for found in findings)
    assert all(found.advice for found in findings if found.state == "problem")
    runtime = said(findings, "ONNX Runtime", "providers")
    assert runtime.state == "ok" and "CPU" in runtime.text
    assert problems_for(get_target("cpu"), examine(Here.detect(), get_target("cpu"))) == []


def test_this_machine_is_not_another_and_the_doctor_says_why() -> None:
    here = Here.detect()
    other = next(row for row in TARGETS.values() if row.capability and here.platform not in row.platforms)
    why = [found for found in problems_for(other, examine(here, other)) if found.area == "target"]
    assert why and all(found.advice for found in why)
    assert any(f"this is {here.platform}" in found.text for found in why)


def test_an_agx_orin_with_jetpack_6(here: Callable[..., Here], tmp_path: Path) -> None:
    tool(tmp_path / "bin", "nvpmodel", NVPMODEL.format("MODE_30W", 2))
    findings = examine(here(AGX_ORIN), get_target("jetson-orin-jp6"))
    board = said(findings, "Jetson", "Jetson Linux")
    assert board.state == "ok"
    assert board.text == "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4.4, JetPack 6.2.1"
    mode = said(findings, "Jetson", "power mode")
    assert (mode.state, "MODE_30W" in mode.text, "sudo nvpmodel -m" in mode.advice) == ("note", True, True)
    clock = said(findings, "Jetson", "GPU clock")
    assert clock.text == "GPU clock 306 MHz, free from 306 to 1300"
    assert clock.advice.endswith("sudo jetson_clocks")
    assert said(findings, "Jetson", "fan").text == "fan at 20%"
    assert said(findings, "Jetson", "hottest").text == "hottest is gpu-thermal with 52 °C"  # its fan's trip is no limit
    assert said(findings, "Jetson", "of memory").text.startswith("56640 of 62841 MiB")
    assert "only 5236 MiB compressed" in said(findings, "Jetson", "swap").text
    assert said(findings, "CUDA").text == "runtime 12.6.11 (toolkit, /usr/local/cuda), 12.6.68-1 (cuda-cudart-12-6)"
    sight = said(findings, "TensorRT")
    assert (sight.state, "10.3.0.30 is on the system" in sight.text) == ("problem", True)
    assert "--system-site-packages" in sight.advice
    assert said(findings, "PyCUDA").advice == "pip install pycuda"
    assert {found.area for found in problems_for(get_target("jetson-orin-jp6"), findings)} == {
        "PyCUDA",
        "TensorRT",
        "target",
    }


def test_a_thor_that_is_locked_and_has_a_swap_file(here: Callable[..., Here], tmp_path: Path) -> None:
    tool(tmp_path / "bin", "nvpmodel", NVPMODEL.format("MAXN", 0))
    findings = examine(here(THOR))
    assert said(findings, "Jetson", "power mode").state == "ok"
    assert said(findings, "Jetson", "GPU clock").text == "GPU clock 1575 MHz, locked"
    assert said(findings, "Jetson", "swap").text == "swap: 8191 MiB on disk"
    assert "sudo apt install nvidia-jetpack" in said(findings, "Jetson", "SDK").advice
    assert said(findings, "target").text == "this machine is jetson-thor"
    assert "Thor has none" in said(findings, "Jetson", "DLA").text


def test_what_is_wrong_with_a_jetson(here: Callable[..., Here], tmp_path: Path) -> None:
    tool(tmp_path / "bin", "jetson_clocks", JETSON_CLOCKS)
    files = {name: text for name, text in AGX_ORIN.items() if "devfreq" not in name}
    files |= {
        "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1",
        "sys/class/thermal/thermal_zone1/temp": "99500",
        "proc/meminfo": "MemTotal:        3800000 kB\nMemAvailable:     700000 kB\n",
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    }
    findings = examine(here(files))
    assert said(findings, "Jetson", "GPU clock").text.startswith("GPU clock 714 MHz")  # of the tool: there are no files
    assert said(findings, "Jetson", "its power mode is not said").state == "note"
    problems = [found.text for found in problems_for(get_target("jetson-orin-jp6"), findings)]
    assert any("Jetson Linux 35.4.1" in text and "of no target" in text for text in problems)
    assert any(text == "heat slows it: gpu-thermal 100 °C" for text in problems)
    assert any("too little to build" in text for text in problems)
    swap = said(findings, "Jetson", "swap")
    assert "none" in swap.text and swap.advice.startswith("sudo fallocate")
    assert not any(found.area == "Jetson" for found in problems_for(get_target("cpu"), findings))


def test_a_jetson_that_says_nothing_is_no_error(here: Callable[..., Here]) -> None:
    findings = examine(here({"proc/device-tree/model": "NVIDIA Jetson AGX Orin"}))
    assert not [found for found in findings if "cannot be looked at" in found.text]
    assert {found.state for found in findings if found.area == "Jetson"} == {"note"}


L4 = {
    "name": "NVIDIA L4",
    "compute_cap": "8.9",
    "driver_version": "535.183.01",
    "memory.total": "23034",
    "memory.used": "22000",
    "ecc.mode.current": "Enabled",
    "mig.mode.current": "[N/A]",
    "persistence_mode": "Disabled",
    "power.limit": "60.00",
    "power.default_limit": "72.00",
    "clocks.current.sm": "210",
    "clocks.max.sm": "2040",
    "utilization.gpu": "0",
}


@pytest.fixture
def for_cuda_13(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip leaves it: what TensorRT's packages say of themselves."""
    described = tmp_path / "site" / "tensorrt_cu13_libs-11.1.0.106.dist-info"
    write(described, {"METADATA": "Metadata-Version: 2.1\nName: tensorrt-cu13-libs\nVersion: 11.1.0.106\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("for_cuda_13")
def test_a_server_with_an_old_driver_and_a_full_gpu(here: Callable[..., Here], tmp_path: Path) -> None:
    nvidia_smi(tmp_path / "bin", L4)
    machine = here(SERVER, "linux-x86_64", {"tensorrt": "11.1.0.106"})
    findings = examine(machine, get_target("l4"))
    driver = said(findings, "driver")
    assert driver.text == "driver 535.183.01 is too old for TensorRT 11.1.0.106 for CUDA 13"
    assert "nvidia-driver-580" in driver.advice
    full = said(findings, "GPU", "are free")
    assert (full.state, full.text) == ("problem", "1034 of 23034 MiB are free, little to build in")
    assert said(findings, "GPU", "persistence").advice == "sudo nvidia-smi -pm 1"
    assert said(findings, "GPU", "ECC").text == "ECC is enabled"
    assert not [found for found in findings if "MIG" in found.text]
    assert said(findings, "clocks", "power").advice == "sudo nvidia-smi -pl 72"
    idle = said(findings, "clocks", "SM clock")
    assert (idle.state, idle.text) == ("ok", "SM clock 210 of 2040 MHz at 0 % load")
    assert said(findings, "target").text == "l4 runs here"
    assert {found.area for found in problems_for(get_target("l4"), findings)} == {
        "driver",
        "GPU",
        "PyCUDA",
        "TensorRT",  # is not really there
    }
    demoted = for_target(get_target("cpu"), findings)
    assert len(demoted) == len(findings)
    assert said(demoted, "driver").state == "note"


@pytest.mark.usefixtures("for_cuda_13")
def test_a_driver_that_is_new_enough_is_fine(here: Callable[..., Here], tmp_path: Path) -> None:
    nvidia_smi(tmp_path / "bin", {**L4, "driver_version": "580.65.06", "memory.used": "300"})
    findings = examine(here(SERVER, "linux-x86_64", {"tensorrt": "11.1.0.106"}))
    assert (said(findings, "driver").state, said(findings, "driver").text) == ("ok", "580.65.06")
    assert said(findings, "GPU", "are free").state == "ok"


def test_where_packages_do_not_say_their_cuda_the_oldest_is_taken(here: Callable[..., Here], tmp_path: Path) -> None:
    nvidia_smi(tmp_path / "bin", L4)
    assert said(examine(here(SERVER, "linux-x86_64", {"tensorrt": "10.3.0"})), "driver").state == "ok"
    nvidia_smi(tmp_path / "bin", {**L4, "driver_version": "525.60.13"})
    old = said(examine(here(SERVER, "linux-x86_64", {"tensorrt": "10.3.0"})), "driver")
    assert (old.state, "too old" in old.text, "535" in old.advice) == ("problem", True, True)


def test_mig_and_a_field_that_an_old_driver_does_not_know(here: Callable[..., Here], tmp_path: Path) -> None:
    answers = {**L4, "mig.mode.current": "Enabled"}
    del answers["persistence_mode"]
    nvidia_smi(tmp_path / "bin", answers)
    findings = examine(here(SERVER, "linux-x86_64"))
    assert said(findings, "GPU", "MIG").state == "note"
    assert said(findings, "GPU", "are free").state == "problem"  # the others were asked for one by one
    assert not [found for found in findings if "persistence" in found.text]


def test_a_busy_gpu_below_its_clock(here: Callable[..., Here], tmp_path: Path) -> None:
    nvidia_smi(tmp_path / "bin", {**L4, "utilization.gpu": "97", "clocks.current.sm": "1200"})
    clock = said(examine(here(SERVER, "linux-x86_64")), "clocks", "SM clock")
    assert (clock.state, "sudo nvidia-smi -lgc 2040" in clock.advice) == ("note", True)


def test_memory_that_the_driver_does_not_tell_of(here: Callable[..., Here], tmp_path: Path) -> None:
    # https://github.com/NVIDIA/k8s-device-plugin/issues/1482
    spark = {"name": "NVIDIA GB10", "compute_cap": "12.1", "driver_version": "580.95.05"}
    nvidia_smi(tmp_path / "bin", {**L4, **spark, "memory.total": "[N/A]", "memory.used": "[N/A]"})
    findings = examine(here(SERVER))
    assert said(findings, "GPU", "share").state == "note"
    assert said(findings, "target").text == "this machine is dgx-spark"


def test_a_kernel_s_driver_without_a_gpu_is_another_problem_than_none(here: Callable[..., Here]) -> None:
    hidden = said(examine(here(SERVER, "linux-x86_64")), "driver")
    assert "580.65.06" in hidden.text and "CUDA_VISIBLE_DEVICES" in hidden.advice
    none = said(examine(here({"proc/driver/nvidia/version": ""}, "linux-x86_64")), "driver")
    assert "no NVIDIA driver answers" in none.text


def test_containers(here: Callable[..., Here]) -> None:
    files = {**AGX_ORIN, ".dockerenv": ""}
    inside = said(examine(here(files)), "container", "GPU")
    assert inside.state == "ok"
    del files["dev/nvhost-gpu"]
    (here(files).root / "dev/nvhost-gpu").unlink()
    without = said(examine(here(files)), "container", "GPU")
    assert (without.state, "--runtime nvidia" in without.advice) == ("problem", True)


def test_a_container_is_known_by_its_control_group(here: Callable[..., Here]) -> None:
    group = {"proc/1/cgroup": "0::/system.slice/docker-5f2.scope\n"}
    server = said(examine(here(group, "linux-x86_64")), "container", "GPU")
    assert (server.state, "--gpus all" in server.advice) == ("problem", True)
    assert problems_for(get_target("cpu"), [server]) == []


def test_no_container_is_not_worth_a_word(here: Callable[..., Here]) -> None:
    assert not [found for found in examine(here({"proc/1/cgroup": "0::/init.scope\n"})) if found.area == "container"]


def test_folders_that_others_can_write_to_are_not_trusted(
    here: Callable[..., Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = here({})
    assert "will be made" in said(examine(machine), "keys").text
    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "cache" / "engines").mkdir(parents=True)
    (tmp_path / "cache" / "engines").chmod(0o777)
    findings = examine(machine)
    assert said(findings, "keys").text == f"'{tmp_path / 'keys'}', private"
    cache = said(findings, "cache")
    assert (cache.state, "can be written by other users" in cache.text) == ("problem", True)
    assert cache.advice.startswith("chmod go-w")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert said(examine(machine), "cache").advice.startswith(f"set {CACHE_VARIABLE}")


def test_what_nobody_thought_of_is_a_note_and_the_rest_is_still_said(here: Callable[..., Here]) -> None:
    strange = {**AGX_ORIN, "proc/meminfo": "MemAvailable:   58000000 kB\n"}  # free of how much?
    findings = examine(here(strange))
    assert said(findings, "Jetson", "cannot be looked at (KeyError: 'MemTotal')").state == "note"
    assert said(findings, "Jetson", "swap")
    assert said(findings, "Jetson", "Jetson Linux")
