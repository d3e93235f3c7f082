"""The one entry, as a user starts it, on a machine without a GPU; and with one that only pretends."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.benchmarks.gpu import __main__ as gpu
from fastervit_trt.benchmarks.gpu.build import library_path
from fastervit_trt.benchmarks.gpu.cases import Ceilings, ModelCase
from fastervit_trt.benchmarks.gpu.environment import COPY, MATMUL
from fastervit_trt.benchmarks.gpu.job import Job
from fastervit_trt.benchmarks.gpu.rows import OK, SKIPPED, STOPPED, Result
from fastervit_trt.plugins.library import VARIABLE
from tests.conftest import ROOT

STAGES = ["environment", "build", "facts", "kernels", "core", "half", "partition", "block", "models"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        gpu.main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "no_gpu_reason", lambda: "no GPU: PyTorch finds none")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_every_stage_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--output", tmp_path / "out", "--checkout", ROOT) == 0
    rows = rows_of(tmp_path / "out")
    assert [(row["stage"], row["status"], row["note"]) for row in rows] == [
        (stage, SKIPPED, "no GPU: PyTorch finds none") for stage in STAGES
    ]
    assert re.fullmatch(r"[0-9a-f]{16}", rows[0]["sources_sha256"])
    assert rows[0]["command"].startswith("python -m fastervit_trt.benchmarks.gpu")
    assert len(list(csv.DictReader((tmp_path / "out" / "rows.csv").open()))) == len(STAGES)
    out = capsys.readouterr().out
    assert "HAT block, batch 128: over torch.compile" in out
    assert out.splitlines()[-1] == f"rows and log: {tmp_path / 'out'}"


def test_the_plan_needs_no_gpu_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--stages", "build,core,models", "--models", "faster_vit_0_224", "--batches", "128")
    assert run("--plan", *options, "--output", tmp_path / "out") == 0
    assert not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert re.search(r"core +faster_vit_0_224 stage 3 window +128 +512x53x8x32 +55\.6 +1\.47 +12\.9 +memory", out)
    assert re.search(r"models +faster_vit_0_224 +128 +128x3x224x224 +\d+\.\d +86\d\.\d\d +\d+\.\d +arithmetic", out)


def test_the_plan_shows_models_under_heads_or_why_they_cannot_be_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastervit_trt.benchmarks.gpu.report.console.width", 200)
    options = ("--plan", "--stages", "models", "--models", "faster_vit_0_any_res", "--batches", "8")
    assert run(*options) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"faster_vit_0_any_res detection +8 +8x3x640x640 +\d+\.\d +9[0-9]{2}\.\d\d +\d+\.\d +arithmetic", out
    )
    assert re.search(r"faster_vit_0_any_res segmentation +8 +8x3x512x512 ", out)

    def without(case: ModelCase) -> str | None:
        return None if case.task == "classification" else "pip install 'fastervit-trt[tasks]'"

    monkeypatch.setattr(ModelCase, "why_not", property(without))
    assert run(*options) == 0
    assert re.search(r"detection +8 +8x3x640x640 +pip install 'fastervit-trt\[tasks\]'\s*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stages", "core,nonsense"), "no stage 'nonsense'; there are environment, build"),
        (("--stages", ","), "no stage ','"),
        (("--models", "faster_vit_9"), "unknown model 'faster_vit_9'"),
        (("--batches", "1,x"), "--batches 1,x: write them as in 128,1"),
        (("--batches", "0"), "--batches 0: write them"),
        (("--stages", "core", "--peers", "ours,flux"), "no peer 'flux'; there are ours, ours resident"),
        (("--checkout", "/"), "no checkout with plugins/csrc in /"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    assert run("--output", tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


Fake = Callable[..., None]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, dict[str, str]]]:
    """A GPU is there; stages are recorded, and find what their names say."""
    seen: list[tuple[Job, dict[str, str]]] = []

    def fake(job: Job, seconds: float, silence: float, on_results: Any, log: Any, environment: Any) -> None:
        seen.append((job, environment))
        if job.stage == "environment":
            on_results(
                [Result(stage=job.stage, case=c, peer="", status=OK, value=v) for c, v in ((COPY, 4.0), (MATMUL, 5.0))]
            )
        if job.stage == "build":
            library_path(job.build_path).parent.mkdir(parents=True, exist_ok=True)
            library_path(job.build_path).touch()
        peers = [] if job.stage in ("environment", "build") else ["ours", "eager"]
        done = set(job.done)
        for peer in peers:
            result = Result(stage=job.stage, case="case", peer=peer, status=OK if peer == "ours" else STOPPED, batch=1)
            if result.key not in done:
                on_results([result])

    monkeypatch.setattr(gpu, "run_stage", fake)
    monkeypatch.setattr(gpu, "no_gpu_reason", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    return seen


def test_stages_get_what_earlier_ones_found(tmp_path: Path, stages: list[tuple[Job, dict[str, str]]]) -> None:
    options = ("--output", tmp_path / "out", "--build", tmp_path / "build", "--checkout", ROOT, "--peers", "ours,eager")
    assert run(*options, "--stages", "environment,build,core", "--batches", "8,1", "--seconds", "0.25") == 0
    (environment, _), (build, before), (core, after) = stages
    assert (environment.stage, build.stage, core.stage) == ("environment", "build", "core")
    assert environment.ceilings is None
    assert build.ceilings == Ceilings(4, 5)
    assert core.ceilings == Ceilings(4, 5)
    assert VARIABLE not in before
    assert after[VARIABLE] == str(library_path(tmp_path / "build"))
    assert after["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "build" / "inductor")
    assert (core.batches, core.seconds, core.peers, core.device) == ([8, 1], 0.25, ["ours", "eager"], "cuda")


def test_a_resumed_run_does_what_is_missing(tmp_path: Path, stages: list[tuple[Job, dict[str, str]]]) -> None:
    options = ("--output", tmp_path / "out", "--build", tmp_path / "build", "--checkout", ROOT, "--stages", "core,half")
    assert run(*options) == 0
    assert run(*options) == 2  # would overwrite
    assert run(*options, "--resume") == 0
    jobs = [job for job, _ in stages]
    once = ["build", "core", "half"]
    assert [job.stage for job in jobs] == ["environment", *once, *once]  # the ceilings are known the second time
    assert not any(stage == "core" for stage, *_ in jobs[2].done)
    assert {("core", "case", 1, "ours"), ("half", "case", 1, "ours")} <= set(jobs[-1].done)
    assert not any(peer == "eager" for *_, peer in jobs[-1].done)
    assert jobs[-1].ceilings == Ceilings(4, 5)
    assert len(rows_of(tmp_path / "out")) == 2 + 4
    assert run(*options, "--overwrite") == 0
    assert not any(peer == "ours" for *_, peer in stages[-2][0].done)


def test_when_the_time_of_the_run_is_up_the_rest_says_so(
    tmp_path: Path, stages: list[tuple[Job, dict[str, str]]]
) -> None:
    options = ("--output", tmp_path / "out", "--build", tmp_path / "build", "--checkout", ROOT)
    assert run(*options, "--stages", "core,half", "--limit", "10") == 0
    assert not stages
    rows = {row["stage"]: row["status"] for row in rows_of(tmp_path / "out")}
    assert rows == dict.fromkeys(["environment", "build", "core", "half"], STOPPED)


def test_a_library_that_the_user_names_is_used_and_none_built(
    tmp_path: Path, stages: list[tuple[Job, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/theirs.so")
    library_path(tmp_path / "build").parent.mkdir(parents=True)
    library_path(tmp_path / "build").touch()
    options = ("--output", tmp_path / "out", "--build", tmp_path / "build", "--checkout", ROOT)
    assert run(*options, "--stages", "kernels,profile") == 0
    assert [(job.stage, environment[VARIABLE]) for job, environment in stages] == [
        ("kernels", "/theirs.so"),
        ("profile", "/theirs.so"),
    ]


def test_a_job_survives_its_way_to_the_process(tmp_path: Path) -> None:
    job = Job(
        stage="core",
        checkout="/a",
        build="/b",
        output="/c",
        models=["m"],
        batches=[1],
        ceilings=Ceilings(1, 2),
        done=[("core", "case", None, "ours")],
    )
    with (tmp_path / "job").open("w+") as stream:
        job.dump(stream)
        stream.seek(0)
        assert Job.load(stream) == job


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_gpu_runs_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("src", "models", "export", "plugins", "engines", "benchmarks", "deploy", "Makefile", "CMakeLists.txt"):
        (checkout / name).symlink_to(ROOT / name)
    # In place of Python: Python without the editable installation that these tests run on.
    code = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "").lower()]
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
    (tmp_path / "bare.py").write_text(code)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncd "{tmp_path}" && exec "{sys.executable}" bare.py "$@"\n')
    python.chmod(0o755)
    options = "--plan --stages partition --models faster_vit_0_224 --batches 1"
    command = ["make", "-C", str(checkout), "gpu", f"PYTHON={python}", f"GPU={options}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without = subprocess.run([python, "-m", "fastervit_trt.benchmarks.gpu", "--plan"], capture_output=True, text=True)
    assert "No module named 'fastervit_trt'" in without.stderr  # it is make that lays it out
    assert "faster_vit_0_224 stage 4 reverse, planes" in done.stdout
    package = checkout / "build" / "gpu" / "site" / "fastervit_trt"
    mapped = re.findall(r'"fastervit_trt\.(\w+)" = "\1"', (ROOT / "pyproject.toml").read_text())
    assert mapped
    assert all((package / name / "__init__.py").is_file() for name in mapped)
