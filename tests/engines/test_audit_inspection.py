"""Audits of what the engine inspectors of TensorRT 10 and 11 say of an exported graph (inspections.py)."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir
import pytest

from fastervit_trt.engines.audit import Audit, audit_engine
from fastervit_trt.engines.inspector import kernels_of_inspection
from fastervit_trt.errors import FasterViTError
from tests.engines.graphs import Graphs
from tests.engines.inspections import Inspector

BLOCKS = ("stages.2.blocks.0.hat_attn", "stages.2.blocks.0.attn", "stages.3.blocks.0.attn")


def audit(graphs: Graphs, name: str, version: int, **how: Any) -> Audit:
    text = Inspector(version, **how).text(ir.load(graphs(name)))
    return audit_engine(graphs(name), kernels_of_inspection(text, "'engine'"))


both = pytest.mark.parametrize("version", [10, 11])


@both
@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_products_of_an_engine_with_plugins_are_proven(graphs: Graphs, name: str, version: int) -> None:
    found = audit(graphs, name, version)
    assert len(found.products) == 24
    assert found.check("'engine'") is None
    quantised = {product.block for product in found.products if product.ran in ("int8", "fp8")}
    assert quantised == ({*graphs.quantised_blocks} if name in ("int8", "fp8") else set())
    assert [(a.block, a.form) for a in found.attentions] == [(block, "plugin") for block in BLOCKS]
    operators = [kernel for attention in found.attentions for kernel in attention.kernels]
    assert operators == ["CarrierAttention", "WindowAttention", "WindowAttention"]
    nodes = [node for node in ir.load(graphs(name)).graph if node.op_type != "DequantizeLinear"]
    assert found.launches == sum(stage.launches for stage in found.stages) == len(nodes)


@both
def test_attention_of_the_compiler_is_one_kernel(graphs: Graphs, version: int) -> None:
    found = audit(graphs, "fp16", version, plugins=False)
    assert [(a.form, a.kernels) for a in found.attentions] == [("one kernel", ("_gemm_mha_v2",))] * 3
    assert found.check("'engine'") is None


@both
def test_reformats_are_listed_with_the_block_they_are_in(graphs: Graphs, version: int) -> None:
    around = ("stages.0.blocks.0.conv1/Conv_0", "stages.3.blocks.0.attn/WindowAttention_0")
    found = audit(graphs, "fp16", version, reformatted=around)
    # 10.x says what a reformat is for; of 11.x it is known what it reads
    before = ["patch_embed.conv_down.5", "stages.3.blocks.0.attn.qkv"]
    where = ["stages.0.blocks.0.conv1", "stages.3.blocks.0.attn"] if version == 10 else before
    casts = [("model", "__myl_Cast")] * 2
    name = "Reformat" if version == 10 else "reformat"
    assert [*found.reformats] == [casts[0], (where[0], name), (where[1], name), casts[1]]
    assert found.summary["reformats"] == 4
    assert {block.block: block.moved for block in found.blocks}[where[1]][-1] == name


@both
def test_silent_float32_is_refused(graphs: Graphs, version: int) -> None:
    """As NVIDIA/TensorRT issue 4590: asked for float16, built in float32, and no word about it."""
    with pytest.raises(FasterViTError, match=r"runs in fp32, the graph has fp16; so do 24 of 24 products, 100% of the"):
        audit(graphs, "fp16", version, ran={"*": "Float"}).check("'engine'")
    with pytest.raises(FasterViTError, match=r"runs in fp16, the graph has int8; so do 17 of 24 products"):
        audit(graphs, "int8", version, ran={"*": "Half"}).check("'engine'")


@both
@pytest.mark.parametrize("block", [*BLOCKS, "stages.1.blocks.0.conv1", "stages.2.blocks.0.mlp.fc1", "head"])
def test_one_block_in_float32_is_refused(graphs: Graphs, version: int, block: str) -> None:
    found = audit(graphs, "fp16", version, ran={block: "Float"})
    with pytest.raises(FasterViTError) as refused:
        found.check("'engine'")
    assert f"{block} runs in fp32, the graph has fp16; so do 1 of 24 products" in str(refused.value)
    assert {product.block for product in found.products if product.ran != "fp16"} == {block}


@pytest.mark.parametrize(("name", "hidden"), [("fp16", 0), ("int8", 7)])
def test_what_a_dynamic_batch_hides_is_told_by_wide_weights_alone(graphs: Graphs, name: str, hidden: int) -> None:
    found = audit(graphs, name, 10, hides=True)
    unproven = [product.block for product in found.products if product.ran is None]
    assert len(unproven) == hidden
    assert {*unproven} <= {*graphs.quantised_blocks}
    assert (found.check("'engine'") is None) == found.summary["proven"] == (hidden == 0)


def test_an_opaque_engine_is_not_proven(graphs: Graphs) -> None:
    """``{ForeignNode[…]}``: everything between two nodes, and no word about what is within."""
    nodes = [str(node.name) for node in ir.load(graphs("fp16")).graph]
    tensors = [{"Name": "images", "Location": "Device", "Dimensions": [8, 3, 224, 224], "Format/Datatype": "Half"}]
    layer = {
        "Name": f"{{ForeignNode[{nodes[0]}...{nodes[-1]}]}}",
        "LayerType": "Myelin",
        "Inputs": tensors,
        "Outputs": tensors,
        "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes),
    }
    found = audit_engine(graphs("fp16"), kernels_of_inspection(json.dumps({"Layers": [layer]}), "'engine'"))
    assert "does not show what 24 of 24 products run in" in str(found.check("'engine'"))
    assert [a.form for a in found.attentions] == ["in parts"] * 3
