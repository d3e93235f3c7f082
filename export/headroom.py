"""How far the activations of a written graph are from the end of its type's range, block by block.

float16 ends at 65504, bfloat16 and float32 at 3.4e38. A graph in float16 that comes near needs to know where. ONNX
Runtime alone does not tell: its CPU provider computes float16 in float32 and drops the casts between neighbours, at
every level of optimisation, so that a value beyond 65504 passes on to the next operator unharmed, and a graph that is
NaN on hardware gives good logits. Here every result is rounded to its type before the next operator takes it, and
every floating-point result is looked at, those within the fused operators too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import BLOCK, inline_functions, save_onnx
from fastervit_trt.export.onnx_cpu import OnnxCpuSession, widened_bfloat16

__all__ = ["BlockRange", "Overflow", "block_ranges", "find_overflow", "first_non_finite", "round_every_result"]

# Largest finite value, the narrowest type first: the type of a graph is the first of these among its weights.
_LIMITS = {
    ir.DataType.FLOAT16: torch.finfo(torch.float16).max,
    ir.DataType.BFLOAT16: torch.finfo(torch.bfloat16).max,
    ir.DataType.FLOAT: torch.finfo(torch.float32).max,
}


@dataclass(frozen=True)
class BlockRange:
    """What the results of one block reach; every operator counts, also those that only move data."""

    block: str
    largest: float  # of the magnitudes that are finite
    nan: int
    inf: int
    operator: str  # that yields ``largest``; where results are not finite, the first of those that yield such
    limit: float  # largest finite value of the graph's type

    @property
    def finite(self) -> bool:
        return not self.nan and not self.inf

    @property
    def headroom(self) -> float:
        """By how much the block's results could grow; 0 where they have left the range."""
        if not self.finite:
            return 0.0
        return self.limit / self.largest if self.largest else float("inf")


@dataclass(frozen=True)
class Overflow:
    """The images times ``scale`` are the first to leave the range; ``first`` is the operator's result that does."""

    scale: float
    first: BlockRange


def block_ranges(path: Path, images: np.ndarray) -> tuple[BlockRange, ...]:
    """Run the graph on float32 images (B, 3, H, W); a range per block, in the order in which the graph begins them.

    Raises:
        FasterViTError: nodes without blocks, a batch the graph does not take, or ONNX Runtime refuses the graph.
    """
    blocks: dict[str, BlockRange] = {}
    for result in _Probe(path)(images):
        seen = blocks.get(result.block)
        blocks[result.block] = result if seen is None else _together(seen, result)
    return tuple(blocks.values())


def first_non_finite(path: Path, images: np.ndarray) -> BlockRange | None:
    """The first result in the graph that holds NaN or Inf for any of ``images``, counted alone; None: all are finite.

    What comes before it is finite, so this is where the range was left, or a weight was not finite to begin with. What
    comes after may be finite again: a score of -Inf is a weight of 0 after softmax.

    Raises:
        FasterViTError: as :func:`block_ranges`.
    """
    return _first_non_finite(_Probe(path)(images))


def find_overflow(path: Path, images: np.ndarray, largest_scale: float = 2.0**24) -> Overflow | None:
    """Scale ``images`` by 1, 2, 4, … until a result of the graph is not finite; None: never up to ``largest_scale``.

    Scales at which the images themselves exceed float32 are not tried.

    Raises:
        FasterViTError: as :func:`block_ranges`.
    """
    probe, scale = _Probe(path), 1.0
    brightest = max(1.0, float(np.abs(images).max()))
    while scale <= largest_scale and scale * brightest <= _LIMITS[ir.DataType.FLOAT]:
        first = _first_non_finite(probe(images * np.float32(scale)))
        if first is not None:
            return Overflow(scale, first)
        scale *= 2
    return None


def round_every_result(model: ir.Model) -> list[ir.Value]:
    """Change ``model`` in place so that ONNX Runtime's CPU rounds as the graph says; its floating-point results.

    They must be made outputs of the graph for that. Fused operators are written out. bfloat16 becomes float32 rounded
    to bfloat16. A float16 result goes through an Identity, which ONNX Runtime has in float16 and keeps where its result
    is an output: the cast before and the cast after it then stay, and the next operator takes what was rounded.
    """
    narrow = _type_of(model)
    if narrow is ir.DataType.BFLOAT16:
        widened_bfloat16(model)
    else:
        inline_functions(model)
    if narrow is ir.DataType.FLOAT16:
        for node in list(model.graph):
            for value in node.outputs:
                if value.dtype is narrow:
                    _pass_through_identity(model.graph, node, value)
    return [v for node in model.graph for v in node.outputs if _is_rounded_result(v)]


class _Probe:
    """``probe(images)``: the range of every floating-point result alone, in the graph's order."""

    def __init__(self, path: Path) -> None:
        model = ir.load(path)
        if any(BLOCK not in node.metadata_props for node in model.graph):
            raise FasterViTError(f"nodes of '{path}' do not say to which block they belong; export it anew")
        self._limit = _LIMITS[_type_of(model)]
        batch = model.graph.inputs[0].shape[0] if model.graph.inputs[0].shape is not None else None
        self._batch = batch if isinstance(batch, int) else None
        values = round_every_result(model)
        self._origins = [(origin.metadata_props[BLOCK], origin.op_type) for origin in map(_origin, values)]
        model.graph.outputs[:] = values
        with tempfile.TemporaryDirectory() as scratch:
            (rounded, *_) = save_onnx(model, Path(scratch))
            self._session = OnnxCpuSession(rounded)

    def __call__(self, images: np.ndarray) -> list[BlockRange]:
        ranges: list[BlockRange] = []
        for batch in self._batches(images):
            results = zip(self._origins, self._session(batch), strict=True)
            found = [self._range(block, operator, array) for (block, operator), array in results]
            ranges = [_together(*pair) for pair in zip(ranges, found, strict=True)] if ranges else found
        return ranges

    def _batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """One image at a time where the graph allows it: all results of a batch are held at once."""
        size = self._batch or 1
        if not len(images) or len(images) % size:
            raise FasterViTError(f"the graph takes {size} images at a time, which {len(images)} do not divide into")
        return (images[start : start + size] for start in range(0, len(images), size))

    def _range(self, block: str, operator: str, array: np.ndarray) -> BlockRange:
        magnitudes = np.abs(array.astype(np.float32))
        largest = magnitudes.max(where=np.isfinite(magnitudes), initial=0)
        nan, inf = int(np.isnan(magnitudes).sum()), int(np.isinf(magnitudes).sum())
        return BlockRange(block, float(largest), nan, inf, operator, self._limit)


def _together(first: BlockRange, second: BlockRange) -> BlockRange:
    stays = not first.finite or (second.finite and first.largest >= second.largest)
    largest = max(first.largest, second.largest)
    operator = first.operator if stays else second.operator
    return replace(first, largest=largest, nan=first.nan + second.nan, inf=first.inf + second.inf, operator=operator)


def _first_non_finite(ranges: list[BlockRange]) -> BlockRange | None:
    return next((found for found in ranges if not found.finite), None)


def _type_of(model: ir.Model) -> ir.DataType:
    used = {value.dtype for value in model.graph.initializers.values()}
    return next((dtype for dtype in _LIMITS if dtype in used), ir.DataType.FLOAT)


def _pass_through_identity(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    uses = list(value.uses())
    identity = ir.node("Identity", [value], name=f"{value.name}/rounding")
    rounded = identity.outputs[0]
    rounded.name, rounded.type, rounded.shape = f"{value.name}/rounded", value.type, value.shape
    graph.insert_after(node, identity)
    for user, index in uses:
        user.replace_input_with(index, rounded)


def _is_rounded_result(value: ir.Value) -> bool:
    """A result as the next operator takes it: not what goes into a rounding."""
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) and not any(
        BLOCK not in user.metadata_props for user, _ in value.uses()
    )


def _origin(value: ir.Value) -> ir.Node:
    """The node of the graph as written that made ``value``; nodes that only round carry no block."""
    node = value.producer()
    assert node is not None
    if BLOCK in node.metadata_props:
        return node
    before = node.inputs[0]
    assert before is not None
    return _origin(before)
