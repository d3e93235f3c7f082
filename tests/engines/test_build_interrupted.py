"""Builds that fail or are stopped, by signals to real processes too: no engine, no scratch, no process stays behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastervit_trt.engines.build import BuildRequest, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.errors import FasterViTError
from tests.engines.builds import ORIN, Built, PretendedWorker, builds, left_behind, posix, tree


@posix
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            "refused",
            r"^TensorRT parser refuses Gemm in head \(node 'head/Gemm_0'\): no such thing; try a later release",
        ),
        ("workspace", "within workspace limit; allow more: --workspace MIB$"),
        ("dies", r"^TensorRT ended without an answer \(exit code 1\): last words"),
    ],
)
def test_other_failures_are_not_tried_again_and_leave_nothing(
    step: str, message: str, for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache
) -> None:
    worker.will(step)
    with pytest.raises(FasterViTError, match=message):
        build_engine(for_orin, cache=cache, machine=ORIN)
    assert len(worker.jobs) == 1
    assert left_behind(for_orin, worker) == [] and cache.entries() == []


@posix
def test_what_stops_the_caller_stops_the_worker(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    worker.will("hangs")

    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    start, before = time.monotonic(), set(psutil.Process().children())  # other tests may have some
    with pytest.raises(KeyboardInterrupt):
        build_engine(for_orin, stop, machine=ORIN)
    assert time.monotonic() - start < 30  # it would have slept for a minute
    assert left_behind(for_orin, worker) == []
    assert set(psutil.Process().children()) <= before


# --- signals to real processes in the middle of real builds ---

STOPPED = """
import sys
from pathlib import Path
import psutil
from fastervit_trt.console import command_app, run_command
from fastervit_trt.engines.build import BuildRequest, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.export.batch import BatchRange

app = command_app()
onnx, engine, cache = map(Path, sys.argv[1:])

@app.command()
def build() -> None:
    def show(phase: str, done: int, total: int) -> None:
        if phase == "Building engine" and done == 1:
            (worker,) = psutil.Process().children()
            worker.suspend()  # so that it cannot end before the signal is there
            print(worker.pid, flush=True)

    request = BuildRequest(
        onnx, engine, "tensorrt-rtx", "fp16", "images", (3, 224, 224), (BatchRange(1, 2, 4),), "8.9"
    )
    build_engine(request, show, EngineCache(cache, 10**9))

run_command(app, [])
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a test; those it leaves are killed with their group."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # also a worker that outlived its caller
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(command: list[str], temporary: Path) -> subprocess.Popen[str]:
    temporary.mkdir()
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,  # a group of its own, as a terminal gives to what runs in its foreground
    )


@posix
@builds
def test_sigterm_in_the_middle_of_a_build_leaves_nothing(
    built: Built, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    engines, cache = tmp_path / "engines", tmp_path / "cache"
    engines.mkdir()
    shutil.copytree(built.cache.folder, cache)
    before = tree(cache)
    arguments = [str(built.request.onnx), str(engines / "model.engine"), str(cache)]
    process = start([sys.executable, "-c", STOPPED, *arguments], tmp_path / "tmp")
    started.append(process)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "error: interrupted; nothing half-written was kept"
    assert not psutil.pid_exists(worker)
    assert list(engines.iterdir()) == [] and list((tmp_path / "tmp").iterdir()) == []
    assert tree(cache) == before


@posix
@builds
def test_ctrl_c_of_the_command_leaves_the_export_as_it_was(
    exports: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exports / "fp16", folder)
    before = tree(folder)
    program = "import sys; from fastervit_trt.cli.engine import main; main(sys.argv[1:])"
    arguments = ["build", str(folder), "--runtime", "rtx", "--compute-capability", "8.6", "--no-cache"]
    process = start([sys.executable, "-c", program, *arguments], tmp_path / "tmp")
    started.append(process)
    worker = worker_of(process)
    os.killpg(process.pid, signal.SIGINT)  # the worker gets it, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "error: interrupted; nothing half-written was kept" in errors and "Traceback" not in errors
    assert not worker.is_running()
    assert tree(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("export", "tmp")] == []
    assert list((tmp_path / "tmp").iterdir()) == []


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The worker of a command, stopped as soon as it has loaded TensorRT-RTX."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            try:
                if any("tensorrt_rtx" in mapped.path for mapped in child.memory_maps()):
                    child.suspend()
                    return child
            except psutil.Error:  # it has just begun, or ended
                continue
        time.sleep(0.005)
    raise AssertionError("no worker was seen")
