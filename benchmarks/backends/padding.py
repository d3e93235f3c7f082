"""Images of any number in, outputs out, of something that serves certain batches only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastervit_trt.benchmarks.backends.runner import Outputs
from fastervit_trt.export.batch import BatchRange

__all__ = ["outputs_of_any_batch"]


def outputs_of_any_batch(run: Callable[[np.ndarray], Outputs], batch: BatchRange, images: np.ndarray) -> Outputs:
    """Every output (N, …) of ``images`` (N, 3, H, W), in calls of at most ``batch.maximum``; the last one is padded."""
    chunks: list[Outputs] = []
    for start in range(0, len(images), batch.maximum):
        chunk = images[start : start + batch.maximum]
        missing = batch.minimum - len(chunk)
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)]) if missing > 0 else chunk
        chunks.append(tuple(output[: len(chunk)] for output in run(padded)))
    return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))
