"""What other programs say, read: pytest, compute-sanitizer, ncu, nvidia-smi, ptxas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.benchmarks.gpu import build as gpu_build
from fastervit_trt.benchmarks.gpu import kernels as gpu_kernels
from fastervit_trt.benchmarks.gpu.build import library_path
from fastervit_trt.benchmarks.gpu.driver import CALLS
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.kernels import junit_results, sanitizer_command, sanitizer_verdict
from fastervit_trt.benchmarks.gpu.profile import ncu_command, parse_ncu
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED
from fastervit_trt.benchmarks.gpu.state import GpuState, StateProbe, gpu_identity
from fastervit_trt.errors import FasterViTError

JUNIT = """<?xml version="1.0"?><testsuites><testsuite tests="4">
<testcase classname="tests.plugins.test_a" name="test_one[cuda-fp16]" time="0.25" />
<testcase classname="tests.plugins.test_a" name="test_two[cuda]" time="1">
  <skipped message="no such kernel" /></testcase>
<testcase classname="tests.plugins.test_b" name="test_three" time="2">
  <failure message="AssertionError: 3 of 4 values&#10; are off">long text</failure></testcase>
<testcase classname="tests.plugins.test_b" name="test_four" time="2"><error message="setup" /></testcase>
</testsuite></testsuites>"""


def test_tests_become_rows() -> None:
    more = "".join(f'<testcase classname="tests.plugins.test_b" name="more {i}" time="1" />' for i in range(40))
    rows = junit_results("kernels", JUNIT.replace("</testsuite>", f"{more}</testsuite>", 1))
    assert {(row.case, row.peer): (row.status, row.note, row.value) for row in rows} == {
        ("test_a", "passed"): (OK, "", 1),
        ("test_a", "skipped, no such kernel"): (SKIPPED, "no such kernel", 1),
        ("test_b", "passed"): (OK, "", 40),
        ("test_b", "test_three"): (FAILED, "AssertionError: 3 of 4 values are off", None),
        ("test_b", "test_four"): (FAILED, "setup", None),
    }


@pytest.mark.parametrize(
    ("said", "right", "note"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", True, "0 errors"),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors", False, "3 errors"),
        (
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
            True,
            "0 hazards displayed (0 errors, 0 warnings)",
        ),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", False, "1 hazard displayed"),
        ("unrecognised option '--kernel-regex'", False, "no summary: unrecognised option '--kernel-regex'"),
        ("", False, "no summary: no message"),
    ],
)
def test_verdicts_of_the_sanitizer(said: str, right: bool, note: str) -> None:
    found, words = sanitizer_verdict(said)
    assert found is right
    assert words.startswith(note)


def test_commands_name_the_driver_and_leave_clocks_alone() -> None:
    command = sanitizer_command("racecheck", ["partition", "reverse"], filtered=True)
    assert command[:3] == ["compute-sanitizer", "--tool", "racecheck"]
    assert command[-5:] == ["-m", "fastervit_trt.benchmarks.gpu.driver", "partition", "reverse", "--small"]
    assert "--kernel-regex" not in sanitizer_command("racecheck", ["partition"], filtered=False)
    for call in CALLS:
        command = ncu_command(call)
        assert command[command.index("--clock-control") + 1] == "none"
        assert call in command


RESIDENT = "void fastervit::(anonymous namespace)::resident_kernel<__half, __half, 2, 4>(fastervit::Call)"
NCU = f"""==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","{RESIDENT}","S","Duration","us","1,017.5"
"0","7","{RESIDENT}","S","DRAM Throughput","%","83.1"
"0","7","{RESIDENT}","S","SM Frequency","Ghz","1.5"
"1","7","_kernel","S","Duration","us","n/a"
"""


def test_counters_of_ncu() -> None:
    assert list(parse_ncu(NCU)) == [
        ("0 resident_kernel<__half, __half, 2, 4>", "Duration", 1017.5, "us"),
        ("0 resident_kernel<__half, __half, 2, 4>", "DRAM Throughput", 83.1, "%"),
    ]
    assert list(parse_ncu("==ERROR== no permission\n")) == []


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file; what it says is what nvidia-smi says."""
    program, answer = tmp_path / "nvidia-smi", tmp_path / "answer"
    program.write_text(f'#!/bin/sh\ncat "{answer}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answer


def test_the_state_of_the_gpu(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("1980, 3201, 412.55, 51, 0x0000000000000024\n")
    assert StateProbe().read() == GpuState(1980, 3201, 412.55, 51, "power cap + software thermal")
    nvidia_smi.write_text("[N/A], 3201, [N/A], 51, [N/A]\n")
    assert StateProbe().read() == GpuState(None, 3201, None, 51, "")
    nvidia_smi.write_text("Unable to determine the device handle\n")
    assert StateProbe().read() == GpuState()


def test_which_gpu(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("NVIDIA H200, 580.159.03, 9.0\n")
    found = gpu_identity()
    assert found is not None
    assert (found.name, found.driver, found.compute_capability) == ("NVIDIA H200", "580.159.03", "9.0")
    nvidia_smi.write_text("No devices were found\n")
    assert gpu_identity() is None


def test_without_nvidia_smi_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_identity() is None
    assert StateProbe().read() == GpuState()


FAKE_NVCC = """#!/bin/sh
echo "nvcc $@" >> "{log}"
for word in "$@"; do previous="$last"; last="$word"; [ "$previous" = -o ] && touch "$word"; done
echo "ptxas info    : Compiling entry function 'void fastervit::window_reverse::f<2>(P)' for 'sm_90'" >&2
echo "ptxas info    : Function properties for void fastervit::window_reverse::f<2>(P)" >&2
echo "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads" >&2
echo "ptxas info    : Used 32 registers, 64 bytes smem" >&2
exit {code}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With two kernels and a compiler that only pretends."""
    for folder, file in (("a", "kernel.cu"), ("b", "kernel.cu"), ("common", "version.cpp")):
        (tmp_path / "plugins/csrc" / folder).mkdir(parents=True)
        (tmp_path / "plugins/csrc" / folder / file).touch()
    (tmp_path / "bin").mkdir()
    pretend(tmp_path, code=0)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return tmp_path


def pretend(checkout: Path, code: int) -> None:
    nvcc = checkout / "bin" / "nvcc"
    nvcc.write_text(FAKE_NVCC.format(log=checkout / "log", code=code))
    nvcc.chmod(0o755)


def test_nvcc_alone_builds_the_library(checkout: Path) -> None:
    said = gpu_build.build_with_nvcc(checkout, checkout / "build", "90")
    assert library_path(checkout / "build").is_file()
    commands = (checkout / "log").read_text().splitlines()
    assert len(commands) == 4  # two kernels, the version, the library
    assert all("-arch=sm_90" in command for command in commands[:3])
    assert "-shared" in commands[3]
    (kernel, *_) = gpu_build._resources(said, checkout / "build")
    assert (kernel.operator, kernel.kernel, kernel.registers) == ("window_reverse", "f<2>", 32)
    assert gpu_build._resources("nothing to do", checkout / "build")  # of the last build


def test_a_build_that_fails_says_why(checkout: Path) -> None:
    pretend(checkout, code=1)
    with pytest.raises(FasterViTError, match=r"nvcc: ptxas info"):
        gpu_build.build_with_nvcc(checkout, checkout / "build", "90")
    with pytest.raises(FasterViTError, match="no kernels in"):
        gpu_build.build_with_nvcc(checkout / "bin", checkout / "build", "90")


SANITIZER = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *--kernel-regex*) echo "unknown option" >&2; exit 1;; esac
echo "caching off: $PYTORCH_NO_CUDA_MEMORY_CACHING"
case "$*" in *racecheck*) echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)";;
*) echo "========= ERROR SUMMARY: 0 errors";; esac
"""


def test_the_sanitizer_runs_all_our_calls_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, log = tmp_path / "compute-sanitizer", tmp_path / "log"
    program.write_text(SANITIZER.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    events: list[dict[str, Any]] = []
    gpu_kernels._sanitize(Report("kernels", events.append, [("kernels", "compute-sanitizer", None, "done")]))
    rows = [event["result"] for event in events if "result" in event]
    assert [(row["peer"], row["status"]) for row in rows] == [("memcheck", OK), ("racecheck", FAILED)]
    assert rows[1]["note"].startswith("2 hazards")
    calls = log.read_text().splitlines()
    assert len(calls) == 4  # each tool with the option, and without it
    assert all("attention-resident attention-streamed" in call and "triton" not in call for call in calls)


def test_without_the_sanitizer_its_rows_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    events: list[dict[str, Any]] = []
    gpu_kernels._sanitize(Report("kernels", events.append))
    assert [event["result"]["status"] for event in events] == [SKIPPED, SKIPPED]


TEST = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu():
    assert {outcome}

def test_elsewhere():
    raise AssertionError
"""


@pytest.mark.parametrize(("outcome", "status"), [("True", OK), ("1 == 2", FAILED)])
def test_the_tests_of_a_checkout_are_run(tmp_path: Path, outcome: str, status: str) -> None:
    tests = tmp_path / "tests" / "plugins"
    tests.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu"]\n')
    (tests / "test_some.py").write_text(TEST.format(outcome=outcome))
    (tmp_path / "out").mkdir()
    events: list[dict[str, Any]] = []
    job = Job(stage="kernels", checkout=str(tmp_path), build=".", output=str(tmp_path / "out"))
    gpu_kernels.run(job, Report("kernels", events.append))
    (row,) = [event["result"] for event in events if "result" in event]
    peer = "passed" if status == OK else "test_on_a_gpu"
    assert (row["case"], row["peer"], row["status"]) == ("test_some", peer, status)
    assert (status == OK) == (row["note"] == "")


def test_a_checkout_without_tests_for_a_gpu_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tests" / "plugins").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu"]\n')
    job = Job(stage="kernels", checkout=str(tmp_path), build=".", output=str(tmp_path))
    with pytest.raises(FasterViTError, match="no test with the marker gpu"):
        gpu_kernels.run(job, Report("kernels", lambda event: None))
