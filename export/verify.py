"""Proof that the written ONNX file computes what the PyTorch model computes.

The file is checked by ``onnx.checker`` and run by ONNX Runtime on several batches against the model as loaded (fp32,
training form), so every rewrite and every rounding lies between the two. The tolerance is earned, not chosen:

    |onnx - torch_fp32|  ≤  2 · max|torch_typed - torch_fp32|  +  floor

per output, where torch_typed is PyTorch in the same precision and the floor is 1e-4 of the largest value in fp32 (the
parity goal) and one rounding of it in lower precisions. A quantised graph is held to PyTorch computing on the same
grids, in fp32.

A graph that leaves the range of its type is refused, also where ONNX Runtime hides it: its CPU provider does not round
float16 between operators. PyTorch's typed run does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.decisions import Decisions, check_decisions, decide_golden, decided
from fastervit_trt.export.exposed import PICKED, expose
from fastervit_trt.export.headroom import first_non_finite
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import Float
from fastervit_trt.export.quantisation.plan import PrecisionPlan
from fastervit_trt.export.rounding import RoundedArithmetic
from fastervit_trt.export.typed_model import TypedModel, typed_model

__all__ = ["Expectation", "Verification", "expect", "expect_quantised", "verification_batches", "verify_onnx"]

_FP32_FLOOR = 1e-4
_ONE_ROUNDING = 1 + 2.0**-11  # of float16
_OWN_IMAGES = 4  # of each kind

Outputs = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Expectation:
    """Inputs, what PyTorch makes of them in fp32, and PyTorch's own largest error per output in the graph's precision.

    Holds no model, so that the models can be let go before the graph is run.
    """

    precision: Float
    kinds: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    outputs: tuple[Outputs, ...]  # per batch; of detectors and segmenters what their outputs are decided from
    own_errors: tuple[float, ...]  # per output
    picked: tuple[np.ndarray | None, ...] = ()  # per batch; the queries of a detector
    decisions: Decisions | None = None  # of detectors and segmenters

    def budgets(self) -> tuple[float, ...]:
        """Largest error allowed, per output."""
        floor = _FP32_FLOOR if self.precision.dtype is torch.float32 else self.precision.rounding
        largest = (max(float(np.abs(o).max()) for o in same) for same in zip(*self.outputs, strict=True))
        return tuple(2 * own + floor * most for own, most in zip(self.own_errors, largest, strict=True))


@dataclass(frozen=True)
class Verification:
    """What was compared and where it differs most; ``share_of_budget`` ≤ 1 passes."""

    batches: tuple[int, ...]
    compared_values: int
    worst_input: str
    worst_output: str
    worst_index: tuple[int, ...]
    worst_onnx: float
    worst_torch: float
    abs_error: float
    budget: float
    share_of_budget: float
    top1_agreement: float | None  # of logits
    onnx_runtime: str
    emulated: bool  # bfloat16 ran as its float32 twin with exact rounding

    def __str__(self) -> str:
        return (
            f"worst point: {self.worst_output}{list(self.worst_index)} of {self.worst_input} images: "
            f"ONNX {self.worst_onnx:.6g}, PyTorch {self.worst_torch:.6g}, |error| {self.abs_error:.2e} "
            f"({self.share_of_budget:.0%} of the budget {self.budget:.2e})"
        )


@torch.inference_mode()
def expect(
    reference: nn.Module, typed: TypedModel, batch: BatchRange, input_shape: tuple[int, int, int]
) -> Expectation:
    """What the graph of ``typed`` is held to: outputs of ``reference`` (fp32, as loaded) on three kinds of images."""
    kinds, images = zip(*verification_batches(batch, input_shape), strict=True)
    expected, picked = zip(*(_reference(reference, x) for x in images), strict=True)
    decisions_in_fp32 = decided(reference, images)
    exact = typed.precision.dtype is torch.float32
    own: tuple[float, ...] = (0.0,) * len(expected[0])
    with nullcontext() if exact else RoundedArithmetic(typed.precision.dtype):
        if not exact:
            own = _largest_errors(
                (_run(typed, x, _OWN_IMAGES, at) for x, at in zip(images, picked, strict=True)), expected
            )
        decisions = decide_golden(decisions_in_fp32, typed, images)
    return Expectation(typed.precision, kinds, images, expected, own, picked, decisions)


@torch.inference_mode()
def expect_quantised(
    reference: nn.Module,
    deployed: nn.Module,
    plan: PrecisionPlan,
    batch: BatchRange,
    input_shape: tuple[int, int, int],
) -> tuple[Expectation, TypedModel]:
    """What a quantised graph is held to: its simulation in fp32, which is PyTorch's and knows nothing of the graph.

    The deploy form itself is held to ``reference`` first. What quantising costs is for accuracy to judge.

    Args:
        deployed: fp32; becomes the typed model that is returned.

    Raises:
        FasterViTError: the deploy form differs from the reference.
    """
    kinds, images = zip(*verification_batches(batch, input_shape), strict=True)
    _check_deploy_form(reference, deployed, images[0])
    with plan.simulation(deployed):
        simulated, picked = zip(*(_reference(deployed, x) for x in images), strict=True)
        # A value near the middle of two steps falls to either side by the least rounding on the way to it.
        pairs = list(zip(images, picked, strict=True))
        shifted = _largest_errors((_run(deployed, x * _ONE_ROUNDING, _OWN_IMAGES, at) for x, at in pairs), simulated)
        exact = decided(deployed, images)
    typed = typed_model(deployed, plan.base)
    with RoundedArithmetic(plan.base.dtype), plan.simulation(deployed):
        rounded = _largest_errors((_run(typed, x, _OWN_IMAGES, at) for x, at in pairs), simulated)
        decisions = decide_golden(exact, typed, images)
    own = tuple(float(np.max(pair)) for pair in zip(shifted, rounded, strict=True))
    return Expectation(plan.base, kinds, images, simulated, own, picked, decisions), typed


def verify_onnx(path: Path, expectation: Expectation) -> Verification:
    """Check ``path`` and run it on the batches of ``expectation``.

    Raises:
        FasterViTError: invalid graph, a range that is left (with the block), or an error beyond the budget (with the
            worst point).
    """
    _check_graph(path)
    with tempfile.TemporaryDirectory() as scratch:
        exposed = expose(path, Path(scratch), pinned=True)
        session = OnnxCpuSession(path if exposed is None else exposed[0])
    pins = expectation.picked or (None,) * len(expectation.images)
    actual = [
        tuple(output.astype(np.float32, copy=False) for output in session(x, **({} if at is None else {PICKED: at})))
        for x, at in zip(expectation.images, pins, strict=True)
    ]
    stray = sum(int((~np.isfinite(o)).sum()) for outputs in actual for o in outputs)
    if stray or not np.isfinite(expectation.own_errors).all():
        raise FasterViTError(f"verification failed: {_non_finite(path, expectation, stray)}")
    result = _compare(session, actual, expectation)
    if exposed is not None and expectation.decisions is not None:
        check_decisions(path, expectation.images[0], expectation.decisions.task, expectation.precision)
    if result.share_of_budget > 1:
        name = expectation.precision.name
        raise FasterViTError(f"verification failed: the {name} graph differs from PyTorch; {result}")
    return result


def verification_batches(batch: BatchRange, input_shape: tuple[int, int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, images): white noise, smooth images, and pixels at the ends of the normalised range."""
    rng = np.random.default_rng(0)
    sizes = [s for s in (batch.minimum, batch.minimum + 1, batch.minimum + 2) if s in batch]
    if not batch.dynamic:
        sizes = [batch.optimum] * (3 if batch.optimum <= 16 else 2)
    channels, height, width = input_shape
    coarse_y, coarse_x = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    for kind, size in zip(("noise", "smooth", "extreme"), sizes, strict=False):
        if kind == "smooth":
            coarse = rng.standard_normal((size, channels, 8, 8))
            images = coarse[:, :, coarse_y][:, :, :, coarse_x]
        else:
            images = rng.standard_normal((size, *input_shape))
        if kind == "extreme":
            images = np.where(images > 0, 2.64, -2.12)  # black and white under ImageNet's mean and deviation
        yield kind, np.ascontiguousarray(images, dtype=np.float32)


def _compare(session: OnnxCpuSession, actual: list[Outputs], expectation: Expectation) -> Verification:
    import onnxruntime

    budgets = expectation.budgets()
    points = []
    for kind, outputs, expected in zip(expectation.kinds, actual, expectation.outputs, strict=True):
        for name, a, e, budget in zip(session.outputs, outputs, expected, budgets, strict=True):
            error = np.abs(a - e)
            index = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
            points.append((float(error[index]) / budget, kind, name, index, a, e, budget))
    share, kind, name, index, a, e, budget = max(points, key=lambda point: point[0])
    logits = [(outputs[0], expected[0]) for outputs, expected in zip(actual, expectation.outputs, strict=True)]
    same = np.concatenate([x.argmax(1) == y.argmax(1) for x, y in logits]) if logits[0][0].ndim == 2 else None
    return Verification(
        batches=tuple(len(x) for x in expectation.images),
        compared_values=sum(o.size for outputs in actual for o in outputs),
        worst_input=kind,
        worst_output=name,
        worst_index=index,
        worst_onnx=float(a[index]),
        worst_torch=float(e[index]),
        abs_error=abs(float(a[index]) - float(e[index])),
        budget=budget,
        share_of_budget=share,
        top1_agreement=None if same is None else float(same.mean()),
        onnx_runtime=onnxruntime.__version__,
        emulated=session.emulated,
    )


def _check_deploy_form(reference: nn.Module, deployed: nn.Module, images: np.ndarray) -> None:
    outputs, picked = _reference(reference, images)
    for expected, actual in zip(outputs, _run(deployed, images, len(images), picked), strict=True):
        error, budget = _largest_error(actual, expected), _FP32_FLOOR * float(np.abs(expected).max())
        if error > budget:
            raise FasterViTError(
                f"verification failed: the deploy form differs from the model by {error:.2e}, the budget is "
                f"{budget:.2e}; report this with the model's name"
            )


def _reference(model: nn.Module, images: np.ndarray) -> tuple[Outputs, np.ndarray | None]:
    """What others are compared with, and the choice that was made on the way to it."""
    outputs = _run(model, images, len(images), None)
    picked = getattr(model, "picked", None)
    if picked is None:
        return outputs, None
    choice = picked(*(torch.from_numpy(output) for output in outputs))
    return outputs, None if choice is None else choice.numpy()


def _run(model: nn.Module, images: np.ndarray, count: int, picked: np.ndarray | None) -> Outputs:
    """The first ``count`` images; of detectors and segmenters what their outputs are decided from."""
    x = torch.from_numpy(images[:count])
    run = getattr(model, "raw", model)
    outputs = run(x) if picked is None else run(x, torch.from_numpy(picked[:count]))
    return tuple(o.numpy() for o in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs))


def _largest_errors(actual: Iterable[Outputs], expected: Sequence[Outputs]) -> tuple[float, ...]:
    """Per output, over batches; ``actual`` may be the first images of each batch alone."""
    errors = [
        [_largest_error(a, e[: len(a)]) for a, e in zip(*pair, strict=True)]
        for pair in zip(actual, expected, strict=True)
    ]
    return tuple(float(np.max(column)) for column in zip(*errors, strict=True))  # NaN where any is, unlike max()


def _largest_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max())


def _non_finite(path: Path, expectation: Expectation, stray: int) -> str:
    """What is not finite (``stray`` outputs in ONNX Runtime), from which block on, and what to do about it."""
    name = expectation.precision.name
    what = f"{stray} outputs of the {name} graph are not finite"
    if not stray:
        what = f"outputs of the {name} graph are not finite where every result is rounded, as hardware does"
    first = first_non_finite(path, np.concatenate(expectation.images))
    where = "" if first is None else f", from {first.block} ({first.operator}) on"
    if expectation.precision.dtype is not torch.float16:  # there is no wider range
        return f"{what}{where}; look for weights there that are not finite or far too large"
    return f"{what}{where}; activations leave the range of {name}, export with --precision bf16 or fp32"


def _check_graph(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=path.stat().st_size < 1_500_000_000)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FasterViTError(f"the written graph is invalid: {' '.join(str(error).split())[:300]}") from error
