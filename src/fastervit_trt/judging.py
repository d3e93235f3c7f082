"""Accuracy of a written artifact against its model in PyTorch fp32, on the same labelled images; and a gate on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastervit_trt.accuracy import Accuracy, AccuracyMeter, Drop, paired_drop
from fastervit_trt.console import track, warn
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig, Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.decoding import Unreadable, describe_unreadable

__all__ = ["Judgement", "check_gate", "judge"]

_BATCH = 32

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Judgement:
    """What an artifact makes of labelled images, beside what its model does."""

    data: str
    artifact: Accuracy
    reference_top1: float  # of PyTorch fp32, in [0, 1]
    drop: Drop
    sqnr_db: float  # of the logits: power of the reference's over power of the difference

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Judgement:
        return cls(**{**record, "artifact": Accuracy(**record["artifact"]), "drop": Drop(**record["drop"])})

    def __str__(self) -> str:
        a = self.artifact
        return (
            f"top-1 {100 * a.top1:.2f} % (95 % interval {100 * a.low:.1f} to {100 * a.high:.1f}) on {a.images} images "
            f"of {self.data}, PyTorch fp32 {100 * self.reference_top1:.2f} %: drop {self.drop}; the same class on "
            f"{100 * (a.agreement or 0):.2f} %, SQNR {self.sqnr_db:.1f} dB"
        )


@torch.inference_mode()
def judge(
    artifact: Run, model: nn.Module, data: LabelledImages, how: Preprocessing, config: FasterViTConfig
) -> Judgement:
    """Run ``artifact`` and ``model`` (fp32) on all images of ``data``.

    Args:
        artifact: images (B, 3, H, W), any B up to 32 → logits (B, classes).

    Raises:
        FasterViTError: data of other classes, or too many images that cannot be read.
    """
    check_classes(data, config)
    ours, theirs, left_out = AccuracyMeter(), AccuracyMeter(), list[Unreadable]()
    for images, labels in _progress(data, how, config, left_out):
        expected = model(torch.from_numpy(images)).numpy()
        ours.add(artifact(images), labels, expected)
        theirs.add(expected, labels)
    if left_out:
        warn(f"{len(left_out)} of {len(data)} images are left out: {describe_unreadable(left_out)}")
    accuracy = ours.result()
    assert accuracy.sqnr_db is not None
    return Judgement(
        data=data.name,
        artifact=accuracy,
        reference_top1=theirs.result().top1,
        drop=paired_drop(theirs.right, ours.right),
        sqnr_db=accuracy.sqnr_db,
    )


def check_classes(data: LabelledImages, config: FasterViTConfig) -> None:
    """Labels mean something only where data and model have the same classes.

    Raises:
        FasterViTError: they have not.
    """
    data.check_classes(config.num_classes, "the model")


def check_gate(judgement: Judgement, allowed: float, precision: str) -> None:
    """Refuse an artifact that lost more than ``allowed`` percentage points of top-1, or yields what is no number.

    Raises:
        FasterViTError: it did.
    """
    if judgement.artifact.non_finite:
        raise FasterViTError(
            f"{precision}: {judgement.artifact.non_finite} logits on {judgement.data} are not finite; "
            "use --precision bf16 or fp32"
        )
    if judgement.drop.points > allowed:
        raise FasterViTError(
            f"{precision} loses {judgement.drop} of top-1 on {judgement.artifact.images} images of {judgement.data}, "
            f"more than the {allowed:g} allowed; nothing was written. Keep sensitive blocks in fp16 with "
            "--precision mixed, try another --calibrator, or allow more with --max-accuracy-drop"
        )


def _progress(
    data: LabelledImages, how: Preprocessing, config: FasterViTConfig, left_out: list[Unreadable]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    batches = data.batches(_BATCH, how, config.resolution, left_out)
    return track(batches, f"accuracy on {len(data)} images", total=-(-len(data) // _BATCH))
