"""What differs between real engines of one model, in the model's words."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from fastervit_trt.engines.audit import Audit, Block, Product, audit_engine
from fastervit_trt.engines.audit_difference import Difference, differences
from fastervit_trt.engines.plan import plan_kernels
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from tests.engines.graphs import Graphs

builds = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))
BARE = Audit(3, ("sm89",), (), (), (), (), ())


def audit(graphs: Graphs, name: str, capability: str = "8.9") -> Audit:
    return audit_engine(graphs(name), plan_kernels(graphs.plan(name, capability)))


@builds
@pytest.mark.parametrize("name", ["fp16", "int8", "int8-inline"])
def test_an_engine_does_not_differ_from_itself(graphs: Graphs, name: str) -> None:
    assert differences(audit(graphs, name), audit(graphs, name)) == []


@builds
def test_quantising_changes_the_types_of_layers_and_launches_more(graphs: Graphs) -> None:
    before, after = audit(graphs, "fp16"), audit(graphs, "int8")
    found = differences(before, after)
    assert found[0] == Difference("engine", "launches", str(before.launches), str(after.launches))
    types = [difference for difference in found if difference.what == "runs in"]
    assert [difference.where for difference in types] == [
        product.block for product in after.products if product.block in graphs.quantised_blocks
    ]
    assert {(difference.before, difference.after) for difference in types} == {("fp16", "int8")}
    assert str(types[0]) == "stages.0.blocks.0.conv1: runs in fp16 → int8"
    launches = {difference.where: (difference.before, difference.after) for difference in found}
    assert launches["stages.0.blocks.0.conv1"] == ("1", "3")  # it quantises, multiplies, and leaves its GELU
    kinds = Counter(difference.what for difference in found)
    assert kinds.keys() == {"launches", "runs in", "attention"} - ({"attention"} if not kinds["attention"] else set())
    back = differences(after, before)
    assert {(d.where, d.what, d.after, d.before) for d in back} == {(d.where, d.what, d.before, d.after) for d in found}


@builds
def test_text_is_in_the_words_of_the_model(graphs: Graphs) -> None:
    for difference in differences(audit(graphs, "fp32"), audit(graphs, "fp8")):
        of_model = re.fullmatch(r"(patch_embed|stages|head|model)[\w.]*", difference.where)
        assert of_model or difference.where in ("engine", "input and output")
        assert not re.search("__myl|corrltn|fully_connected|_gemm", str(difference))


@builds
def test_attention_that_was_fused_is_named(graphs: Graphs) -> None:
    found = [d for d in differences(audit(graphs, "fp32"), audit(graphs, "fp16")) if d.what == "attention"]
    (fused,) = (difference for difference in found if difference.after == "one kernel")
    assert fused.where == "stages.3.blocks.0.attn"
    assert re.fullmatch(r"in \d parts", fused.before)


@builds
def test_another_target_is_said(graphs: Graphs) -> None:
    found = differences(audit(graphs, "fp16"), audit(graphs, "fp16", "12.0"))
    assert [str(d) for d in found if d.where == "engine" and d.what != "launches"] == ["engine: built for sm89 → sm120"]


@builds
def test_functions_and_what_they_mean_differ_in_nothing_that_runs(graphs: Graphs) -> None:
    assert differences(audit(graphs, "int8"), audit(graphs, "int8-inline")) == []


def test_what_only_one_engine_has() -> None:
    blocks = (Block("head", 2, 2, {"gemm": 2}, ()),)
    more = replace(BARE, targets=(), blocks=blocks, reformats=(("head", "a"), ("head", "b"), ("stages.0", "c")))
    assert [str(difference) for difference in differences(BARE, more)] == [
        "engine: built for sm89 → –",
        "head: launches – → 2",
        "head: reformats and casts – → 2",
        "stages.0: reformats and casts – → 1",
    ]


def test_products_of_a_block_are_one_line_where_they_agree() -> None:
    def runs(*types: str | None) -> Audit:
        nodes = (f"attn/MatMul_{i}" for i in range(len(types)))
        return replace(
            BARE, products=tuple(Product(n, "attn", "fp16", t, 1, None) for n, t in zip(nodes, types, strict=True))
        )

    assert list(map(str, differences(runs("fp16", "fp16"), runs(None, None)))) == ["attn: runs in fp16 → not shown"]
    assert list(map(str, differences(runs("fp16", "fp16"), runs("fp16", "fp32")))) == [
        "attn: runs in fp16 → fp16 and fp32"
    ]
