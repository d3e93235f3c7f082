"""Engines of an export with and without plugins: TensorRT's part is played by what its inspector says of the graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from fastervit_trt import __version__, building
from fastervit_trt.artifacts import sha256_file
from fastervit_trt.building import EngineResult, Graph, engine_name, make_engine
from fastervit_trt.engine_choice import EngineRequest, PluginChoice
from fastervit_trt.engines.audit import Audit
from fastervit_trt.engines.build import BuildRequest, BuiltEngine
from fastervit_trt.engines.machine import Machine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from tests.engines.graphs import Graphs
from tests.engines.inspections import Inspector
from tests.test_plugin_choice import Sleeping

L4 = Machine("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", "580.65")
WITH, WITHOUT = b"engine with plugins", b"engine without plugins"
ENGINE, AUDIT = "model.trt-sm89.engine", "model.trt-sm89.audit.json"


class TensorRt:
    """Builds at once; what it builds runs as ``inspector`` says, in ``with_ms`` or ``without_ms``."""

    def __init__(self, library: Path) -> None:
        self.inspector = Inspector(11)
        self.with_ms, self.without_ms, self.broken = 1.0, 1.0, False
        self.built: list[BuildRequest] = []
        self.library = library

    def build_engine(self, request: BuildRequest, *_: Any) -> BuiltEngine:
        self.built.append(request)
        request.engine.write_bytes(WITH if request.plugins else WITHOUT)
        inspector = replace(self.inspector, plugins=request.plugins is not None)
        return BuiltEngine(
            path=request.engine,
            runtime=request.runtime,
            version="11.4.0.106",
            compute_capability="8.9",
            gpu="NVIDIA L4",
            driver="580.65",
            profiles=request.profiles,
            options=request.options,
            plugins=request.plugins,
            layers=100,
            seconds=60.0,
            peak_rss_mib=4000,
            from_cache=False,
            retries=(),
            inspection=inspector.text(ir.load(request.onnx)),
        )

    def open_session(self, outputs: object, onnx: Path) -> Callable[[BuiltEngine, int], Sleeping]:
        def opened(engine: BuiltEngine, profile: int) -> Sleeping:
            with_plugins = engine.path.read_bytes() == WITH
            return Sleeping(self.with_ms if with_plugins else self.without_ms, broken=self.broken and with_plugins)

        return opened


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRt:
    library = tmp_path / "lib" / "libfastervit_plugins.so"
    library.parent.mkdir()
    library.write_bytes(b"plugins")
    found = TensorRt(library)
    monkeypatch.setattr(building, "build_engine", found.build_engine)
    monkeypatch.setattr(building, "open_session", found.open_session)
    monkeypatch.setattr(building, "judge_plugins", partial(building.judge_plugins, seconds=0.1))
    monkeypatch.setattr(building, "find_library", lambda kind: library)
    monkeypatch.setattr(building.Machine, "detect", lambda runtime: L4)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "export"
    path.mkdir()
    return path


def make(graphs: Graphs, folder: Path, plugins: PluginChoice = "auto", name: str = "fp16") -> EngineResult:
    batch = BatchRange(1, 4, 8)
    graph = Graph(graphs(name), name, "images", (3, 224, 224), batch, ("logits",), quantised=False)
    return make_engine(graph, EngineRequest("tensorrt", plugins=plugins), folder)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("with_ms", "without_ms", "content"), [(1, 15, WITH), (15, 1, WITHOUT)])
def test_the_faster_engine_is_kept_and_both_times_are(
    graphs: Graphs, tensorrt: TensorRt, folder: Path, with_ms: float, without_ms: float, content: bytes
) -> None:
    tensorrt.with_ms, tensorrt.without_ms = with_ms, without_ms
    result = make(graphs, folder)
    assert [request.plugins is not None for request in tensorrt.built] == [False, True]
    assert names(folder) == {ENGINE, AUDIT} == {path.name for path in result.files}
    assert (folder / ENGINE).read_bytes() == content
    record, kept = result.record, content == WITH
    assert record["file"] == ENGINE
    assert record["plugin_choice"]["kept"] == ("with plugins" if kept else "without plugins")
    (timing,) = record["plugin_choice"]["timings"]
    assert (timing["with_ms"] >= with_ms, timing["without_ms"] >= without_ms) == (True, True)
    form = "plugin" if kept else "one kernel"
    assert record["audit"]["attentions"] == {form: 3}
    (audit,) = map(Audit.from_record, json.loads((folder / AUDIT).read_text()))
    assert {attention.form for attention in audit.attentions} == {form}
    if not kept:
        assert record["plugins"] is None
        return
    assert record["plugins"] == {
        "file": "libfastervit_plugins.so",
        "sha256": sha256_file(tensorrt.library),
        "version": __version__,
        "namespace": "fastervit",
        "attentions": ["stages.2.blocks.0.hat_attn", "stages.2.blocks.0.attn", "stages.3.blocks.0.attn"],
    }


def test_a_tie_goes_to_no_plugins(graphs: Graphs, tensorrt: TensorRt, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fastervit_trt.plugin_choice.interleaved", tie)
    assert make(graphs, folder).record["plugin_choice"]["gain"] == 1
    assert (folder / ENGINE).read_bytes() == WITHOUT


def tie(timers: list[Any], *_: Any) -> None:
    for timer in timers:
        timer.samples.extend([0.001] * 3)


@pytest.mark.parametrize(("plugins", "content"), [("on", WITH), ("off", WITHOUT)])
def test_what_is_asked_for_is_built_alone(
    graphs: Graphs, tensorrt: TensorRt, folder: Path, plugins: PluginChoice, content: bytes
) -> None:
    record = make(graphs, folder, plugins).record
    assert len(tensorrt.built) == 1
    assert (folder / ENGINE).read_bytes() == content
    assert record["plugin_choice"] is None
    assert (record["plugins"] is not None) == (content == WITH)


def test_without_a_library_auto_goes_on_and_on_does_not(
    graphs: Graphs, tensorrt: TensorRt, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(kind: str) -> Path:
        raise FasterViTError("plugin library not found; build it")

    monkeypatch.setattr(building, "find_library", missing)
    assert make(graphs, folder).record["plugins"] is None
    with pytest.raises(FasterViTError, match="plugin library not found"):
        make(graphs, folder, "on")
    assert names(folder) == set()


def test_a_graph_without_operators_for_plugins(graphs: Graphs, tensorrt: TensorRt, folder: Path) -> None:
    flat = "fp16-inline"
    tensorrt.inspector = replace(tensorrt.inspector, ran={})
    with pytest.raises(FasterViTError, match="has no operators that a plugin serves; leave out --plugins on"):
        make(graphs, folder, "on", flat)
    assert tensorrt.built == []


@pytest.mark.parametrize("breaks", ["build", "timing"])
def test_without_plugins_there_is_an_engine_all_the_same(
    graphs: Graphs,
    tensorrt: TensorRt,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    breaks: str,
) -> None:
    def fails(*_: Any) -> Any:
        raise FasterViTError("out of memory")

    def second_fails(request: BuildRequest, *_: Any) -> BuiltEngine:
        built = tensorrt.build_engine(request)
        return built if request.plugins is None else fails()

    if breaks == "build":
        monkeypatch.setattr(building, "build_engine", second_fails)
    else:
        monkeypatch.setattr(building, "judge_plugins", fails)
    record = make(graphs, folder).record
    assert record["plugin_choice"] == {"kept": "without plugins", "because": "out of memory"}
    assert record["plugins"] is None
    assert "warning: plugins are left out: out of memory" in capfd.readouterr().err
    assert (names(folder), (folder / ENGINE).read_bytes()) == ({ENGINE, AUDIT}, WITHOUT)


@pytest.mark.parametrize("breaks", ["build", "timing", "precision", "interrupt"])
def test_nothing_is_left_of_what_fails(
    graphs: Graphs, tensorrt: TensorRt, folder: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    for name in (ENGINE, AUDIT):
        (folder / name).write_text("of before")
    tensorrt.with_ms = 0.1
    expected: type[BaseException] = FasterViTError
    if breaks == "build":

        def second_breaks(request: BuildRequest, *_: Any) -> BuiltEngine:
            if request.plugins is not None:
                request.engine.write_bytes(b"half")
                raise RuntimeError("a defect")
            return tensorrt.build_engine(request)

        monkeypatch.setattr(building, "build_engine", second_breaks)
        expected = RuntimeError
    elif breaks == "timing":
        tensorrt.broken, expected = True, RuntimeError
    elif breaks == "precision":
        tensorrt.inspector = replace(tensorrt.inspector, ran={"*": "Float"})
    else:
        monkeypatch.setattr(building, "judge_plugins", interrupted)
        expected = KeyboardInterrupt
    with pytest.raises(expected):
        make(graphs, folder)
    assert names(folder) == set()


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_an_engine_hides_is_said_and_recorded(
    graphs: Graphs, tensorrt: TensorRt, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensorrt.inspector = replace(tensorrt.inspector, version=10, hides=True)
    record = make(graphs, folder, "off", "int8").record
    assert (record["audit"]["proven"], record["audit"]["multiplications"]["not shown"] > 0) == (False, True)
    assert f"warning: {ENGINE} does not show what 7 of 24 products run in" in capfd.readouterr().err


def test_engines_are_called_after_runtime_and_target() -> None:
    assert engine_name("tensorrt", "9.0") == "model.trt-sm90.engine"
    assert engine_name("tensorrt-rtx", "12.0") == "model.rtx-sm120.engine"
