"""Stage ``profile``: what ncu's counters say of each kernel, one process per call of :mod:`driver`. Best effort."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator

from fastervit_trt.benchmarks.gpu.driver import CALLS
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED
from fastervit_trt.plugins.resources import short_name

__all__ = ["Metric", "ncu_command", "parse_ncu", "run"]

Metric = tuple[str, str, float, str]  # number and name of the kernel, then name, value, unit

_SECONDS = 120
_KERNELS = "resident_kernel|streamed_kernel|fused_kernel|linear_kernel|partition|reverse|_kernel"  # the last: Triton's
_METRICS = (
    "Duration",
    "DRAM Throughput",
    "Memory Throughput",
    "L2 Cache Throughput",
    "Compute (SM) Throughput",
    "Achieved Occupancy",
    "Theoretical Occupancy",
    "Registers Per Thread",
    "Dynamic Shared Memory Per Block",
    "Waves Per SM",
    "Grid Size",
)


def run(job: Job, report: Report) -> None:
    """Rows of the chosen counters of every kernel of every call."""
    for call in CALLS:
        command = ncu_command(call)
        if report.is_done(call, "ncu"):
            continue
        if shutil.which("ncu") is None:
            report.add(call, "ncu", SKIPPED, f"ncu is not on the PATH; where it is: {' '.join(command)}")
            continue
        report.start(call, "ncu")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            report.add(call, "ncu", FAILED, f"not done after {_SECONDS} s")
            continue
        sys.stderr.write(done.stdout + done.stderr)
        metrics = list(parse_ncu(done.stdout))
        for kernel, name, value, unit in metrics:
            report.add(f"{call}: {kernel}", name, OK, value=value, unit=unit)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "==ERROR==" in line] or ["no counters"]
        report.add(call, "ncu", OK if metrics else FAILED, "" if metrics else lines[0], setting=" ".join(command))


def ncu_command(call: str) -> list[str]:
    """Clocks are left as they are; only the kernels that are looked at are measured."""
    ncu = ["ncu", "--set", "basic", "--section", "MemoryWorkloadAnalysis", "--clock-control", "none", "--csv"]
    driver = [sys.executable, "-m", "fastervit_trt.benchmarks.gpu.driver", call, "--repeats", "1"]
    return [*ncu, "--kernel-name", f"regex:^({_KERNELS})$", "--launch-count", "4", *driver]


def parse_ncu(said: str) -> Iterator[Metric]:
    """The chosen counters of ncu's table, which other output surrounds."""
    lines = said.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    for entry in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        name, text = entry.get("Metric Name") or "", (entry.get("Metric Value") or "").replace(",", "")
        if name not in _METRICS:
            continue
        try:
            kernel = f"{entry['ID']} {short_name(entry.get('Kernel Name') or '')}"
            yield kernel, name, float(text), entry.get("Metric Unit") or ""
        except ValueError:
            continue
