"""A peer's result in, whether it is one out: |out - exact| ≤ 2 · |same maths in the same dtype - exact| + one rounding.

Norms are Euclidean, over all elements, relative to that of the exact result; NaN is never right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Judge", "Judgement", "relative_error", "rounding"]

_POISONED_BLOCKS = 4  # freed allocations of a result's size, of which a result gets one


@dataclass(frozen=True)
class Judgement:
    """How far a result is off, and how far it may be."""

    error: float
    allowed: float

    @property
    def right(self) -> bool:
        return self.error <= self.allowed


class Judge:
    """Knows the exact results of a case, and the reference's error in its dtype, on the draws that are judged.

    Args:
        sets: inputs; the first and the last are judged.
        exact: their result, as exactly as can be had.
        same: their result by the reference, in their dtype.
    """

    def __init__(
        self, sets: Sequence[tuple[Tensor, ...]], exact: Callable[..., Tensor], same: Callable[..., Tensor]
    ) -> None:
        self.draws = sorted({0, len(sets) - 1})
        self._exact = {i: exact(*sets[i]) for i in self.draws}
        self._same = {i: relative_error(same(*sets[i]), self._exact[i]) for i in self.draws}

    def __call__(
        self,
        call: Callable[..., Any],
        sets: Sequence[tuple[Any, ...]],
        view: Callable[[Any], Tensor],
        exact: Callable[..., Tensor] | None = None,
        a_rounding: float | None = None,
    ) -> Judgement:
        """Of ``view(call(*set))``.

        Args:
            exact: where the call solves the task on inputs that are rounded further.
            a_rounding: relative, of its result; that of its dtype by default.
        """
        judgements = []
        for i in self.draws:
            expected = self._exact[i] if exact is None else exact(*sets[i])
            _poison(expected)
            result = view(call(*sets[i]))
            one = rounding(result.dtype) if a_rounding is None else a_rounding
            judgements.append(Judgement(relative_error(result, expected), 2 * self._same[i] + one))
        # min() would pass over NaN
        wrong = [judgement for judgement in judgements if not judgement.right]
        return (wrong or sorted(judgements, key=lambda judgement: judgement.error / judgement.allowed))[-1]


def relative_error(result: Tensor, exact: Tensor) -> float:
    """|result - exact| / |exact|; infinite where shapes differ."""
    if result.shape != exact.shape:
        return torch.inf
    wide = torch.float64 if exact.dtype == torch.float64 else torch.float32
    return ((result.to(wide) - exact).norm() / exact.norm()).item()


def rounding(dtype: torch.dtype) -> float:
    """Root mean square of a rounding to ``dtype``, at most: half a unit, evenly distributed."""
    return torch.finfo(dtype).eps / 2 / 3**0.5


def _poison(like: Tensor) -> None:
    """Fill memory that the allocator will hand out next with 0xFF: NaN, where it is read as floating point."""
    for size in (2, 4):  # bytes of an element that the result may have
        blocks = [like.new_full((like.numel() * size,), 0xFF, dtype=torch.uint8) for _ in range(_POISONED_BLOCKS)]
        del blocks
