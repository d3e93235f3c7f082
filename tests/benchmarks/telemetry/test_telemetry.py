"""What a machine does while it is timed: nvidia-ml-py on a scripted driver, a Jetson's files, real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastervit_trt.benchmarks.backends.runner import DeviceFacts
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.telemetry import Telemetry
from fastervit_trt.benchmarks.telemetry.host_load import CpuTimes, affinity, affinity_text
from fastervit_trt.benchmarks.telemetry.jetson import Jetson
from fastervit_trt.benchmarks.telemetry.throttle import doubtful, throttle_reasons

CPU, GPU = DeviceFacts("cpu", "a processor"), DeviceFacts("gpu", "a GPU", 0)
SOURCE = Path(__file__).parent / "scripted_driver.c"
WATCH = """
import json, os, subprocess, sys, time
from pathlib import Path
from fastervit_trt.benchmarks.backends.runner import DeviceFacts
from fastervit_trt.benchmarks.telemetry import Telemetry

script = Path(os.environ["SCRIPTED_DRIVER"])
said = {}

def says(**values):
    said.update({name.replace("_of_", ".").lstrip("gpu"): value for name, value in values.items()})
    new = script.with_suffix(".new")
    new.write_text("".join(f"{name} {value}\\n" for name, value in said.items() if value is not None))
    new.replace(script)

says(gpu0_of_sm_clock=1, gpu1_of_sm_clock=1980)
telemetry = Telemetry(DeviceFacts("gpu", "GPU", 0), interval_s=0.01)

def watch(seconds):
    telemetry.start()
    time.sleep(seconds)
    telemetry.stop()
"""
REPORT = 'print(json.dumps({**telemetry.context(), **telemetry.summary(), "samples": len(telemetry._samples)}))'

Observe = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripted libraries."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler for a scripted driver")
    pytest.importorskip("pynvml")
    folder = tmp_path_factory.mktemp("driver")
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):
        command = [compiler, "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(folder / name)]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def observe(driver: Path, tmp_path: Path) -> Observe:
    """Run lines within a Telemetry of CUDA's GPU 0, which NVML calls 1; what it says then."""

    def run(lines: str) -> dict[str, Any]:
        body = "\n".join(f"    {line}" for line in (*lines.strip().splitlines(), REPORT))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "SCRIPTED_DRIVER": str(tmp_path / "script")}
        done = subprocess.run(
            [sys.executable, "-c", f"{WATCH}\nwith telemetry:\n{body}"],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def test_columns_are_columns() -> None:
    with Telemetry(CPU) as telemetry:
        columns = {field.name for field in fields(BenchmarkRow)}
        assert telemetry.context().keys() | telemetry.summary().keys() <= columns


def test_the_gpu_is_the_one_that_cuda_means_and_all_it_says_is_there(observe: Observe) -> None:
    row = observe(
        """
says(gpu1_of_memory_clock=2619, gpu1_of_power=650500, gpu1_of_temperature=61, gpu1_of_reasons=0x4 | 0x1)
says(gpu0_of_power=9, gpu0_of_temperature=9, gpu0_of_energy=9)
watch(0.3)
telemetry.add_images(100)
"""
    )
    assert row["samples"] >= 3
    assert (row["sm_clock_mhz"], row["sm_clock_low_mhz"], row["memory_clock_mhz"]) == (1980, 1980, 2619)
    assert (row["power_w"], row["temperature_c"]) == (650.5, 61)
    assert row["throttle"] == "power cap"  # an idle moment is none
    assert row["energy_mj_per_image"] == pytest.approx(650.5e3 * 0.3 / 100, rel=0.5)  # no counter: power × time
    assert row["energy_mj_per_image"] >= 650.5e3 * 0.3 / 100
    assert row["flags"] == "" or row["flags"].startswith("other processes used")
    assert (row["driver"], row["cuda"], row["compute_capability"]) == ("580.65.06", "13.2", "9.0")


def test_only_what_happens_in_slices_counts(observe: Observe) -> None:
    row = observe(
        """
says(gpu1_of_energy=1000, gpu1_of_temperature=50)
watch(0.3)
says(gpu1_of_energy=51000, gpu1_of_sm_clock=345, gpu1_of_reasons=0x40, gpu1_of_temperature=95)
time.sleep(0.3)
says(gpu1_of_sm_clock=1900, gpu1_of_reasons=0, gpu1_of_temperature=60)
watch(0.3)
"""
    )
    assert (row["sm_clock_low_mhz"], row["temperature_c"], row["throttle"]) == (1900, 60, "")
    assert row["energy_mj_per_image"] is None  # nobody said how many images
    assert row["power_w"] is None  # the counter did not move in the slices
    late = "telemetry._interval_s = 0.1\nwatch(0)\ntime.sleep(0.3)"  # a look is due when the slice is over
    assert observe(late)["samples"] == 0


def test_energy_is_the_counters_where_there_is_one(observe: Observe) -> None:
    row = observe(
        """
says(gpu1_of_energy=5000, gpu1_of_power=10)
telemetry.start()
time.sleep(1.2)
says(gpu1_of_energy=5800)
telemetry.stop()
telemetry.add_images(400)
"""
    )
    assert row["energy_mj_per_image"] == 2
    assert row["power_w"] == pytest.approx(0.8 / 1.2, rel=0.3)


def test_what_slowed_it_is_flagged_with_its_share(observe: Observe) -> None:
    row = observe("says(gpu1_of_reasons=0x40 | 0x80 | 0x2)\nwatch(0.2)")
    assert row["throttle"] == "application clocks + hardware thermal + power brake"
    assert row["flags"].startswith("hardware thermal in 100% of samples; power brake in 100% of samples")
    assert "application" not in row["flags"]


def test_falling_clocks_are_flagged(observe: Observe) -> None:
    row = observe("watch(0.3)\nsays(gpu1_of_sm_clock=1600)\nwatch(0.4)")
    assert "clocks of the GPU fell by 19%" in row["flags"]
    assert row["sm_clock_low_mhz"] == 1600
    row = observe("watch(0.3)\nsays(gpu1_of_sm_clock=1900)\nwatch(0.4)")
    assert "fell" not in row["flags"]


def test_who_else_is_on_the_gpu(observe: Observe) -> None:
    mib = 1 << 20
    alone = observe(f"says(gpu1_of_pid0=os.getpid(), gpu1_of_memory0={700 * mib})\nwatch(0.1)")
    assert alone["gpu_memory_mib"] == 700
    assert "on the GPU" not in alone["flags"]
    renamed = observe(f"says(gpu1_of_pid0=4000000, gpu1_of_memory0={600 * mib})\nwatch(0.1)")  # as in a container
    assert renamed["gpu_memory_mib"] == 600
    assert "on the GPU" not in renamed["flags"]
    both = 'child = subprocess.Popen(["sleep", "5"])\nsays(gpu1_of_pid0=4000000, gpu1_of_pid1=4000001)\n'
    assert "on the GPU" not in observe(f"{both}watch(0.1)\nchild.kill()")["flags"]
    third = f"{both}says(gpu1_of_pid2=4000002)\nwatch(0.1)\nchild.kill()"
    assert "1 other process on the GPU" in observe(third)["flags"]
    shared = observe("says(gpu1_of_pid0=os.getpid(), gpu1_of_pid1=1, gpu1_of_pid2=4000000)\nwatch(0.1)")
    assert "2 other processes on the GPU" in shared["flags"]
    child = (
        'child = subprocess.Popen(["sleep", "5"])\nsays(gpu1_of_pid0=os.getpid(), gpu1_of_pid1=child.pid)\nwatch(0.1)'
    )
    assert "on the GPU" not in observe(f"{child}\nchild.kill()")["flags"]


def test_sisters_that_wait_for_their_turn_are_no_strangers(observe: Observe) -> None:
    lines = """
telemetry._family = os.getppid()
says(gpu1_of_pid0=os.getpid(), gpu1_of_pid1=SISTER)
watch(0.1)
"""
    sister = subprocess.Popen(["sleep", "30"])
    try:
        assert "on the GPU" not in observe(lines.replace("SISTER", str(sister.pid)))["flags"]
    finally:
        sister.kill()
        sister.wait()
    assert "1 other process on the GPU" in observe(lines.replace("SISTER", "1"))["flags"]


def test_without_nvml_the_row_says_that_clocks_are_not_known(observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Telemetry(GPU, root=Path("/nowhere")) as telemetry:
        telemetry.start()
        telemetry.stop()
        row = telemetry.summary()
    assert row["sm_clock_mhz"] is row["power_w"] is row["energy_mj_per_image"] is None
    assert row["flags"].startswith("clocks of the GPU are not known (nvidia-ml-py is not installed")
    monkeypatch.undo()
    refused = observe("telemetry.__exit__(None, None, None)\nsays(refused=18)\ntelemetry.__enter__()\nwatch(0.05)")
    assert "NVML cannot be used" in refused["flags"]
    silent = observe("says(gpu1_of_sm_clock=None)\nwatch(0.1)")
    assert "clocks of the GPU are not known (it does not say)" in silent["flags"]


def test_a_cpu_row_says_nothing_of_gpus() -> None:
    with Telemetry(CPU) as telemetry:
        telemetry.start()
        telemetry.stop()
    row = telemetry.summary()
    assert "GPU" not in row["flags"]
    assert (row["sm_clock_mhz"], row["throttle"], row["gpu_memory_mib"]) == (None, "", None)
    assert row["peak_rss_mib"] > 10
    context = telemetry.context()
    assert context["cpu"]
    assert (context["driver"], context["cuda"], context["compute_capability"]) == ("", "", "")
    assert context["affinity"] == affinity_text(affinity())


BUSY = "import time; end = time.time() + 60\nwhile time.time() < end: pass"


def test_the_load_of_others_is_theirs_alone() -> None:
    stranger = subprocess.Popen(
        ["sh", "-c", f'"{sys.executable}" -c "{BUSY}" >/dev/null 2>&1 & echo $!'], stdout=subprocess.PIPE, text=True
    )
    assert stranger.stdout is not None
    pid = int(stranger.stdout.readline())
    stranger.wait()  # the busy one is nobody's child now
    try:
        before = CpuTimes.now(affinity())
        time.sleep(1.0)
        others, here = CpuTimes.now(affinity()).others_since(before)
    finally:
        os.kill(pid, 9)
    assert others > 0.2
    assert here > 0.2

    child = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        before, used = CpuTimes.now(affinity()), time.process_time()
        while time.process_time() < used + 0.4 or psutil.Process(child.pid).cpu_times().user < 0.4:
            pass
        after = CpuTimes.now(affinity())
    finally:
        child.kill()
        child.wait()
    own, all_of_them = after.own - before.own, after.busy - before.busy
    assert own > 0.7
    assert after.others_since(before)[0] == pytest.approx(max(all_of_them - own, 0))


def test_a_busy_machine_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = len(affinity())
    moments = iter([CpuTimes(0.0, 0.0, 0.0, 0.0), CpuTimes(2.0, 9.0, 2.0 + 0.5 * cpus, 2.0)])
    monkeypatch.setattr(CpuTimes, "now", classmethod(lambda cls, cpus: next(moments)))
    with Telemetry(CPU) as telemetry:
        telemetry.start()
        telemetry.stop()
        row = telemetry.summary()
    assert row["other_load"] == 3.5  # of all CPUs
    assert row["flags"] == f"other processes used {0.25 * cpus:.2f} of the {cpus} CPUs it had"


@pytest.mark.parametrize(("cpus", "text"), [([0, 1, 2, 3, 8], "0-3,8"), ([5], "5"), ([0, 2, 3], "0,2-3"), ([], "")])
def test_affinity_reads_as_linux_writes_it(cpus: list[int], text: str) -> None:
    assert affinity_text(cpus) == text


def test_reasons_in_words() -> None:
    assert throttle_reasons(0x1 | 0x20 | 0x8000) == ["idle", "software thermal"]
    assert doubtful(["idle", "power cap", "sync boost", "average over-current"]) == [
        "sync boost",
        "average over-current",
    ]


ORIN_NX = {"VDD_IN": (5000, 3000), "VDD_CPU_GPU_CV": (5000, 1000), "VDD_SOC": (5000, 500)}
AGX_ORIN = {"VDD_GPU_SOC": (800, 6000), "VDD_CPU_CV": (800, 3000), "VIN_SYS_5V0": (5000, 1000)}


def jetson_files(root: Path, rails: dict[str, tuple[int, int]], gpu: str = "17000000.gpu") -> Path:
    monitor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO",
        "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4/in2_input": "5000",
        "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4/curr2_input": "9999",
        f"{monitor}/in7_label": "Sum of shunt voltages",
        "sys/class/devfreq/15340000.vic/cur_freq": "729600000",
        f"sys/class/devfreq/{gpu}/cur_freq": "918000000",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "80000",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": "54250",
        "sys/class/hwmon/hwmon0/name": "pwmfan",
        "sys/class/hwmon/hwmon5/name": "soctherm_oc",
    }
    files |= {f"sys/class/hwmon/hwmon5/oc{i}_event_cnt": str(i) for i in (1, 2, 3)}
    for i, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files |= {f"{monitor}/in{i}_label": label, f"{monitor}/in{i}_input": str(millivolts)}
        files |= {f"{monitor}/curr{i}_input": str(milliamperes)}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


@pytest.mark.parametrize(
    ("rails", "power_w"), [(ORIN_NX, 15.0), (AGX_ORIN, 0.8 * 9 + 5.0), ({"VDD_GPU": (800, 6000)}, None)]
)
def test_a_jetsons_files_say_what_nvml_does_not(
    tmp_path: Path, rails: dict[str, tuple[int, int]], power_w: float | None
) -> None:
    jetson = Jetson.find(jetson_files(tmp_path, rails))
    assert jetson is not None
    sample = jetson.sample()
    assert sample.power_w == (pytest.approx(power_w) if power_w is not None else None)
    assert (sample.sm_clock_mhz, sample.temperature_c, sample.throttle) == (918, 54.25, ())
    (tmp_path / "sys/class/hwmon/hwmon5/oc3_event_cnt").write_text("4\n")
    assert jetson.sample().throttle == ("instantaneous over-current",)
    assert jetson.sample().throttle == ()
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").unlink()
    assert jetson.sample().temperature_c is None
    assert Jetson.find(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("gpu", ["17000000.ga10b", "gpu-gpc-0"])
def test_the_gpus_clock_goes_by_several_names(tmp_path: Path, gpu: str) -> None:
    assert Jetson(jetson_files(tmp_path, ORIN_NX, gpu)).sample().sm_clock_mhz == 918


def test_a_jetsons_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, tools = jetson_files(tmp_path / "root", ORIN_NX), tmp_path / "bin"
    tools.mkdir()
    (tools / "nvpmodel").write_text('#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: MAXN_SUPER\\n2\\n"\n')
    (tools / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Telemetry(GPU, root=root, interval_s=0.01) as telemetry:
        telemetry.start()
        time.sleep(0.3)
        telemetry.stop()
        telemetry.add_images(10)
        assert telemetry.context()["driver"] == "Jetson Linux 36.4.3, power mode MAXN_SUPER"
        row = telemetry.summary()
    assert (row["sm_clock_mhz"], row["power_w"], row["temperature_c"]) == (918, 15.0, 54.2)
    assert row["energy_mj_per_image"] >= 15e3 * 0.3 / 10
    assert "not known" not in row["flags"]
