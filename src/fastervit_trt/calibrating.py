"""A calibration as asked for on the command line in, the ranges of a deploy form out: from images, or from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from fastervit_trt.console import track, warn
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.quantisation.calibration import calibrate
from fastervit_trt.export.quantisation.ranges import CalibrationKey, Ranges
from fastervit_trt.models.datasets import CalibrationImages, open_calibration_images
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource

__all__ = ["CalibrationRequest", "ranges_provider"]

_BATCH = 16
_FEW = 64  # images; below, ranges depend on which ones they happen to be


@dataclass(frozen=True)
class CalibrationRequest:
    """Images to calibrate with, or the file that keeps the ranges, or both: the file is then made from the images."""

    data: str | None = None  # "digits" or a folder
    images: int = 512
    cache: Path | None = None

    def check(self) -> None:
        """Refuse what cannot work before anything is computed.

        Raises:
            FasterViTError: neither images nor ranges, or no such folder.
        """
        if self.data is None and self.cache is None:
            raise FasterViTError(
                "8 bits need the ranges of activations: give --calibration-data DIR (images like those to come; "
                "'digits' ship here) or --calibration-cache FILE"
            )
        if self.data is not None:
            open_calibration_images(self.data, self.images)
        elif self.cache is not None:
            Ranges.read(self.cache)


def ranges_provider(
    request: CalibrationRequest, spec: ModelSpec, weights: WeightSource, deploy: str
) -> Callable[[nn.Module], Ranges]:
    """What yields the ranges of a deploy form (fp32).

    Args:
        weights: resolved, so that they are known by their hash.
        deploy: what shapes the deploy form besides the model.
    """
    config, preprocessing = spec.config(), spec.preprocessing

    def key(images: CalibrationImages | None) -> CalibrationKey:
        what = {name: value for name, value in weights.record().items() if name in ("sha256", "seed")}
        return CalibrationKey(
            model=_digest({"spec": spec.record(), "weights": what}),
            deploy=deploy,
            resolution="x".join(str(side) for side in config.resolution),
            preprocessing=json.dumps(asdict(preprocessing)),
            data="" if images is None else images.sha256(),
            images=0 if images is None else len(images),
        )

    def provide(deployed: nn.Module) -> Ranges:
        images = None if request.data is None else _images(request)
        if request.cache is not None and request.cache.is_file():
            return _cached(request.cache, key(images))
        assert images is not None
        batches = images.batches(_BATCH, preprocessing, config.resolution)
        progress = track(batches, f"calibrating on {len(images)} images", total=-(-len(images) // _BATCH))
        ranges = calibrate(deployed, progress, key(images))
        if request.cache is not None:
            ranges.write(request.cache)
        return ranges

    return provide


def _images(request: CalibrationRequest) -> CalibrationImages:
    assert request.data is not None
    images = open_calibration_images(request.data, request.images)
    if len(images) < _FEW:
        warn(f"only {len(images)} calibration images; ranges become reliable from {_FEW} up, 512 are usual")
    return images


def _cached(path: Path, expected: CalibrationKey) -> Ranges:
    ranges = Ranges.read(path)
    if not expected.data:  # no images given: those of the file stand
        expected = CalibrationKey(**{**asdict(expected), "data": ranges.key.data, "images": ranges.key.images})
    if (difference := ranges.key.difference(expected)) is not None:
        raise FasterViTError(
            f"calibration cache '{path}' is of another calibration: it has not {difference}; delete it or name another "
            "file"
        )
    return ranges


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:16]
