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

__all__ = ["Golden", "GoldenComparison"]

_IMAGES = "golden-images.npy"


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
        return (
            f"worst point: {self.worst_output}{list(self.worst_index)} of the {self.worst_input} image: "
            f"found {self.found:.6g}, PyTorch {self.expected:.6g}, |error| {self.abs_error:.2e} "
            f"({self.share_of_budget:.0%} of the budget {self.budget:.2e})"
        )


@dataclass(frozen=True)
class Golden:
    """Images (N, 3, H, W) with their kinds, outputs (N, …) by name, and the largest error allowed by name."""

    kinds: tuple[str, ...]
    images: np.ndarray
    outputs: Mapping[str, np.ndarray]
    budgets: Mapping[str, float]

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
        outputs = {name: {"file": f"golden-{name}.npy", "budget": budget} for name, budget in self.budgets.items()}
        return [folder / file for file in arrays], {"kinds": self.kinds, "images": _IMAGES, "outputs": outputs}

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any]) -> Golden:
        """What :meth:`write` wrote; that the files are the right ones is for the caller to check.

        Raises:
            FasterViTError: a file or the record is missing or damaged.
        """
        try:
            outputs = {str(name): _load(folder / entry["file"]) for name, entry in record["outputs"].items()}
            budgets = {str(name): float(entry["budget"]) for name, entry in record["outputs"].items()}
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
        points = [self._worst(name, found[name]) for name in self.outputs]
        name, index, error = max(points, key=lambda point: _share(point[2], self.budgets[point[0]]))
        expected, logits = self.outputs[name], [n for n, array in self.outputs.items() if array.ndim == 2]
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

    def _worst(self, name: str, found: np.ndarray) -> tuple[str, tuple[int, ...], float]:
        error = np.abs(found.astype(np.float64) - self.outputs[name])
        error[~np.isfinite(error)] = np.inf  # what is no number is as wrong as can be
        index = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
        return name, index, float(error[index])


def _share(error: float, budget: float) -> float:
    if budget > 0:
        return error / budget
    return 0.0 if error == 0 else float("inf")


def _load(path: Path) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise ValueError(f"'{path.name}' does not hold float32")
    return array
