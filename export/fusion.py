"""What must be one operator in an exported graph is one operator: counted, recorded, and refused where it is not.

A torch release may decompose what the one before kept whole; such a graph still computes the right thing, only slower
and out of reach of the plugins. So every module says which operator it becomes, and its export is held to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK, UNSERVED, fused_calls
from fastervit_trt.export.packed import (
    PackedAttentionHalf,
    PackedCarrierAttention,
    PackedHATStage,
    PackedWindowAttention,
)
from fastervit_trt.plugins.names import DOMAIN

__all__ = ["FusionReport", "block_of_module", "check_operators", "expected_operators", "record_operators"]

_OPERATORS = f"{DOMAIN}.operators"  # metadata of the model: operator → count

# The arithmetic that an operator is made of, in order: what is left of it in a graph that lost it.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "WindowAttention": ("MatMul", "Add", "Softmax", "MatMul"),
    "FusedWindowAttention": ("LayerNormalization", "Gemm", "MatMul", "Add", "Softmax", "MatMul", "Gemm", "Add"),
    "CarrierAttention": ("Add", "LayerNormalization", "Gemm", "MatMul", "Add", "Softmax", "MatMul", "Gemm", "Add"),
    "WindowPartition": ("Transpose", "Add"),
    "WindowPartitionWithCarriers": ("Transpose", "Transpose", "Concat", "Add"),
    "WindowReverse": ("Transpose",),
    "WindowReverseWithCarriers": ("Slice", "Transpose"),
    "WindowReverseWithPropagation": ("Slice", "Gather", "Mul", "Add", "Transpose"),
    "Gelu": ("Div", "Erf", "Add", "Mul", "Mul"),
    "LayerNormalization": ("ReduceMean", "Sub", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"),
}


@dataclass(frozen=True)
class FusionReport:
    """The operators that were kept whole, e.g. ``{"WindowAttention": 11, "CarrierAttention": 6, …}``, and nodes."""

    operators: dict[str, int]
    nodes: int  # of the graph as written
    flat_nodes: int  # with every fused call written out
    unserved: dict[str, list[str]] = field(default_factory=dict)  # why no plugin serves an operator → in which blocks

    @classmethod
    def of(cls, model: ir.Model) -> FusionReport:
        """The report of a graph that :func:`record_operators` has seen; a flat graph keeps what it was made from."""
        hidden = 0
        unserved: dict[str, list[str]] = {}
        for call in fused_calls(model):
            if UNSERVED in call.metadata_props:
                unserved.setdefault(call.metadata_props[UNSERVED], []).append(call.metadata_props[BLOCK])
            body = model.functions[call.op_identifier()]
            hidden += sum(node.op_type != "Constant" for node in body) - 1
        nodes = len(model.graph)
        return cls(json.loads(model.metadata_props[_OPERATORS]), nodes, nodes + hidden, unserved)

    def __str__(self) -> str:
        names = {
            "WindowAttention": "window attentions",
            "FusedWindowAttention": "attention halves of windows",
            "CarrierAttention": "carrier attentions",
        }
        parts = [f"{self.operators[name]} {text}" for name, text in names.items() if name in self.operators]
        return ", ".join(parts) or "no window attention"


def expected_operators(model: nn.Module) -> Counter[tuple[str, str]]:
    """(block, operator) → how often, of a model in deploy form. LayerNorms within an operator are its own."""
    return Counter((block_of_module(name), operator) for name, operator in _operators_of_modules(model))


def block_of_module(name: str) -> str:
    """A module's name as the blocks of a graph are called: ``levels`` reads ``stages``."""
    return name.replace("levels.", "stages.", 1) or "model"


def check_operators(model: nn.Module, graph: ir.Model) -> None:
    """Compare the graph exported from ``model`` with what its modules become.

    Raises:
        FasterViTError: names the first block that lost its operator, and what is left of it there.
    """
    found = Counter((node.metadata_props[BLOCK], node.op_type) for node in graph.graph)
    expected = expected_operators(model)
    lost = [key for key in expected if found[key] < expected[key]]
    if not lost:
        return
    (block, operator), others = lost[0], len(lost) - 1
    matched, best_block = _best_partial_match(graph, block, SIGNATURES[operator])
    missing = Counter(SIGNATURES[operator]) - Counter(matched)
    raise FasterViTError(
        f"torch {torch.__version__} exports {block} without {operator} ({others} more like it); best partial match: "
        f"{len(matched)} of {len(SIGNATURES[operator])} of its steps in {best_block} "
        f"({', '.join(matched) or 'none'}; missing {', '.join(missing) or 'none'}); use the torch of "
        "requirements/constraints.txt and report this"
    )


def record_operators(graph: ir.Model) -> None:
    """Write into the graph how often each operator of :data:`SIGNATURES` occurs."""
    counts = Counter(node.op_type for node in graph.graph if node.op_type in SIGNATURES)
    graph.metadata_props[_OPERATORS] = json.dumps(dict(sorted(counts.items())))


def _operators_of_modules(model: nn.Module) -> Iterator[tuple[str, str]]:
    with_norm = (PackedAttentionHalf, PackedCarrierAttention)
    norms_within = {id(m.norm) for m in model.modules() if isinstance(m, with_norm)}
    for name, module in model.named_modules():
        if isinstance(module, PackedWindowAttention):
            yield name, "WindowAttention"
        elif isinstance(module, PackedAttentionHalf):
            yield name, "FusedWindowAttention"
        elif isinstance(module, PackedCarrierAttention):
            yield name, "CarrierAttention"
        elif isinstance(module, PackedHATStage):
            yield name, "WindowPartition" if module.global_tokenizer is None else "WindowPartitionWithCarriers"
            yield name, _reverse(module)
        elif isinstance(module, nn.GELU):
            yield name, "Gelu"
        elif isinstance(module, nn.LayerNorm) and id(module) not in norms_within:
            yield name, "LayerNormalization"


def _reverse(stage: PackedHATStage) -> str:
    if stage.gamma is not None:
        return "WindowReverseWithPropagation"
    return "WindowReverse" if stage.global_tokenizer is None else "WindowReverseWithCarriers"


def _best_partial_match(graph: ir.Model, block: str, signature: Sequence[str]) -> tuple[list[str], str]:
    """The longest part of ``signature`` found in order within one block, of the block itself or those around it."""
    ops: dict[str, list[str]] = {}
    for node in graph.graph:
        ops.setdefault(node.metadata_props[BLOCK], []).append(node.op_type)
    around = [name for name in ops if name.startswith(block) or block.startswith(f"{name}.")] or list(ops)
    matches = [(_common(ops[name], signature), name) for name in around]
    return max(matches, key=lambda match: (len(match[0]), match[1] == block))


def _common(found: Sequence[str], signature: Sequence[str]) -> list[str]:
    """Longest common subsequence."""
    best: list[list[str]] = [[] for _ in range(len(signature) + 1)]
    for op in found:
        previous = list(best)
        for i, wanted in enumerate(signature):
            best[i + 1] = previous[i] + [op] if op == wanted else max(best[i], previous[i + 1], key=len)
    return best[-1]
