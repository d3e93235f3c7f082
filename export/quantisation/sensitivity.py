"""What quantising one unit alone does to a model: noise in the logits and accuracy, unit by unit, and resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastervit_trt.accuracy import signal_to_noise_db
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import Outputs
from fastervit_trt.export.precision import Quantised
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.export.quantisation.simulation import chosen_operands, simulated
from fastervit_trt.metering import Meter, lost

__all__ = ["Batches", "Evaluation", "Evaluator", "SensitivityCache"]

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]  # images (B, 3, H, W) float32, their numbers (B,)
Advance = Callable[[str], None]

# Logits of a segmenter are maps; noise in those of as many images is known well enough to order units by it.
_NOISE_IMAGES = 64


@dataclass(frozen=True)
class Evaluation:
    """A choice of quantised units, simulated on labelled or annotated images, against the model in fp32."""

    units: tuple[str, ...]
    images: int
    score: float  # top-1, mAP or mIoU, in [0, 1]
    drop_points: float
    drop_low: float
    drop_high: float
    agreement: float  # with the outputs in fp32, in [0, 1]; for classifiers, the share of images with the same class
    sqnr_db: float  # of the logits; those of a detector with the queries that were picked in fp32


@dataclass(frozen=True)
class _Seen:
    """What a model makes of one batch."""

    outputs: Outputs
    logits: np.ndarray | None  # to see noise in; None where enough were seen
    picked: torch.Tensor | None  # queries of a detector


class Evaluator:
    """``evaluator(units)``: what quantising ``units`` of a deploy form (fp32), and nothing else, costs.

    Args:
        batches: called for every evaluation, so that images need not stay in memory.
        new_meter: makes what judges the outputs for these images.
        cache: keeps evaluations for a later run.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Quantised,
        ranges: Ranges,
        batches: Batches,
        new_meter: Callable[[], Meter],
        cache: SensitivityCache,
    ) -> None:
        self._model, self._precision, self._ranges = model, precision, ranges
        self._batches, self._new_meter, self._cache = batches, new_meter, cache
        self._blocks: dict[str, list[str]] = {}
        for operand in chosen_operands(model, precision):
            self._blocks.setdefault(operand.unit, []).append(operand.block)
        self._reference, self._judged, done = list[_Seen](), new_meter(), 0
        for images, numbers in batches():
            self._reference.append(_see(model, images, noise=done < _NOISE_IMAGES))
            self._judged.add(self._reference[-1].outputs, numbers)
            done += len(images)

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
        meter, logits = self._new_meter(), list[np.ndarray]()
        with simulated(self._model, self.precision_of(chosen), self._ranges):
            for (images, numbers), expected in zip(self._batches(), self._reference, strict=True):
                seen = _see(self._model, images, noise=expected.logits is not None, picked=expected.picked)
                meter.add(seen.outputs, numbers, expected.outputs)
                logits += [] if seen.logits is None else [seen.logits]
        exact = [expected.logits for expected in self._reference if expected.logits is not None]
        figure, drop = meter.result(), lost(self._judged, meter)
        assert figure.agreement is not None
        evaluation = Evaluation(
            units=chosen,
            images=figure.images,
            score=figure.value,
            drop_points=drop.points,
            drop_low=drop.low,
            drop_high=drop.high,
            agreement=figure.agreement,
            sqnr_db=signal_to_noise_db(np.concatenate(exact), np.concatenate(logits)),
        )
        self._cache.put(evaluation)
        return evaluation


@torch.inference_mode()
def _see(model: Any, images: np.ndarray, *, noise: bool, picked: torch.Tensor | None = None) -> _Seen:
    """Args:
    noise: also what noise is seen in, if that is not the output itself.
    picked: queries whose logits these shall be; those that are picked, if None.
    """
    x = torch.from_numpy(images)
    if not hasattr(model, "decide"):
        logits = model(x).numpy()
        return _Seen((logits,), logits, None)
    raw = model.raw(x)
    outputs = tuple(output.numpy() for output in model.decide(*raw))
    if not noise:
        return _Seen(outputs, None, None)
    if picked is not None:
        raw = model.raw(x, picked)
    elif hasattr(model, "picked"):
        picked = model.picked(*raw)
    return _Seen(outputs, raw[0].numpy(), picked)


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
