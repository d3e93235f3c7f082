"""An engine's kernels beside the graph it was built from: what runs in which precision, what is fused, what was added.

Every line is in the words of the model: ``stages.2.blocks.3.hat_attn``; TensorRT's own names are a detail of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fastervit_trt.engines.explain import ATTENTIONS, Work, work_of_graph
from fastervit_trt.engines.failures import block_of_node
from fastervit_trt.engines.kernels import EngineKernels, Kernel, Kind
from fastervit_trt.engines.shapes import with_all_shapes
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK

__all__ = ["Attention", "Audit", "Block", "Product", "Stage", "audit_engine"]

_BITS = {"fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8}
_PRODUCTS = (Kind.GEMM, Kind.CONVOLUTION, Kind.ATTENTION, Kind.PLUGIN)
_MOVED = (Kind.REFORMAT, Kind.CAST, Kind.MOVEMENT)
_NARROW = 8  # bits: operands of this size may be widened before they are multiplied
_NAMED = 3  # blocks in a sentence
OTHER = "input and output"  # casts and rearrangements of images and logits


@dataclass(frozen=True)
class Product:
    """One matrix product, convolution or attention of the graph, and what the engine runs it in."""

    node: str
    block: str
    asked: str  # type in the graph
    ran: str | None  # type of its operands in the engine; None where the engine does not show it
    macs: int  # multiplications per image
    kernel: str | None  # TensorRT's name of what computes it


@dataclass(frozen=True)
class Attention:
    """One attention of the model: one kernel, a plugin, or left in parts."""

    block: str
    form: str  # "one kernel", "plugin" or "in parts"
    kernels: tuple[str, ...]  # TensorRT's names of everything that computes a part of it


@dataclass(frozen=True)
class Block:
    """Launches of one block. A kernel that computes a part of several blocks counts for each of them."""

    block: str
    launches: int
    alone: int  # of these, launches that compute nothing else
    kinds: Mapping[str, int]
    moved: tuple[str, ...]  # TensorRT's names of kernels that only reformat, cast or move


@dataclass(frozen=True)
class Stage:
    """Types of what one stage of the model computes and writes."""

    stage: str
    launches: int  # begun in this stage
    tensors: Mapping[str, int]  # type → tensors written by its kernels
    macs: Mapping[str, int]  # type → multiplications per image


@dataclass(frozen=True)
class Audit:
    """What an engine is, shown from itself."""

    launches: int
    targets: tuple[str, ...]
    stages: tuple[Stage, ...]
    blocks: tuple[Block, ...]
    attentions: tuple[Attention, ...]
    products: tuple[Product, ...]
    reformats: tuple[tuple[str, str], ...]  # (block, kernel) of what TensorRT put in to change layout or type

    def check(self, label: str) -> str | None:
        """Refuse an engine that is not what was asked for, as a "float16" engine that runs in float32.

        Returns:
            What is not proven, where the engine does not show the types of all products; None where all are as asked.

        Raises:
            FasterViTError: products run in another type than the graph's.
        """
        other = [p for p in self.products if p.ran is not None and p.ran != p.asked]
        if other:
            first, share = other[0], sum(p.macs for p in other) / sum(p.macs for p in self.products)
            raise FasterViTError(
                f"{label} is not what was asked for: {first.block} runs in {first.ran}, the graph has {first.asked}; "
                f"so do {len(other)} of {len(self.products)} products, {share:.0%} of the multiplications "
                f"({_some(p.block for p in other)}); try another --precision or release of TensorRT"
            )
        hidden = [p for p in self.products if p.ran is None]
        if not hidden:
            return None
        return (
            f"{label} does not show what {len(hidden)} of {len(self.products)} products run in "
            f"({_some(p.block for p in hidden)}): their precision is not proven"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """What a manifest keeps and a command prints."""
        macs: Counter[str] = Counter()
        for product in self.products:
            macs[product.ran or "not shown"] += product.macs
        total = sum(macs.values()) or 1
        return {
            "launches": self.launches,
            "multiplications": {kind: round(n / total, 4) for kind, n in macs.most_common()},
            "attentions": dict(Counter(a.form for a in self.attentions)),
            "reformats": len(self.reformats),
            "proven": all(p.ran == p.asked for p in self.products),
        }

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"summary": self.summary, **asdict(self)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Audit:
        """From what :meth:`record` gave, after a way through JSON."""
        try:
            return cls(
                launches=record["launches"],
                targets=tuple(record["targets"]),
                stages=tuple(Stage(**stage) for stage in record["stages"]),
                blocks=tuple(Block(**{**block, "moved": tuple(block["moved"])}) for block in record["blocks"]),
                attentions=tuple(Attention(**{**a, "kernels": tuple(a["kernels"])}) for a in record["attentions"]),
                products=tuple(Product(**product) for product in record["products"]),
                reformats=tuple((block, kernel) for block, kernel in record["reformats"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FasterViTError(f"this is no audit of an engine ({error}); make it again") from error


def audit_engine(onnx_path: Path, kernels: EngineKernels) -> Audit:
    """Match what the engine launches with the graph it was built from.

    Args:
        kernels: of the plan or of the inspector's answer.
    """
    model = with_all_shapes(ir.load(onnx_path))
    computing = _kernels_of_nodes(model, kernels)
    products = tuple(_product(work, computing[work.node]) for work in work_of_graph(model))
    placed = list(_placed(model, kernels))
    return Audit(
        launches=kernels.launches,
        targets=kernels.targets,
        stages=tuple(_stages(placed, products)),
        blocks=tuple(_block_launches(placed)),
        attentions=tuple(_attentions(model, computing)),
        products=products,
        reformats=tuple((_first(blocks), k.name) for blocks, k in placed if k.kind in (Kind.REFORMAT, Kind.CAST)),
    )


def _kernels_of_nodes(model: ir.Model, kernels: EngineKernels) -> defaultdict[str, list[Kernel]]:
    """Node of the graph → kernels that compute it or, where it is a call, a part of it."""
    names = {node.name or "" for node in model.graph}
    found: defaultdict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels.kernels:
        for node in dict.fromkeys(_outermost(name) for name in kernel.nodes):
            if node in names:
                found[node].append(kernel)
    return found


def _product(work: Work, kernels: list[Kernel]) -> Product:
    """The widest type among the kernels that multiply for this node; none where one of them hides what may be wider."""
    multiplying = [kernel for kernel in kernels if kernel.kind in _PRODUCTS] or list(filter(_weighs, kernels))
    types = [(kernel, _operand_type(kernel)) for kernel in multiplying]
    shown = [(kernel, type_) for kernel, type_ in types if type_ is not None]
    kernel, ran = max(shown, key=lambda item: _BITS[item[1]], default=(None, None))
    if kernel is None or (ran == work.type and len(shown) < len(types)):
        return Product(work.node, work.block, work.type, None, work.macs, None)
    return Product(work.node, work.block, work.type, ran, work.macs, kernel.name)


def _weighs(kernel: Kernel) -> bool:
    """Whether it multiplies activations with weights, as a sum of products where the batch is 1."""
    constant = {tensor.constant for tensor in kernel.inputs if tensor.is_matrix}
    return constant == {True, False}


def _operand_type(kernel: Kernel) -> str | None:
    """What a product is computed in: the wider type of its two narrowest matrices; None where it is not shown.

    Sums fused into it may bring wider matrices, and weights alone may be narrower (they are widened before). Where
    TensorRT withholds the types of activations, as 10.x may with a dynamic batch, the weights' type has to do, unless
    it is the narrow one.
    """
    matrices = [tensor for tensor in kernel.inputs if tensor.is_matrix]
    types = sorted((tensor.type for tensor in matrices if tensor.type in _BITS), key=_BITS.__getitem__)
    if not types:
        return None
    if len(types) == len(matrices):
        type_ = types[min(1, len(types) - 1)]
        return None if _BITS[type_] == _NARROW and _casts_before(kernel) else type_
    weights = [t.type for t in matrices if t.constant and _BITS.get(t.type, _NARROW) > _NARROW]
    return weights[0] if weights and kernel.kind in (Kind.GEMM, Kind.CONVOLUTION) else None


def _casts_before(kernel: Kernel) -> bool:
    """Whether its operands are cast on their way into the product: then their type in memory is not what it runs in."""
    before = takewhile(lambda operation: operation not in ("Fc", "Corr"), kernel.operations)
    return "Cast" in before


def _attentions(model: ir.Model, computing: Mapping[str, list[Kernel]]) -> Iterator[Attention]:
    """Attentions of the model, called or written out: all that is computed in their blocks."""
    nodes: defaultdict[str, list[str]] = defaultdict(list)
    attending = set()
    for node in model.graph:
        block = str(node.metadata_props.get(BLOCK, ""))
        nodes[block].append(node.name or "")
        if node.op_type in (*ATTENTIONS, "Attention", "Softmax"):
            attending.add(block)
    for block in (block for block in nodes if block in attending):
        kernels = list({id(k): k for node in nodes[block] for k in computing[node]}.values())
        kinds = {kernel.kind for kernel in kernels}
        form = "plugin" if Kind.PLUGIN in kinds else "one kernel" if Kind.ATTENTION in kinds else "in parts"
        yield Attention(block, form, tuple(kernel.name for kernel in kernels))


def _block_launches(placed: Iterable[tuple[tuple[str, ...], Kernel]]) -> Iterator[Block]:
    of_block: defaultdict[str, list[tuple[bool, Kernel]]] = defaultdict(list)
    for blocks, kernel in placed:
        for block in blocks or (OTHER,):
            of_block[block].append((len(blocks) <= 1, kernel))
    for block, launches in of_block.items():
        kinds = Counter(kernel.kind.value for _, kernel in launches)
        moved = tuple(kernel.name for _, kernel in launches if kernel.kind in _MOVED)
        yield Block(block, len(launches), sum(alone for alone, _ in launches), dict(kinds), moved)


def _stages(placed: Iterable[tuple[tuple[str, ...], Kernel]], products: Iterable[Product]) -> Iterator[Stage]:
    launches: Counter[str] = Counter()
    tensors: defaultdict[str, Counter[str]] = defaultdict(Counter)
    macs: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for blocks, kernel in placed:
        stage = _stage(_first(blocks))
        launches[stage] += 1
        tensors[stage].update(tensor.type for tensor in kernel.outputs if not tensor.constant)
    for product in products:
        macs[_stage(product.block)][product.ran or "not shown"] += product.macs
    for stage in dict.fromkeys((*launches, *macs)):
        yield Stage(stage, launches[stage], dict(tensors[stage]), dict(macs[stage]))


def _placed(model: ir.Model, kernels: EngineKernels) -> Iterator[tuple[tuple[str, ...], Kernel]]:
    """Every kernel with its blocks; one whose nodes TensorRT does not keep belongs to whatever wrote its input."""
    order = {node.name or "": index for index, node in enumerate(model.graph)}
    written: dict[str, tuple[str, ...]] = {}
    for kernel in kernels.kernels:
        sources = (written[tensor.name] for tensor in kernel.inputs if tensor.name in written)
        blocks = _blocks(kernel, order) or next(sources, ())
        written.update((tensor.name, blocks) for tensor in kernel.outputs)
        yield blocks, kernel


def _blocks(kernel: Kernel, order: Mapping[str, int]) -> tuple[str, ...]:
    """Blocks whose nodes it computes, in the order of the graph."""
    nodes = sorted(map(_outermost, kernel.nodes), key=lambda name: order.get(name, len(order)))
    return tuple(dict.fromkeys(filter(None, map(block_of_node, nodes))))


def _first(blocks: tuple[str, ...]) -> str:
    return blocks[0] if blocks else OTHER


def _stage(block: str) -> str:
    """``stages.2`` of ``stages.2.blocks.3.attn``, also within a ``backbone``; ``patch_embed``, ``head``."""
    parts = block.removeprefix("backbone.").split(".")
    return OTHER if parts[0] == "model" else ".".join(parts[:2]) if parts[0] == "stages" else parts[0]


def _outermost(name: str) -> str:
    """The graph's node of a name as TensorRT keeps it: ``"Gemm_0 | stages.2.….attn/CarrierAttention_0 (…)"``."""
    return name.split(" | ")[-1].split(" ")[0]


def _some(blocks: Iterable[str]) -> str:
    names = list(dict.fromkeys(blocks))
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
