"""What quantising one unit alone does to a model: noise in the logits and accuracy, unit by unit, and resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastervit_trt.accuracy import paired_drop, signal_to_noise_db
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Quantised
from fastervit_trt.export.quantisation.operands import operands
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.simulation import simulated

__all__ = ["Evaluation", "Evaluator", "Labelled", "SensitivityCache"]

Labelled = tuple[np.ndarray, np.ndarray]  # images (B, 3, H, W) float32, labels (B,)
Advance = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """A choice of quantised units, simulated on labelled images, against the model in fp32."""

    units: tuple[str, ...]
    images: int
    top1: float  # in [0, 1]
    drop_points: float
    drop_low: float
    drop_high: float
    agreement: float  # share of images with the fp32 class
    sqnr_db: float  # of the logits


class Evaluator:
    """``evaluator(units)``: what quantising ``units`` of a deploy form (fp32), and nothing else, costs.

    Args:
        batches: called for every evaluation, so that images need not stay in memory.
        cache: keeps evaluations for a later run.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Quantised,
        ranges: Ranges,
        batches: Callable[[], Iterable[Labelled]],
        cache: SensitivityCache,
    ) -> None:
        self._model, self._precision, self._ranges = model, precision, ranges
        self._batches, self._cache = batches, cache
        self._blocks: dict[str, list[str]] = {}
        for operand in operands(model):
            self._blocks.setdefault(operand.unit, []).append(operand.block)
        self._reference, self._labels = self._logits(), np.concatenate([labels for _, labels in batches()])
        self._right = self._reference.argmax(1) == self._labels

    @property
    def units(self) -> tuple[str, ...]:
        """All that can be quantised, in the order of the model."""
        return tuple(self._blocks)

    def precision_of(self, units: Iterable[str]) -> Quantised:
        """The precision that quantises ``units`` alone."""
        return replace(self._precision, only=frozenset(b for unit in units for b in self._blocks[unit]))

    def __call__(self, units: Sequence[str]) -> Evaluation:
        chosen = tuple(unit for unit in self.units if unit in set(units))
        if (known := self._cache.get(chosen)) is not None:
            return known
        with simulated(self._model, self.precision_of(chosen), self._ranges):
            logits = self._logits()
        right = logits.argmax(1) == self._labels
        drop = paired_drop(self._right, right)
        evaluation = Evaluation(
            units=chosen,
            images=len(right),
            top1=float(right.mean()),
            drop_points=drop.points,
            drop_low=drop.low,
            drop_high=drop.high,
            agreement=float((logits.argmax(1) == self._reference.argmax(1)).mean()),
            sqnr_db=signal_to_noise_db(self._reference, logits),
        )
        self._cache.put(evaluation)
        return evaluation

    @torch.inference_mode()
    def _logits(self) -> np.ndarray:
        return np.concatenate([self._model(torch.from_numpy(images)).numpy() for images, _ in self._batches()])


class SensitivityCache:
    """Evaluations in a file, one JSON line each, appended as they are made: an interrupted search goes on from there.

    Args:
        path: None keeps them in memory alone.
        key: what they depend on besides the units; the file of another key is refused.

    Raises:
        FasterViTError: the file is of another search, or damaged.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._known = path, dict[tuple[str, ...], Evaluation]()
        if path is None:
            return
        if path.is_file():
            self._read(path, key)
        else:
            path.write_text(json.dumps({"key": key}) + "\n")

    def get(self, units: tuple[str, ...]) -> Evaluation | None:
        return self._known.get(units)

    def put(self, evaluation: Evaluation) -> None:
        self._known[evaluation.units] = evaluation
        if self._path is not None:
            with self._path.open("a") as stream:
                stream.write(json.dumps(asdict(evaluation)) + "\n")

    def _read(self, path: Path, key: str) -> None:
        content = path.read_text()
        first, *lines = content.splitlines() or [""]
        try:
            if json.loads(first)["key"] != key:
                raise FasterViTError(
                    f"'{path}' is of a search with another model, calibration or data; delete it to start anew"
                )
            if lines and not _is_json(lines[-1]):  # the run ended while it was written
                lines.pop()
            if (whole := "\n".join([first, *lines]) + "\n") != content:
                path.write_text(whole)
            for line in lines:
                row = json.loads(line)
                evaluation = Evaluation(**{**row, "units": tuple(row["units"])})
                self._known[evaluation.units] = evaluation
        except (ValueError, KeyError, TypeError) as error:
            raise FasterViTError(f"'{path}' is no record of a search ({error}); delete it to start anew") from error


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
