"""Masks and detections by chance, and the same as another runtime might yield them: what comparisons are judged by."""

from __future__ import annotations

import numpy as np

__all__ = ["QUERIES", "SIDES", "disturbed", "some_detections", "some_masks"]

QUERIES, SIDES = 7, (5, 6)
_CLASSES = 3
Outputs = dict[str, np.ndarray]


def some_masks(count: int, seed: int = 0) -> Outputs:
    """``masks`` (count, 5, 6)."""
    return {"masks": np.random.default_rng(seed).integers(0, _CLASSES, (count, *SIDES)).astype(np.float32)}


def some_detections(count: int, seed: int = 0) -> Outputs:
    """``boxes`` (count, 7, 4), ``scores`` (count, 7), falling, and ``labels`` (count, 7), of some seeds one alone."""
    rng = np.random.default_rng(seed)
    classes = 1 if seed % 4 == 3 else _CLASSES
    return {
        "boxes": np.sort(rng.random((count, QUERIES, 4)), axis=2).astype(np.float32),
        "scores": -np.sort(-rng.random((count, QUERIES)), axis=1).astype(np.float32),
        "labels": rng.integers(0, classes, (count, QUERIES)).astype(np.float32),
    }


def disturbed(detections: Outputs, seed: int) -> Outputs:
    """Moved a little or a lot, in another order, some with another label, some far outside of the image."""
    rng = np.random.default_rng(seed)
    found = {name: rows.copy() for name, rows in detections.items()}
    for image in range(len(found["scores"])):
        scale = 10.0 ** rng.uniform(-5, 0)
        found["boxes"][image] += scale * rng.standard_normal((QUERIES, 4))
        found["scores"][image] = np.clip(found["scores"][image] + scale * rng.standard_normal(QUERIES), 0, 1)
        if rng.random() < 0.5:
            found["labels"][image, rng.integers(QUERIES)] = rng.integers(0, _CLASSES + 1)
        if rng.random() < 0.3:
            found["boxes"][image, rng.integers(QUERIES)] += 5
        order = rng.permutation(QUERIES)
        for rows in found.values():
            rows[image] = rows[image][order]
    return found
