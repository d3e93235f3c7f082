"""Builds that were made before: what is taken from the cache, what is no hit, which times of kernels are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fastervit_trt.engines.build import BuildRequest, PluginLibrary, build_engine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from tests.engines.builds import LIMIT, ORIN, RTX, Built, PretendedWorker, builds, posix


@builds
@pytest.mark.usefixtures("_no_worker")
def test_the_same_build_again_is_a_copy(built: Built, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    request = replace(built.request, engine=tmp_path / "again.engine")
    again = build_engine(request, lambda *step: seen.append(step), built.cache)
    assert again == replace(built.engine, path=request.engine, from_cache=True)
    assert request.engine.read_bytes() == built.engine.path.read_bytes()
    assert seen == [("from the cache", 1, 1)]


@builds
def test_a_damaged_entry_is_built_anew(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = EngineCache(tmp_path / "cache", LIMIT)
    shutil.copytree(built.cache.folder, cache.folder)
    (entry,) = cache.entries()
    content = bytearray((entry.path / "engine").read_bytes())
    content[len(content) // 2] ^= 1
    (entry.path / "engine").write_bytes(content)
    request = replace(built.request, engine=tmp_path / "again.engine")
    again = build_engine(request, cache=cache)
    assert again.from_cache is False
    assert "is damaged; it is removed and built anew" in capsys.readouterr().err
    assert request.engine.read_bytes() != bytes(content)
    assert (cache.entries()[0].path / "engine").read_bytes() == request.engine.read_bytes()


@posix
def test_without_a_cache_every_build_is_built(for_orin: BuildRequest, worker: PretendedWorker) -> None:
    contents = set()
    for _ in range(2):
        assert build_engine(for_orin, machine=ORIN).from_cache is False
        contents.add(for_orin.engine.read_text())
    assert len(worker.jobs) == len(contents) == 2
    assert {job["timing_cache"] for job in worker.jobs} == {None}


@posix
@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"profiles": (BatchRange(1, 4, 9),)},
        {"profiles": (BatchRange(1, 4, 8), BatchRange(1, 1, 1))},
        {"options": BuildOptions(workspace_mib=64)},
        {"machine": replace(ORIN, version="10.4.0.26")},
        {"machine": replace(ORIN, gpu="Orin Nano")},
        {"machine": replace(ORIN, driver="540.5.0")},
        {"machine": replace(ORIN, capability="8.9")},
        {"plugins": b"library"},
        {"plugins": b"another library"},
        {"onnx": "weights"},
    ],
)
def test_anything_else_is_no_hit(
    change: dict[str, Any], for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache, tmp_path: Path
) -> None:
    if "plugins" in change:
        (tmp_path / "plugins.so").write_bytes(b"library")
        with_library = replace(for_orin, plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"))
        before = with_library if change["plugins"] != b"library" else for_orin
        (tmp_path / "plugins.so").write_bytes(change["plugins"])
        after = replace(before, plugins=PluginLibrary.of(tmp_path / "plugins.so", "0.1.0"))
    elif "onnx" in change:
        graph = onnx.load(for_orin.onnx)
        weights = numpy_helper.to_array(graph.graph.initializer[0])
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights + 1, graph.graph.initializer[0].name))
        onnx.save(graph, tmp_path / "model.onnx")
        before, after = for_orin, replace(for_orin, onnx=tmp_path / "model.onnx")
    else:
        before, after = for_orin, replace(for_orin, **{k: v for k, v in change.items() if k != "machine"})
    build_engine(before, cache=cache, machine=ORIN)
    assert build_engine(before, cache=cache, machine=ORIN).from_cache is True
    assert build_engine(after, cache=cache, machine=change.get("machine", ORIN)).from_cache is False
    assert len(worker.jobs) == 2 and len({path.name for path in cache.folder.glob("[0-9a-f]*")}) == 2


@posix
def test_weights_beside_a_graph_are_part_of_it(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache, tmp_path: Path
) -> None:
    graph = onnx.load(for_orin.onnx)
    onnx.save(graph, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    request = replace(for_orin, onnx=tmp_path / "m.onnx")
    build_engine(request, cache=cache, machine=ORIN)
    assert build_engine(request, cache=cache, machine=ORIN).from_cache is True
    weights = np.fromfile(tmp_path / "m.data", dtype=np.uint8)
    weights[100] ^= 1
    weights.tofile(tmp_path / "m.data")
    assert build_engine(request, cache=cache, machine=ORIN).from_cache is False
    (tmp_path / "m.data").unlink()
    with pytest.raises(FasterViTError, match=r"m\.data', which holds weights"):
        build_engine(request, cache=cache, machine=ORIN)


@posix
def test_the_target_of_rtx_is_part_of_it_and_the_gpu_here_is_not(
    request_of: Callable[..., BuildRequest], worker: PretendedWorker, cache: EngineCache
) -> None:
    build_engine(request_of(), cache=cache, machine=RTX)
    here = replace(RTX, gpu="RTX 4090", capability="8.9", driver="580.1")
    assert build_engine(request_of(), cache=cache, machine=here).from_cache is True
    assert build_engine(request_of(compute_capability="8.6"), cache=cache, machine=here).from_cache is False


@posix
def test_times_of_kernels_are_kept_for_other_builds(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache
) -> None:
    for maximum in (8, 9):
        build_engine(replace(for_orin, profiles=(BatchRange(1, 4, maximum),)), cache=cache, machine=ORIN)
    assert [job["timing_known"] for job in worker.jobs] == [None, " timings 1"]
    kept = cache.timing_cache("tensorrt", "10.3.0.26", "Orin", "8.7")
    assert kept is not None and kept.read_text() == " timings 1 timings 2"


@posix
def test_what_a_failed_build_timed_is_not_kept(
    for_orin: BuildRequest, worker: PretendedWorker, cache: EngineCache
) -> None:
    worker.will("refused")
    with pytest.raises(FasterViTError):
        build_engine(for_orin, cache=cache, machine=ORIN)
    assert cache.timing_cache("tensorrt", "10.3.0.26", "Orin", "8.7") is None
    assert cache.entries() == []
