"""An engine's kernels beside the graph it was built from: what runs in which precision, what is fused, what was added.

Every line is in the words of the model: ``stages.2.blocks.3.hat_attn``; TensorRT's own names are a detail of it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fastervit_trt.artifacts import Manifest, sha256_file
from fastervit_trt.engines.explain import ATTENTIONS, Work, work_of_graph
from fastervit_trt.engines.failures import block_of_node
from fastervit_trt.engines.kernels import EngineKernels, Kernel, Kind
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK

__all__ = [
    "Attention",
    "Audit",
    "Block",
    "Product",
    "Stage",
    "audit_engine",
    "audit_name",
    "read_audits",
    "write_audits",
]

_BITS = {"fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8}
_PRODUCTS = (Kind.GEMM, Kind.CONVOLUTION, Kind.ATTENTION, Kind.PLUGIN)
_MOVED = (Kind.REFORMAT, Kind.CAST, Kind.MOVEMENT)
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
                f"({_some(p.block for p in other)}); report it with the versions of TensorRT and of the driver"
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
    model = ir.load(onnx_path)
    computing = _kernels_of_nodes(model, kernels)
    products = tuple(_product(work, computing[work.node]) for work in work_of_graph(model))
    placed = list(_placed(kernels))
    return Audit(
        launches=kernels.launches,
        targets=kernels.targets,
        stages=tuple(_stages(placed, products)),
        blocks=tuple(_block_launches(placed)),
        attentions=tuple(_attentions(model, computing)),
        products=products,
        reformats=tuple((_first(blocks), k.name) for blocks, k in placed if k.kind in (Kind.REFORMAT, Kind.CAST)),
    )


def audit_name(engine: str) -> str:
    """``model.rtx-sm89.audit.json`` of ``model.rtx-sm89.engine``."""
    return f"{engine.removesuffix('.engine')}.audit.json"


def write_audits(audits: Sequence[Audit], path: Path) -> None:
    """The audits of an engine, one per optimisation profile, as JSON."""
    path.write_text(json.dumps([audit.record() for audit in audits], indent=1) + "\n")


def read_audits(path: Path) -> dict[str, Audit]:
    """Engine → audit, of an export folder or of one engine in one; ``"….engine, profile 1"`` where it has several.

    Raises:
        FasterViTError: no export, no engine, or an audit that is missing or not the one the manifest lists.
    """
    folder = path.parent if path.is_file() else path
    manifest = Manifest.read(folder)
    engines = [record["file"] for record in manifest.engines if not path.is_file() or record["file"] == path.name]
    if not engines:
        listed = f"the manifest lists no engine '{path.name}'" if path.is_file() else f"'{folder}' has no engines"
        raise FasterViTError(f"{listed}; build one with: fastervit-engine build {folder}")
    audits: dict[str, Audit] = {}
    for engine in engines:
        file = folder / audit_name(engine)
        if not file.is_file() or sha256_file(file) != manifest.files.get(file.name, {}).get("sha256"):
            raise FasterViTError(
                f"'{file}' is not what the manifest describes; build again: fastervit-engine build {folder}"
            )
        records = json.loads(file.read_text())
        names = [engine] if len(records) == 1 else [f"{engine}, profile {i}" for i in range(len(records))]
        audits.update(zip(names, map(Audit.from_record, records), strict=True))
    return audits


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
    """The widest type among the kernels that multiply for this node."""
    multiplying = [kernel for kernel in kernels if kernel.kind in _PRODUCTS] or list(filter(_weighs, kernels))
    shown = [(kernel, kind) for kernel in multiplying if (kind := _operand_type(kernel)) is not None]
    if not shown:
        return Product(work.node, work.block, work.type, None, work.macs, None)
    kernel, ran = max(shown, key=lambda item: _BITS.get(item[1], 64))
    return Product(work.node, work.block, work.type, ran, work.macs, kernel.name)


def _weighs(kernel: Kernel) -> bool:
    """Whether it multiplies activations with weights, as a sum of products where the batch is 1."""
    constant = {tensor.constant for tensor in kernel.inputs if tensor.is_matrix}
    return constant == {True, False}


def _operand_type(kernel: Kernel) -> str | None:
    """What a product is computed in: the wider type of its two narrowest matrices.

    Sums fused into it may bring wider matrices, and weights alone may be narrower (they are widened before). Where
    TensorRT withholds the types of activations, as 10.x may with a dynamic batch, the weights' type has to do.
    """
    matrices = [tensor for tensor in kernel.inputs if tensor.is_matrix]
    kinds = sorted((tensor.type for tensor in matrices if tensor.type in _BITS), key=_BITS.__getitem__)
    if len(kinds) < len(matrices) and not any(t.constant and t.type in _BITS for t in matrices):
        return None
    return kinds[min(1, len(kinds) - 1)] if kinds else None


def _attentions(model: ir.Model, computing: Mapping[str, list[Kernel]]) -> Iterator[Attention]:
    """Attentions of the model, called or written out."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for node in model.graph:
        block = str(node.metadata_props.get(BLOCK, ""))
        within = node.op_type in ("MatMul", "Attention") and block.endswith("attn")
        if within or node.op_type in (*ATTENTIONS, "Softmax"):
            parts[block].append(node.name or "")
    for block, nodes in parts.items():
        kernels = list({id(k): k for node in nodes for k in computing[node]}.values())
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
    for stage in launches:
        yield Stage(stage, launches[stage], dict(tensors[stage]), dict(macs[stage]))


def _placed(kernels: EngineKernels) -> Iterator[tuple[tuple[str, ...], Kernel]]:
    """Every kernel with its blocks; one whose nodes TensorRT does not keep belongs to whatever wrote its input."""
    written: dict[str, tuple[str, ...]] = {}
    for kernel in kernels.kernels:
        sources = (written[tensor.name] for tensor in kernel.inputs if tensor.name in written)
        blocks = _blocks(kernel) or next(sources, ())
        written.update((tensor.name, blocks) for tensor in kernel.outputs)
        yield blocks, kernel


def _blocks(kernel: Kernel) -> tuple[str, ...]:
    """Blocks whose nodes it computes, in the order they are listed."""
    return tuple(dict.fromkeys(filter(None, (block_of_node(node) for node in kernel.nodes))))


def _first(blocks: tuple[str, ...]) -> str:
    return min(blocks) if blocks else OTHER


def _stage(block: str) -> str:
    """``stages.2`` of ``stages.2.blocks.3.attn``; ``patch_embed``, ``head``."""
    parts = block.split(".")
    return OTHER if parts[0] == "model" else ".".join(parts[:2]) if parts[0] == "stages" else parts[0]


def _outermost(name: str) -> str:
    """The graph's node of a name as TensorRT keeps it: ``"Gemm_0 | stages.2.….attn/CarrierAttention_0 (…)"``."""
    return name.split(" | ")[-1].split(" ")[0]


def _some(blocks: Iterable[str]) -> str:
    names = list(dict.fromkeys(blocks))
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
