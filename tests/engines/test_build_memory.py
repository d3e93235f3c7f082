"""Builds that run out of memory: tried again with less, step by step, until one fits or all attempts are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastervit_trt.engines.build import BuildRequest, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.errors import FasterViTError
from tests.engines.builds import ORIN, RTX, PretendedWorker, left_behind, posix


@posix
@pytest.mark.parametrize("how", ["memory", "killed"])
def test_a_build_that_ran_out_of_memory_is_tried_with_less(
    how: str,
    for_orin: BuildRequest,
    worker: PretendedWorker,
    cache: EngineCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker.will(how, how, "ok")
    request = replace(for_orin, options=BuildOptions(workspace_mib=1024, max_tactics=None, shared_memory_kib=48))
    engine = build_engine(request, cache=cache, machine=ORIN)
    limits = {"shared_memory_kib": 48}
    assert worker.options == [
        {"workspace_mib": 1024, **limits},
        {"workspace_mib": 512, "level": 2, **limits},
        {"workspace_mib": 128, "level": 1, **limits},
    ]
    assert engine.options == BuildOptions(workspace_mib=128, level=1, shared_memory_kib=48)
    assert engine.retries == (
        "out of memory with --workspace 1024 --shared-memory 48",
        "out of memory with --workspace 512 --shared-memory 48 --level 2",
    )
    warnings = capsys.readouterr().err.splitlines()
    assert [line.partition("; trying with ")[2] for line in warnings] == [
        "--workspace 512 --shared-memory 48 --level 2",
        "--workspace 128 --shared-memory 48 --level 1",
    ]
    assert left_behind(request, worker) == [request.engine]
    again = build_engine(request, cache=cache, machine=ORIN)  # asked as before, got as before
    assert again == replace(engine, from_cache=True) and len(worker.jobs) == 3


@posix
def test_rtx_is_tried_with_less_workspace_only(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker
) -> None:
    worker.will("killed", "killed", "killed", "ok")
    engine = build_engine(request_of(), machine=RTX)
    assert worker.options == [{}, {"workspace_mib": 2048}, {"workspace_mib": 512}, {"workspace_mib": 128}]
    assert engine.options == BuildOptions(workspace_mib=128)


@posix
def test_when_nothing_helps_all_attempts_are_told(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.will("memory")
    with pytest.raises(FasterViTError) as failed:
        build_engine(for_orin, cache=cache, machine=ORIN)
    assert len(worker.jobs) == 4
    assert str(failed.value) == (
        "TensorRT cannot build an engine for this GPU: OutOfMemory (Requested size was 16581132288 bytes.); close "
        "other programs, lower the largest --batch, or build where there is more memory; before: out of memory with no "
        "limits; out of memory with --workspace 2048 --level 2; out of memory with --workspace 512 --level 1"
    )
    assert capsys.readouterr().err.count("; trying with ") == 3  # not after the last
    assert left_behind(for_orin, worker) == []
    assert cache.entries() == []


@posix
def test_what_less_memory_broke_is_told_with_what_was_tried(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    worker.will("killed", "workspace")
    with pytest.raises(FasterViTError) as failed:
        build_engine(for_orin, machine=ORIN)
    message = str(failed.value)
    assert "within workspace limit; allow more: --workspace MIB" in message
    assert message.endswith("; before: out of memory with no limits")


@posix
def test_where_nothing_is_left_to_lower_one_attempt_is_enough(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker
) -> None:
    worker.will("killed")
    with pytest.raises(FasterViTError, match=r"killed by SIGKILL.*close other programs"):
        build_engine(request_of(options=BuildOptions(workspace_mib=1)), machine=RTX)
    assert len(worker.jobs) == 1
