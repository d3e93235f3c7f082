"""The graph that a release's parser gets: as it was exported, or, from parsers without local functions, a flat one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fastervit_trt.export import graph as graph_module
from tests.engines.worker_builds import RELEASES, WITHOUT_FUNCTIONS, Build


@pytest.mark.parametrize("release", RELEASES)
def test_parsers_that_prefer_plugins_get_the_graph_as_it_is(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release).run()
    if release in WITHOUT_FUNCTIONS:
        assert build.parsed == [f"{build.job.scratch}/model.onnx"]
    else:
        assert build.parsed == [build.job.onnx]
        assert not list(Path(build.job.scratch).iterdir())


@pytest.mark.parametrize("release", WITHOUT_FUNCTIONS)
def test_a_flat_graph_has_no_functions_and_no_calls(release: str, build_of: Callable[..., Build]) -> None:
    build = build_of(release).run()
    assert build.graph is not None
    assert list(build.graph.functions) == []
    assert {node.domain for node in build.graph.graph.node} == {""}
    assert {opset.domain for opset in build.graph.opset_import} == {""}
    assert ir.load(build.job.onnx).functions  # the export keeps them


@pytest.mark.parametrize("release", WITHOUT_FUNCTIONS)
def test_operators_that_plugins_serve_stay_nodes_without_function(
    release: str, build_of: Callable[..., Build], tmp_path: Path
) -> None:
    source = onnx.load(build_of(release).job.onnx)
    calls = [node for node in source.graph.node if node.domain == "fastervit"]
    for call in calls:
        if call.op_type == "CarrierAttention" or call.name.startswith("stages.3.blocks.0.attn/"):
            for name in ("plugin_namespace", "plugin_version"):  # as the exporter leaves what no kernel serves
                call.attribute.remove(next(a for a in call.attribute if a.name == name))
    onnx.save(source, tmp_path / "partly.onnx")
    build = build_of(release, onnx=str(tmp_path / "partly.onnx"), plugin_library="/opt/plugins.so").run()
    assert build.graph is not None and list(build.graph.functions) == []
    left = {node.name: node for node in build.graph.graph.node if node.domain == "fastervit"}
    served = [call.name for call in calls if any(a.name == "plugin_namespace" for a in call.attribute)]
    assert list(left) == served and len(served) == len(calls) - 2
    for node in left.values():
        attributes = {attribute.name: attribute.s for attribute in node.attribute}
        assert attributes["plugin_namespace"] == b"fastervit"
    inlined = {node.name.partition("/")[0] for node in build.graph.graph.node if node.op_type == "Softmax"}
    assert inlined == {"stages.2.blocks.0.hat_attn", "stages.3.blocks.0.attn"}
    assert {opset.domain for opset in build.graph.opset_import} == {"", "fastervit"}


@pytest.mark.parametrize("plugins", [None, "/opt/plugins.so"])
def test_weights_that_lie_beside_a_large_graph_are_found(
    plugins: str | None, build_of: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build_of("10.3").job.onnx
    ir.save(ir.load(source), tmp_path / "large.onnx", external_data="large.onnx.data", size_threshold_bytes=0)
    monkeypatch.setattr(graph_module, "_EXTERNAL_DATA_BYTES", 1000)
    build = build_of("10.3", onnx=str(tmp_path / "large.onnx"), plugin_library=plugins).run()
    assert build.graph is not None
    scratch = Path(build.job.scratch)
    assert {path.name for path in scratch.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (scratch / "model.onnx.data").stat().st_size > 50_000
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in build.graph.graph.initializer}
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    shared = found.keys() & expected.keys()
    assert len(shared) > 60
    for name in shared:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
