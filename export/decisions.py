"""Masks and detections compared as what they are: pixels by their class, boxes by the best counterpart.

Element by element they cannot be: where two classes or two scores are nearly equal, rounding decides, and one box that
moves up shifts all others. A difference here is a number from 0 to 1, and may be as large as twice what PyTorch's own
rounding makes of it, plus a floor.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.exposed import expose
from fastervit_trt.export.golden import decision_differences
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import Float
from fastervit_trt.models.tasks.heads import OUTPUTS, Task

__all__ = ["Decisions", "check_decisions", "decide_golden", "decided"]

_FLOOR = {"masks": 0.002, "boxes": 0.01}  # share of pixels; share of the image's side, and of a score's range
_ROUNDINGS = 16.0  # of the input, that a decision may depend on in fp32: those of as many operators in a row

Outputs = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Decisions:
    """Outputs (N, …) of the first image of each batch in fp32, and how much others may differ, by name."""

    task: Task
    outputs: Outputs
    budgets: Mapping[str, float]


def decided(model: nn.Module, images: Sequence[np.ndarray]) -> Outputs | None:
    """The outputs of ``model`` for the first image of each batch; None: it decides nothing."""
    if not hasattr(model, "decide"):
        return None
    first = torch.from_numpy(np.stack([batch[0] for batch in images]))
    return tuple(output.numpy() for output in model(first))


def decide_golden(exact: Outputs | None, typed: nn.Module, images: Sequence[np.ndarray]) -> Decisions | None:
    """What a deployment of the graph is held to; None for models that decide nothing.

    Args:
        exact: what :func:`decided` gives of the model in fp32.
        typed: a :class:`TypedTaskModel`; within the rounding of its precision, as the caller sees to.
    """
    task: Task | None = getattr(getattr(typed, "model", None), "task", None)
    if task is None or exact is None:
        return None
    precision: Float = typed.precision  # type: ignore[assignment]
    # In fp32 nothing is rounded by the typed model; what the least change of the input does stands for that.
    nudged = [batch * np.float32(1 + _ROUNDINGS * precision.rounding) for batch in images]
    first = torch.from_numpy(np.stack([batch[0] for batch in nudged]))
    own = tuple(output.numpy() for output in typed(first)[: len(OUTPUTS[task])])
    differences = decision_differences(dict(zip(OUTPUTS[task], exact, strict=True)), own)
    return Decisions(task, exact, {name: 2 * float(worst.max()) + _FLOOR[name] for name, worst in differences.items()})


def check_decisions(path: Path, images: np.ndarray, task: Task, precision: Float) -> None:
    """Hold what the written graph decides to what it decides it from, image by image.

    Raises:
        FasterViTError: an output is not what follows, beyond one rounding of the values it follows from.
    """
    with tempfile.TemporaryDirectory() as scratch:
        exposed = expose(path, Path(scratch), pinned=False)
        assert exposed is not None
        session = OnnxCpuSession(exposed[0])
    results = dict(zip(session.outputs, session(images), strict=True))
    raw = {name: torch.from_numpy(results[name].astype(np.float32)) for name in exposed[1]}
    outputs = [torch.from_numpy(results[name]) for name in OUTPUTS[task]]
    worst, allowed = (_masks if task == "segmentation" else _boxes)(raw, outputs, precision)
    if not worst <= allowed:
        raise FasterViTError(
            f"verification failed: {', '.join(OUTPUTS[task])} of the {precision.name} graph do not follow from its "
            f"{', '.join(exposed[1])}: {worst:.2e} where {allowed:.2e} is allowed; report this with the model's name"
        )


def _masks(raw: Mapping[str, torch.Tensor], outputs: Sequence[torch.Tensor], precision: Float) -> tuple[float, float]:
    """How far the logit of the class that was chosen lies below the largest, and what rounding explains."""
    logits, (masks,) = raw["logits"], outputs
    if not _are_classes(masks, logits.shape[1]):
        return math.inf, 0.0
    large = F.interpolate(logits, size=masks.shape[1:], mode="bilinear", align_corners=False)
    chosen = large.gather(1, masks.long()[:, None])[:, 0]
    return float((large.amax(1) - chosen).max()), 8 * precision.rounding * float(logits.abs().max())


def _boxes(raw: Mapping[str, torch.Tensor], outputs: Sequence[torch.Tensor], precision: Float) -> tuple[float, float]:
    """How far each detection is from the nearest pair of query and class that could be it, and the scores from the
    largest there are.
    """
    boxes, scores, labels = outputs
    if not _are_classes(labels, raw["logits"].shape[2]):
        return math.inf, 0.0
    probabilities, centred = raw["logits"].sigmoid(), raw["query_boxes"]
    largest = probabilities.flatten(1).topk(scores.shape[1], dim=1).values
    x, y, w, h = centred.unbind(-1)
    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1)
    of_label = probabilities.gather(2, labels.long()[:, None, :].expand(-1, probabilities.shape[1], -1))
    apart = (of_label.transpose(1, 2) - scores[:, :, None]).abs()  # (B, slot, query)
    apart = torch.maximum(apart, (boxes[:, :, None] - corners[:, None]).abs().amax(-1))
    worst = max(float(apart.amin(2).max()), float((scores - largest).abs().max()))
    # Decided in float32; but ONNX Runtime's CPU provider may go on with values that it rounds only where they are seen.
    return worst, 8 * 2.0**-24 + 2 * precision.rounding


def _are_classes(indices: torch.Tensor, classes: int) -> bool:
    return bool(((indices >= 0) & (indices < classes)).all())  # NaN is none
