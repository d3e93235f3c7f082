"""Builds as tests ask for them: requests, the real build they share, a pretended worker, a build against a double."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.engines import build as build_module
from fastervit_trt.engines.build import BuildRequest, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.worker import Job, main
from fastervit_trt.export.batch import BatchRange
from tests.engines.api_double import api_double
from tests.engines.builds import LIMIT, WORKER, Built, PretendedWorker, rtx_request
from tests.engines.worker_builds import LARGE, SMALL, Build, runtime_of


@pytest.fixture
def request_of(exports: Path, tmp_path: Path) -> Callable[..., BuildRequest]:
    """A build of the fp16 export into a folder of its own."""
    (tmp_path / "engines").mkdir()
    return partial(rtx_request, exports / "fp16", tmp_path / "engines" / "model.engine")


@pytest.fixture
def for_orin(request_of: Callable[..., BuildRequest]) -> BuildRequest:
    return request_of(runtime="tensorrt", compute_capability=None)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", LIMIT)


@pytest.fixture(scope="session")
def built(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An engine with two profiles, built for real and put into a cache; once for the whole run."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "engines").mkdir()
    request = rtx_request(
        exports / "fp16",
        folder / "engines" / "model.engine",
        profiles=(BatchRange(1, 1, 1), BatchRange(2, 4, 8)),
        options=BuildOptions(workspace_mib=256),
    )
    cache, progress = EngineCache(folder / "cache", LIMIT), []

    def show(phase: str, done: int, total: int) -> None:
        progress.append((phase, done, total))

    return Built(request, build_engine(request, show, cache), cache, progress)


@pytest.fixture
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Any, on_progress: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(build_module, "_run_worker", refuse)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedWorker:
    folder = tmp_path / "worker"
    folder.mkdir()
    pretended, script = PretendedWorker(folder), folder / "python"
    script.write_text(WORKER.format(python=sys.executable, folder=str(folder)))
    script.chmod(0o755)
    pretended.will("ok")
    monkeypatch.setattr(build_module.sys, "executable", str(script))
    monkeypatch.setattr(build_module.tempfile, "tempdir", str(pretended.temporary))
    return pretended


@pytest.fixture
def build_of(exports: Path, tmp_path: Path) -> Callable[..., Build]:
    """A build of the fp16 export with two profiles by one recorded release."""

    def made(release: str, **changes: Any) -> Build:
        trt = api_double(release)
        (tmp_path / "scratch").mkdir(exist_ok=True)
        rtx = runtime_of(trt) == "tensorrt-rtx"
        job = Job(
            runtime=runtime_of(trt),
            onnx=str(exports / "fp16" / "model.onnx"),
            engine=str(tmp_path / "model.engine"),
            scratch=str(tmp_path / "scratch"),
            input="images",
            profiles=[SMALL, LARGE],
            compute_capability="8.9" if rtx else None,
        )
        return Build(trt, replace(job, **changes))

    return made


@pytest.fixture
def answer_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[Build], dict[str, Any]]:
    """Run the worker's ``main`` with the double as the installed module; its last answer."""

    def run(build: Build) -> dict[str, Any]:
        monkeypatch.setitem(sys.modules, build.trt.__name__, build.trt)
        monkeypatch.setattr(sys, "stdin", io.StringIO(build.job.to_json()))
        build.trt.returns = {"OnnxParser.parse_from_file": build._parse, **build.trt.returns}
        main()
        answers = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line]
        assert all("progress" in answer for answer in answers[:-1])
        last: dict[str, Any] = answers[-1]
        return last

    return run
