"""The precisions a graph can be typed in. TensorRT 11 builds networks strongly typed: precision belongs to the graph.

Images enter and logits leave as float32 in every precision: callers need not care, the casts are part of the graph,
and at 224 px the input is under 0.1 % of what FasterViT-0 moves.

A precision is a frozen dataclass; what makes a graph of it is the handler registered for its class with
``quantisation.plan.plan_precision``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from fastervit_trt.errors import FasterViTError

if TYPE_CHECKING:
    import torch

__all__ = [
    "CALIBRATORS",
    "FLOATS",
    "PRECISIONS",
    "Bf16",
    "Calibrator",
    "Float",
    "Fp8",
    "Fp16",
    "Fp32",
    "Int8",
    "Int8Cpu",
    "Precision",
    "Quantised",
    "get_calibrator",
    "get_float",
    "get_precision",
]

# How a range is chosen from what calibration saw of a tensor; see quantisation.calibrators.
Calibrator = Literal["max", "percentile", "entropy", "mse"]
CALIBRATORS: dict[str, Calibrator] = {name: name for name in get_args(Calibrator)}

# 20 has Gelu as one operator and QuantizeLinear with float16 scales, and is the newest that TensorRT 10.3 (JetPack 6)
# reads. Conv and pooling take bfloat16 from 22 on.
_OPSET, _OPSET_BF16 = 20, 22


class _TorchType:
    """PyTorch's type of a precision or of its class; what builds engines asks for none, and needs no PyTorch."""

    def __get__(self, instance: Precision | None, owner: type[Precision]) -> torch.dtype:
        import torch

        dtype = getattr(torch, owner.type_name)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True)
class Precision:
    """A choice of types for a whole graph."""

    name: ClassVar[str]
    type_name: ClassVar[str]  # of its own type, as PyTorch calls it

    dtype = _TorchType()

    @property
    def arithmetic(self) -> Float:
        """The type of everything that is not quantised."""
        raise NotImplementedError


@dataclass(frozen=True)
class Float(Precision):
    """One floating-point type for weights and activations of the whole graph.

    LayerNorm keeps its statistics in float32 (ONNX ``stash_type``), and position tables and folded weights are
    computed in float32 and rounded once.
    """

    rounding: ClassVar[float]  # largest relative error of one rounding (half a unit in the last place)
    opset: ClassVar[int] = _OPSET  # ONNX opset of the graph: the lowest in which every operator has the type

    @property
    def arithmetic(self) -> Float:
        return self


@dataclass(frozen=True)
class Fp32(Float):
    """IEEE single precision."""

    name = "fp32"
    type_name = "float32"
    rounding = 2.0**-24


@dataclass(frozen=True)
class Fp16(Float):
    """IEEE half precision: 11 bits, largest value 65504."""

    name = "fp16"
    type_name = "float16"
    rounding = 2.0**-11


@dataclass(frozen=True)
class Bf16(Float):
    """The upper half of float32: its range with 8 bits."""

    name = "bf16"
    type_name = "bfloat16"
    rounding = 2.0**-8
    opset = _OPSET_BF16


@dataclass(frozen=True)
class Quantised(Precision):
    """Inputs and weights of convolutions and linear layers in 8 bits, everything else in ``base``.

    Weights have a scale per output channel, activations one per tensor; both are symmetric. Stem, head, LayerNorm,
    softmax, position bias, biases and residual sums stay in ``base``: TensorRT rejects biases of int32, and quantised
    residual sums are what takes the published INT8 vision transformers to near 0 %.
    """

    base: Float = Fp16()
    # Of the four the best on the trained models, on training images (benchmarks/results/calibrators.csv).
    calibrator: Calibrator = "percentile"
    only: frozenset[str] | None = None  # the blocks to quantise, as calibration names them; None: all there are
    attention: bool = False  # also q, k, v and the softmax in window attention; no plugin then
    residual: bool = False  # also both inputs of residual sums: to show what that costs
    heads: bool = False  # also the convolutions of a detector's or segmenter's head; else its backbone alone

    largest: ClassVar[float]  # value that a range is mapped to
    needs_capability: ClassVar[tuple[int, int]]  # compute capability of the tensor cores that have the type

    @property
    def arithmetic(self) -> Float:
        return self.base


@dataclass(frozen=True)
class Int8(Quantised):
    """Whole numbers −127…127 times a scale."""

    name = "int8"
    type_name = "int8"
    largest = 127.0
    needs_capability = (7, 5)


@dataclass(frozen=True)
class Int8Cpu(Int8):
    """Int8 in the form that ONNX Runtime's CPU provider runs fastest, for that alone (quantisation.cpu_form).

    Around it float32; outputs of convolutions are rounded to 8 bits as well, before residual sums.
    """

    base: Float = Fp32()

    name = "int8-cpu"


@dataclass(frozen=True)
class Fp8(Quantised):
    """E4M3 (4 bits of exponent, 3 of mantissa, no infinity) times a scale: coarser steps than int8's near the end of
    the range, finer ones near zero, so that outliers cost little and the largest value serves as the range.
    """

    calibrator: Calibrator = "max"

    name = "fp8"
    type_name = "float8_e4m3fn"
    largest = 448.0
    needs_capability = (8, 9)


FLOATS: dict[str, Float] = {p.name: p for p in (Fp32(), Fp16(), Bf16())}
PRECISIONS: dict[str, Precision] = {**FLOATS, **{p.name: p for p in (Int8(), Fp8())}}


def get_precision(name: str) -> Precision:
    """The precision called ``name``, with its defaults.

    Raises:
        FasterViTError: not one of :data:`PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise FasterViTError(f"unknown precision '{name}'; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def get_float(name: str) -> Float:
    """The floating-point precision called ``name``.

    Raises:
        FasterViTError: not one of :data:`FLOATS`.
    """
    if name not in FLOATS:
        raise FasterViTError(f"'{name}' is no floating-point precision; choose one of {', '.join(FLOATS)}")
    return FLOATS[name]


def get_calibrator(name: str) -> Calibrator:
    """``name``, if it is one of :data:`CALIBRATORS`.

    Raises:
        FasterViTError: it is not.
    """
    if name not in CALIBRATORS:
        raise FasterViTError(f"unknown calibrator '{name}'; choose one of {', '.join(CALIBRATORS)}")
    return CALIBRATORS[name]
