"""Accuracy of a written artifact against its model in PyTorch fp32, on the same labelled images; and a gate on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastervit_trt.accuracy import TOP1, Accuracy, Drop
from fastervit_trt.console import track, warn
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import Outputs
from fastervit_trt.metering import Data, Figure, images_at_once, lost, meter, numbered_batches
from fastervit_trt.models.config import FasterViTConfig, Preprocessing
from fastervit_trt.models.decoding import Unreadable, describe_unreadable
from fastervit_trt.scoring import Score

__all__ = ["Judgement", "check_classes", "check_gate", "judge"]

Run = Callable[[np.ndarray], Outputs]


@dataclass(frozen=True)
class Judgement:
    """What an artifact makes of labelled or annotated images, beside what its model does."""

    data: str
    artifact: Figure
    reference: float  # the same figure of PyTorch fp32, in [0, 1]
    drop: Drop

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "metric": self.artifact.metric}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Judgement:
        """What :meth:`record` made."""
        kind = Accuracy if record["metric"] == TOP1 else Score
        return cls(record["data"], kind(**record["artifact"]), record["reference"], Drop(**record["drop"]))

    def __str__(self) -> str:
        a, same = self.artifact, f"{100 * (self.artifact.agreement or 0):.2f} %"
        return (
            f"{a.metric} {100 * a.value:.2f} % (95 % interval {100 * a.low:.1f} to {100 * a.high:.1f}) on "
            f"{a.images} images of {self.data}, PyTorch fp32 {100 * self.reference:.2f} %: drop {self.drop}; "
            + (f"agreement {same}" if isinstance(a, Score) else f"the same class on {same}, SQNR {a.sqnr_db:.1f} dB")
        )


@torch.inference_mode()
def judge(artifact: Run, model: nn.Module, data: Data, how: Preprocessing, config: FasterViTConfig) -> Judgement:
    """Run ``artifact`` and ``model`` (fp32) on all images of ``data``.

    Args:
        artifact: images (B, 3, H, W), any B up to 32 → the named outputs of the task, in order.

    Raises:
        FasterViTError: data of other classes, or too many images that cannot be read.
    """
    check_classes(data, config)
    ours, theirs, left_out = meter(data), meter(data), list[Unreadable]()
    for images, numbers in _progress(data, how, config, left_out):
        expected = _outputs(model(torch.from_numpy(images)))
        ours.add(artifact(images), numbers, expected)
        theirs.add(expected, numbers)
    if left_out:
        warn(f"{len(left_out)} of {len(data)} images are left out: {describe_unreadable(left_out)}")
    return Judgement(data.name, ours.result(), theirs.result().value, lost(theirs, ours))


def check_classes(data: Data, config: FasterViTConfig) -> None:
    """Labels mean something only where data and model have the same classes.

    Raises:
        FasterViTError: they have not.
    """
    data.check_classes(config.num_classes, "the model")


def check_gate(judgement: Judgement, allowed: float, precision: str) -> None:
    """Refuse an artifact that lost more than ``allowed`` percentage points, or yields what is no number.

    Raises:
        FasterViTError: it did.
    """
    found = judgement.artifact
    if found.non_finite:
        what = "logits" if isinstance(found, Accuracy) else "outputs"
        raise FasterViTError(
            f"{precision}: {found.non_finite} {what} on {judgement.data} are not finite; use --precision bf16 or fp32"
        )
    if judgement.drop.points > allowed:
        raise FasterViTError(
            f"{precision} loses {judgement.drop} of {found.metric} on {found.images} images of {judgement.data}, "
            f"more than the {allowed:g} allowed; nothing was written. Keep sensitive blocks in fp16 with "
            "--precision mixed, try another --calibrator, or allow more with --max-accuracy-drop"
        )


def _outputs(found: torch.Tensor | tuple[torch.Tensor, ...]) -> Outputs:
    return tuple(output.numpy() for output in ((found,) if isinstance(found, torch.Tensor) else found))


def _progress(
    data: Data, how: Preprocessing, config: FasterViTConfig, left_out: list[Unreadable]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = images_at_once(config.resolution)
    batches = numbered_batches(data, size, how, config.resolution, left_out)
    return track(batches, f"accuracy on {len(data)} images", total=-(-len(data) // size))
