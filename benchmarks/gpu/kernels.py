"""Stage ``kernels``: the project's own tests of its kernels on this GPU; if asked for, compute-sanitizer over them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastervit_trt.benchmarks.gpu.compare import BASELINE
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED, Result
from fastervit_trt.errors import FasterViTError

__all__ = ["junit_results", "run", "sanitizer_command", "sanitizer_verdict"]

_TESTS = "tests/plugins"
_TOOLS = ("memcheck", "racecheck")
_PYTEST_FAILURES = (0, 1, 5)  # all passed; some failed; none collected: the XML says so
_DRIVER = "fastervit_trt.benchmarks.gpu.driver"
_SANITIZER_SECONDS = 200
_LONGEST_NOTE = 400


def run(job: Job, report: Report) -> None:
    """Rows of the tests; with the sanitizer, one per tool."""
    for result in _pytest(job, report):
        report.result(result)
    report.idle()
    if job.sanitizer:
        _sanitize(report)


def junit_results(stage: str, xml: str) -> list[Result]:
    """Rows of what pytest wrote: one for each test that failed, and for each file how many passed or were skipped."""
    results, counts = [], Counter[tuple[str, str, str]]()
    for case in ElementTree.fromstring(xml).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        file = case.get("classname", "").rpartition(".")[2]
        message = "" if outcome is None else " ".join((outcome.get("message") or "").split())[:_LONGEST_NOTE]
        if outcome is None or outcome.tag == "skipped":
            counts[file, OK if outcome is None else SKIPPED, message] += 1
        else:
            results.append(Result(stage=stage, case=file, peer=case.get("name", ""), status=FAILED, note=message))
    for (file, status, message), count in counts.items():
        peer = "passed" if status == OK else f"skipped, {message}"
        result = Result(stage=stage, case=file, peer=peer, status=status, note=message, value=count, unit="tests")
        results.append(result)
    return results


def _pytest(job: Job, report: Report) -> Iterator[Result]:
    root = Path(job.checkout)
    if not (root / _TESTS).is_dir():
        raise FasterViTError(f"no {_TESTS} in {root}; pass --checkout, the folder of the sources")
    xml = Path(job.output).absolute() / "kernels.xml"
    report.start("tests", "pytest")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", _TESTS, "-q", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run([*command, f"--junitxml={xml}"], cwd=root, capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode not in _PYTEST_FAILURES or not xml.is_file():
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no message"]
        raise FasterViTError(f"pytest ended with {done.returncode}: {lines[-1][:300]}")
    results = junit_results(report.stage, xml.read_text())
    if not results:
        raise FasterViTError(f"pytest found no test with the marker gpu in {root / _TESTS}")
    yield from results


def _sanitize(report: Report) -> None:
    from fastervit_trt.benchmarks.gpu.driver import CALLS

    calls = [call for call, (_, _, peer) in CALLS.items() if peer.startswith(BASELINE)]
    for tool in _TOOLS:
        case = "compute-sanitizer"
        if report.is_done(case, tool):
            continue
        if shutil.which(case) is None:
            report.add(case, tool, SKIPPED, "it is not on the PATH")
            continue
        report.start(case, tool)
        try:
            right, note = sanitizer_verdict(_sanitizer_says(tool, calls))
        except subprocess.TimeoutExpired:
            right, note = False, f"not done after {_SANITIZER_SECONDS} s"
        report.add(case, tool, OK if right else FAILED, note, setting=", ".join(calls))


def _sanitizer_says(tool: str, calls: Sequence[str]) -> str:
    # The allocator's large blocks would hide accesses between tensors.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    said = ""
    for filtered in (True, False):  # the option has had several names
        command = sanitizer_command(tool, calls, filtered=filtered)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SANITIZER_SECONDS)
        said = done.stdout + done.stderr
        sys.stderr.write(said)
        if "SUMMARY" in said:
            break
    return said


def sanitizer_command(tool: str, calls: Sequence[str], *, filtered: bool) -> list[str]:
    """All ``calls`` in one process: starting it takes longer than they do. ``filtered``: our kernels only."""
    # Kernels of PyTorch, which make the inputs, are not of interest, and slow under it.
    names = ["--kernel-regex", "kns=fastervit"] if filtered else []
    return ["compute-sanitizer", "--tool", tool, *names, sys.executable, "-m", _DRIVER, *calls, "--small"]


def sanitizer_verdict(said: str) -> tuple[bool, str]:
    """Whether it found nothing, and its own words."""
    summary = re.search(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (.*)", said)
    if summary is None:
        lines = [line for line in said.strip().splitlines() if line.strip()] or ["no message"]
        return False, f"no summary: {lines[-1][:300]}"
    errors = re.match(r"(\d+)", summary[1])
    return errors is not None and int(errors[1]) == 0, summary[1].strip()
