"""Proof that the written ONNX file computes what the PyTorch model computes.

The file is checked by ``onnx.checker`` and run by ONNX Runtime on several batches against the model as loaded (fp32,
training form), so every rewrite and every rounding lies between the two. The tolerance is earned, not chosen:

    |onnx - torch_fp32|  ≤  2 · max|torch_typed - torch_fp32|  +  budget floor

where torch_typed is PyTorch in the same precision and the floor is 1e-4 of the largest logit in fp32 (the parity goal)
and one rounding of it in lower precisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import TypedModel

__all__ = ["Verification", "verification_batches", "verify_onnx"]

_FP32_FLOOR = 1e-4
_CALIBRATION_IMAGES = 4  # images on which PyTorch's own error in the same precision is measured: slow on CPUs


@dataclass(frozen=True)
class Verification:
    """What was compared and where it differs most; ``share_of_budget`` ≤ 1 passes."""

    batches: tuple[int, ...]
    compared_logits: int
    worst_input: str
    worst_image: int
    worst_class: int
    worst_onnx: float
    worst_torch: float
    max_abs_error: float
    max_rel_error: float  # of the largest logit
    budget: float
    share_of_budget: float
    top1_agreement: float
    onnx_runtime: str
    emulated: bool  # bfloat16 ran as its float32 twin with exact rounding

    def __str__(self) -> str:
        return (
            f"worst point: {self.worst_input} input, image {self.worst_image}, class {self.worst_class}: "
            f"ONNX {self.worst_onnx:.6g}, PyTorch fp32 {self.worst_torch:.6g}, |error| {self.max_abs_error:.2e} "
            f"({self.share_of_budget:.0%} of the budget {self.budget:.2e})"
        )


@torch.inference_mode()
def verify_onnx(
    path: Path,
    reference: nn.Module,
    typed: TypedModel,
    batch: BatchRange,
    input_shape: tuple[int, int, int],
) -> Verification:
    """Check and run ``path`` against ``reference`` on several batches of images (B, *input_shape).

    Raises:
        FasterViTError: invalid graph, non-finite logits, or an error beyond the budget (with the worst point).
    """
    precision = typed.precision
    _check_graph(path)
    session = OnnxCpuSession(path)
    names, images, sizes = zip(*verification_batches(batch, input_shape), strict=True)
    expected = [reference(torch.from_numpy(x)).numpy() for x in images]
    actual = [session(x) for x in images]

    stray = sum(int((~np.isfinite(a)).sum()) for a in actual)
    if stray:
        raise FasterViTError(
            f"verification failed: {stray} logits of the {precision.name} graph are not finite; activations leave the "
            f"range of {precision.name}, export with --precision bf16 or fp32"
        )
    floor = _FP32_FLOOR if precision.dtype is torch.float32 else precision.rounding
    largest = max(float(np.abs(e).max()) for e in expected)
    own_error = _own_error(typed, images, expected) if precision.dtype is not torch.float32 else 0.0
    budget = 2 * own_error + floor * largest

    errors = [np.abs(a - e) for a, e in zip(actual, expected, strict=True)]
    worst = max(range(len(errors)), key=lambda i: float(errors[i].max()))
    image, klass = np.unravel_index(errors[worst].argmax(), errors[worst].shape)
    error = float(errors[worst].max())
    agreement = [a.argmax(1) == e.argmax(1) for a, e in zip(actual, expected, strict=True)]
    import onnxruntime

    result = Verification(
        batches=sizes,
        compared_logits=sum(e.size for e in errors),
        worst_input=names[worst],
        worst_image=int(image),
        worst_class=int(klass),
        worst_onnx=float(actual[worst][image, klass]),
        worst_torch=float(expected[worst][image, klass]),
        max_abs_error=error,
        max_rel_error=error / largest,
        budget=budget,
        share_of_budget=error / budget,
        top1_agreement=float(np.concatenate(agreement).mean()),
        onnx_runtime=onnxruntime.__version__,
        emulated=session.emulated,
    )
    if error > budget:
        raise FasterViTError(f"verification failed: the {precision.name} graph differs from PyTorch; {result}")
    return result


def verification_batches(batch: BatchRange, input_shape: tuple[int, int, int]) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, images, batch size): white noise, smooth images, and pixels at the ends of the normalised range."""
    rng = np.random.default_rng(0)
    sizes = [s for s in (batch.minimum, batch.minimum + 1, batch.minimum + 2) if s in batch]
    if not batch.dynamic:
        sizes = [batch.optimum] * (3 if batch.optimum <= 16 else 2)
    channels, height, width = input_shape
    coarse_y, coarse_x = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    for name, size in zip(("noise", "smooth", "extreme"), sizes, strict=False):
        if name == "smooth":
            coarse = rng.standard_normal((size, channels, 8, 8))
            images = coarse[:, :, coarse_y][:, :, :, coarse_x]
        else:
            images = rng.standard_normal((size, *input_shape))
        if name == "extreme":
            images = np.where(images > 0, 2.64, -2.12)  # black and white under ImageNet's mean and deviation
        yield name, np.ascontiguousarray(images, dtype=np.float32), size


def _own_error(typed: TypedModel, images: tuple[np.ndarray, ...], expected: list[np.ndarray]) -> float:
    """PyTorch's own largest error in this precision, over a few images of each kind."""
    per_batch = max(1, _CALIBRATION_IMAGES // len(images))
    errors = []
    for x, reference in zip(images, expected, strict=True):
        logits = typed(torch.from_numpy(x[:per_batch])).numpy()
        errors.append(float(np.abs(logits - reference[:per_batch]).max()))
    return max(errors)


def _check_graph(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=path.stat().st_size < 1_900_000_000)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FasterViTError(f"the written graph is invalid: {' '.join(str(error).split())[:300]}") from error
