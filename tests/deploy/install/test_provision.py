"""Engines on arrival: TensorRT and its GPU are played, bundles, keys, graphs and manifests are real."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt import building
from fastervit_trt.artifacts import Manifest, sha256_file
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.bundle.opened import unpack_bundle
from fastervit_trt.deploy.install import provision as provisioning
from fastervit_trt.deploy.install.memory import FreeMemory
from fastervit_trt.deploy.install.provision import BuildWish, Provision, provision
from fastervit_trt.deploy.targets.table import get_target
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engines.keys import Signed, public_key_line, trust_key
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.signing import verify_record
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.plugins.library import VARIABLE, find_library
from tests.deploy.install.conftest import PLENTY
from tests.test_building import L4, WITH, TensorRt

Packed = Callable[[str, str], Path]


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRt:
    """An L4 with TensorRT 11.4, which builds at once; engines with plugins are the faster ones."""
    library = tmp_path / "built-from-sources.so"
    library.write_bytes(b"plugins")
    played = TensorRt(library)
    played.with_ms, played.without_ms = 1.0, 15.0
    monkeypatch.setattr(building, "build_engine", played.build_engine)
    monkeypatch.setattr(building, "open_session", played.open_session)
    monkeypatch.setattr(building, "judge_plugins", partial(building.judge_plugins, seconds=0.1))
    monkeypatch.setattr(Machine, "detect", classmethod(lambda cls, runtime, device=0: L4))

    def build_library(folder: Path, output: Path, *, architectures: str, **_: object) -> Path:
        assert (folder / "CMakeLists.txt").is_file()
        assert architectures == "89"
        output.write_bytes(library.read_bytes())
        return output

    monkeypatch.setattr(provisioning, "build_library", build_library)
    return played


@pytest.fixture
def l4(packed: Packed, tmp_path: Path) -> Bundle:
    return unpack_bundle(packed("fp16", "l4"), tmp_path / "there").bundle


def provided(bundle: Bundle, target: str | Target = "l4", free: FreeMemory = PLENTY, **wish: Any) -> Provision:
    chosen = get_target(target) if isinstance(target, str) else target
    return provision(bundle, chosen, BuildWish(**wish), free, lambda text: nullcontext())


def test_an_engine_is_built_as_the_target_is_used(
    l4: Bundle, tensorrt: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tensorrt.library))  # what lies about here did not come with the bundle
    done = provided(replace_plugin(l4, None))
    (request,) = tensorrt.built
    assert request.plugins is None
    assert request.compute_capability is None  # for the GPU that is here
    assert request.options.workspace_mib == get_target("l4").workspace_mib
    assert [str(profile) for profile in request.profiles] == ["1:4:8"]  # the graph's own: it does not serve 64
    assert (done.backend, done.file, done.origin) == ("tensorrt", "model.trt-sm89.engine", "built")
    assert done.plugin == "none came along"
    manifest = Manifest.read(l4.export_folder)
    (record,) = manifest.engines
    assert verify_record(record, manifest.files).signed is Signed.OWN
    assert done.memory is not None
    assert done.engine() == {**(done.engine() or {}), "file": record["file"], "build_seconds": 60.0}


def test_the_targets_batch_where_the_graph_serves_it(l4: Bundle, tensorrt: TensorRt) -> None:
    small = replace(get_target("l4"), batch="1:2:8", workspace_mib=256)
    provided(replace_plugin(l4, None), small)
    assert [str(profile) for profile in tensorrt.built[0].profiles] == ["1:2:8"]
    assert tensorrt.built[0].options.workspace_mib == 256
    provided(replace_plugin(l4, None), small, profiles=(BatchRange(4, 4, 4),), workspace_mib=99)
    assert [str(profile) for profile in tensorrt.built[1].profiles] == ["4"]
    assert tensorrt.built[1].options.workspace_mib == 99


def test_scarce_memory_lowers_the_workspace(l4: Bundle, tensorrt: TensorRt) -> None:
    scarce = FreeMemory(host=4000, swap=0, device=1800)
    done = provided(replace_plugin(l4, None), free=scarce)
    lowered = tensorrt.built[0].options.workspace_mib
    assert lowered is not None and done.memory is not None
    assert 64 <= lowered < 1800 - done.memory.needed_device
    assert done.memory.workspace == lowered
    with pytest.raises(FasterViTError, match="add swap"):
        provided(replace_plugin(l4, None), free=FreeMemory(host=100, swap=0, device=1800))
    assert len(tensorrt.built) == 1, "nothing was begun that could not end"


def test_plugins_are_built_from_their_sources_and_found_beside_the_export(l4: Bundle, tensorrt: TensorRt) -> None:
    done = provided(l4)
    library = l4.folder / "plugins/libfastervit_plugins.so"
    assert library.is_file()
    assert "built here from its sources for 8.9" in done.plugin
    assert [request.plugins is not None for request in tensorrt.built] == [False, True]
    assert tensorrt.built[1].plugins is not None
    assert tensorrt.built[1].plugins.path == library
    assert (l4.export_folder / "model.trt-sm89.engine").read_bytes() == WITH
    assert done.record is not None
    assert done.record["plugins"]["sha256"] == sha256_file(library)
    assert find_library("plugins", l4.export_folder) == library


def test_without_a_compiler_the_engine_has_no_plugins(
    l4: Bundle, tensorrt: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> Path:
        raise FasterViTError("no nvcc")

    monkeypatch.setattr(provisioning, "build_library", no_compiler)
    done = provided(l4)
    assert [request.plugins for request in tensorrt.built] == [None]
    assert done.plugin == "none: no nvcc"
    with pytest.raises(FasterViTError, match="no nvcc"):
        provided(l4, plugins="on")
    assert provided(l4, plugins="off").plugin == "not wanted"
    with pytest.raises(FasterViTError, match="no plugins came along"):
        provided(replace_plugin(l4, None), plugins="on")


def test_an_engine_that_came_along_is_used_where_it_loads_and_signed_anew(
    l4: Bundle, tensorrt: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace_plugin(l4, None)
    provided(bare)
    packer = public_key_line()
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "target-keys"))
    trust_key(packer)
    came = replace(bare, export=Manifest.read(bare.export_folder))
    done = provided(came)
    assert done.origin == "bundle"
    assert len(tensorrt.built) == 1
    manifest = Manifest.read(bare.export_folder)
    assert verify_record(manifest.engines[0], manifest.files).signed is Signed.OWN
    assert provided(came, rebuild=True).origin == "built"
    monkeypatch.setattr(
        Machine, "detect", classmethod(lambda cls, runtime, device=0: replace(L4, version="10.16.1.11"))
    )
    assert provided(came).origin == "built", "TensorRT of another version does not load it"


def test_times_of_kernels_go_along(
    l4: Bundle, tensorrt: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path / "cache"))
    (l4.folder / "timing").mkdir()
    (l4.folder / "timing/timing.cache").write_bytes(b"times")
    came = {"path": "timing/timing.cache", "version": L4.version, "gpu": L4.gpu, "capability": L4.capability}

    def kept() -> list[bytes]:
        return [path.read_bytes() for path in (tmp_path / "cache").rglob("*.cache")]

    for name, other in (("version", "10.3.0"), ("gpu", "NVIDIA L40S"), ("capability", "9.0")):
        provided(with_timing(l4, {**came, name: other}))
        assert kept() == [], name
    provided(with_timing(l4, came))
    assert kept() == [b"times"]
    (l4.folder / "timing/timing.cache").write_bytes(b"others")
    provided(with_timing(l4, came))
    assert kept() == [b"times"], "what was timed here stays"


def replace_plugin(bundle: Bundle, plugin: dict[str, Any] | None) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, plugin=plugin))


def with_timing(bundle: Bundle, timing: dict[str, Any]) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, plugin=None, timing=timing))
