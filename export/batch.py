"""``--batch N`` or ``--batch MIN:OPT:MAX``: a static batch, or a range with the size to optimise for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastervit_trt.errors import FasterViTError

__all__ = ["BatchRange", "Outputs", "run_padded"]

Outputs = tuple[np.ndarray, ...]  # in the order of the manifest; the first axis of each is the image's


@dataclass(frozen=True)
class BatchRange:
    """Batch sizes an export serves; static when all three agree."""

    minimum: int
    optimum: int
    maximum: int

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """``"8"`` or ``"1:8:32"``.

        Raises:
            FasterViTError: not of that form, or not 1 ≤ MIN ≤ OPT ≤ MAX.
        """
        try:
            sizes = [int(part) for part in text.split(":")]
        except ValueError:
            sizes = []
        if len(sizes) == 1:
            sizes *= 3
        if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise FasterViTError(f"batch '{text}' is neither N nor MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX")
        return cls(*sizes)

    @property
    def dynamic(self) -> bool:
        return self.minimum != self.maximum

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}" if self.dynamic else str(self.optimum)


def run_padded(run: Callable[[np.ndarray], Outputs], batch: BatchRange, images: np.ndarray) -> Outputs:
    """Every output (N, …) of ``images`` (N, 3, H, W), in calls of at most ``batch.maximum``; the last one is padded."""
    chunks: list[Outputs] = []
    for start in range(0, len(images), batch.maximum):
        chunk = images[start : start + batch.maximum]
        missing = batch.minimum - len(chunk)
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)]) if missing > 0 else chunk
        chunks.append(tuple(output[: len(chunk)] for output in run(padded)))
    return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))
