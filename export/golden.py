"""What a graph was verified with, kept beside it: whoever runs it elsewhere can be held to the same, without PyTorch.

The first image of each kind that verification used, PyTorch's outputs of them, and the largest error allowed per
output: the budget that the graph itself had to keep (:mod:`fastervit_trt.export.verify`). Arrays are files of NumPy's
format, float32 and in C order, which programs without NumPy read, too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_trt.errors import FasterViTError

__all__ = ["Golden", "GoldenComparison", "decision_differences"]

_IMAGES = "golden-images.npy"
_DECIDED = {"masks": "classes of pixels", "boxes": "detections"}  # compared as a whole, not point by point
# On synthetic images a detector is sure of nothing: its scores are all low and near each other, and rounding exchanges
# those in the middle. What is half as sure as the surest counts a sixteenth.
_POWER = 4
_LEAST_SURE = 1e-6  # a largest score below this is none


@dataclass(frozen=True)
class GoldenComparison:
    """The point where outputs differ most from the golden ones; ``share_of_budget`` ≤ 1 passes."""

    images: int
    worst_input: str  # kind of image
    worst_output: str
    worst_index: tuple[int, ...]
    found: float
    expected: float
    abs_error: float
    budget: float
    share_of_budget: float
    top1_agreement: float | None  # of logits

    @property
    def passed(self) -> bool:
        return self.share_of_budget <= 1  # NaN is no pass

    def __str__(self) -> str:
        share = f"({self.share_of_budget:.0%} of the budget {self.budget:.2e})"
        if self.worst_output in _DECIDED:
            return (
                f"{_DECIDED[self.worst_output]} of the {self.worst_input} image differ by {self.abs_error:.2e} {share}"
            )
        return (
            f"worst point: {self.worst_output}{list(self.worst_index)} of the {self.worst_input} image: "
            f"found {self.found:.6g}, PyTorch {self.expected:.6g}, |error| {self.abs_error:.2e} {share}"
        )


@dataclass(frozen=True)
class Golden:
    """Images (N, 3, H, W) with their kinds, outputs (N, …) by name, and the largest error allowed by name."""

    kinds: tuple[str, ...]
    images: np.ndarray
    outputs: Mapping[str, np.ndarray]
    budgets: Mapping[str, float]  # of decisions one for all outputs, under the name of the first

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        kinds: Sequence[str],
        images: Sequence[np.ndarray],
        outputs: Sequence[tuple[np.ndarray, ...]],
        budgets: Sequence[float],
    ) -> Golden:
        """The first image of each batch of a verification; ``outputs`` are per batch, in the order of ``names``."""
        first = {name: np.stack([batch[i][0] for batch in outputs]) for i, name in enumerate(names)}
        return cls(
            tuple(kinds), np.stack([batch[0] for batch in images]), first, dict(zip(names, budgets, strict=True))
        )

    def write(self, folder: Path) -> tuple[list[Path], dict[str, Any]]:
        """The files written, and the record that :meth:`read` takes."""
        arrays = {_IMAGES: self.images, **{f"golden-{name}.npy": array for name, array in self.outputs.items()}}
        for file, array in arrays.items():
            content = io.BytesIO()  # NumPy's own writing to files does not say that the disk is full
            np.save(content, np.ascontiguousarray(array, dtype="<f4"), allow_pickle=False)
            (folder / file).write_bytes(content.getbuffer())
        outputs = {name: {"file": f"golden-{name}.npy", "budget": self.budgets.get(name)} for name in self.outputs}
        return [folder / file for file in arrays], {"kinds": self.kinds, "images": _IMAGES, "outputs": outputs}

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any]) -> Golden:
        """What :meth:`write` wrote; that the files are the right ones is for the caller to check.

        Raises:
            FasterViTError: a file or the record is missing or damaged.
        """
        try:
            outputs = {str(name): _load(folder / entry["file"]) for name, entry in record["outputs"].items()}
            entries = record["outputs"].items()
            budgets = {str(name): float(entry["budget"]) for name, entry in entries if entry["budget"] is not None}
            golden = cls(tuple(record["kinds"]), _load(folder / record["images"]), outputs, budgets)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FasterViTError(
                f"the golden set in '{folder}' cannot be read ({error}); export the model again"
            ) from error
        if any(len(array) != len(golden.kinds) for array in (golden.images, *outputs.values())) or not outputs:
            raise FasterViTError(
                f"the golden set in '{folder}' is damaged: its files do not fit; export the model again"
            )
        return golden

    def compare(self, names: Sequence[str], outputs: Sequence[np.ndarray]) -> GoldenComparison:
        """Hold ``outputs`` (N, …), in the order of ``names``, to the golden ones.

        Raises:
            FasterViTError: other outputs, or other shapes.
        """
        found = dict(zip(names, outputs, strict=True))
        shapes = {name: array.shape for name, array in self.outputs.items()}
        if {name: array.shape for name, array in found.items()} != shapes:
            raise FasterViTError(
                f"outputs are not those of the golden set, which are {shapes}; build from the same export"
            )
        points = self._decisions(found) or [self._worst(name, found[name]) for name in self.outputs]
        name, index, error = max(points, key=lambda point: _share(point[2], self.budgets[point[0]]))
        expected, logits = self.outputs[name], [n for n in self.outputs if n == "logits"]
        same = [found[n].argmax(1) == self.outputs[n].argmax(1) for n in logits]
        return GoldenComparison(
            images=len(self.kinds),
            worst_input=self.kinds[index[0]],
            worst_output=name,
            worst_index=index[1:],
            found=float(found[name][index]),
            expected=float(expected[index]),
            abs_error=error,
            budget=self.budgets[name],
            share_of_budget=_share(error, self.budgets[name]),
            top1_agreement=float(np.concatenate(same).mean()) if same else None,
        )

    def _decisions(self, found: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[int, ...], float]]:
        """The worst image of masks or detections; empty where outputs are compared value by value."""
        found_in_order = tuple(found[name] for name in self.outputs)
        differences = decision_differences(self.outputs, found_in_order)
        return [
            (name, (worst, *(0,) * (self.outputs[name].ndim - 1)), float(by_image[worst]))
            for name, by_image in differences.items()
            for worst in [int(by_image.argmax())]
        ]

    def _worst(self, name: str, found: np.ndarray) -> tuple[str, tuple[int, ...], float]:
        error = np.abs(found.astype(np.float64) - self.outputs[name])
        error[~np.isfinite(error)] = np.inf  # what is no number is as wrong as can be
        index = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
        return name, index, float(error[index])


def decision_differences(expected: Mapping[str, np.ndarray], found: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """How much decisions differ, from 0 to 1 for each image (N,), under the name of the output that counts.

    Masks: the share of pixels with another class. Detections: scores count relative to the largest that is expected of
    the image. Every box looks for its best counterpart of the same label, as far from it as the larger of the
    differences of scores and of sides, and matters as the fourth power of its score; what matters most of both sides is
    what the images differ by.

    Args:
        expected: outputs by name; nothing is compared unless they are masks or detections.
        found: in the same order.
    """
    if tuple(expected) == ("masks",):
        (masks,), (others,) = expected.values(), found
        return {"masks": (masks != others).reshape(len(masks), -1).mean(axis=1)}
    if tuple(expected) != ("boxes", "scores", "labels"):
        return {}
    pairs = zip(zip(*expected.values(), strict=True), zip(*found, strict=True), strict=True)
    return {"boxes": np.array([_detections_apart(one, other) for one, other in pairs])}


def _detections_apart(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    if not all(np.isfinite(array).all() for array in other):
        return 1.0
    (boxes, scores, labels), (others, their_scores, their_labels) = one, other
    surest = max(float(scores.max()), _LEAST_SURE)
    scores, their_scores = (s.astype(np.float64) / surest for s in (scores, their_scores))
    their_scores = their_scores.clip(max=1.0)
    apart = np.abs(boxes[:, None] - others[None]).max(axis=2)
    apart = np.maximum(apart, np.abs(scores[:, None] - their_scores[None]))
    apart = np.where(labels[:, None] == their_labels[None], apart, 1.0).clip(max=1.0)
    missed, added = scores**_POWER * apart.min(axis=1), their_scores**_POWER * apart.min(axis=0)
    return float(max(missed.max(), added.max()))


def _share(error: float, budget: float) -> float:
    if budget > 0:
        return error / budget
    return 0.0 if error == 0 else float("inf")


def _load(path: Path) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise ValueError(f"'{path.name}' does not hold float32")
    return array
