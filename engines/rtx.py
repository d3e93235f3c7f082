"""An ONNX file in, a TensorRT-RTX engine for one compute capability out; ahead of time, without a GPU.

TensorRT-RTX knows no plugins and no datacenter or Jetson GPU (SM 75, 80, 86, 89, 120, 121 only); it is a real
TensorRT parser and compiler all the same, and the one that runs anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt.engines.api import unavailable_reason
from fastervit_trt.engines.build import BuildRequest, BuiltEngine, build_engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import Bf16, Precision, Quantised

__all__ = ["RtxTarget", "build_rtx_engine", "check_precision", "rtx_unavailable_reason"]

_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_BF16_SINCE = (8, 0)


@dataclass(frozen=True)
class RtxTarget:
    """A GPU generation TensorRT-RTX can compile for, e.g. ``RtxTarget.parse("8.9")`` (RTX 40 series)."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> RtxTarget:
        """``"8.9"``, ``"89"`` or ``"sm89"``.

        Raises:
            FasterViTError: not a capability TensorRT-RTX has.
        """
        digits = re.sub(r"[^0-9]", "", text.lower().removeprefix("sm"))
        name = f"{digits[:-1]}.{digits[-1:]}"
        if name not in _CAPABILITIES:
            raise FasterViTError(
                f"TensorRT-RTX has no compute capability '{text}'; it builds for {', '.join(_CAPABILITIES)} "
                "(datacenter and Jetson engines need TensorRT on the target)"
            )
        return cls(int(digits[:-1]), int(digits[-1]))

    @property
    def sm(self) -> str:
        return f"sm{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def check_precision(capability: str, precision: Precision) -> None:
    """Refuse what the hardware lacks, in any TensorRT.

    Args:
        capability: compute capability, e.g. "8.9".

    Raises:
        FasterViTError: names the first capability that has it.
    """
    has = tuple(int(part) for part in capability.split("."))
    needed = [_BF16_SINCE] if precision.arithmetic == Bf16() else []
    if isinstance(precision, Quantised):
        needed.append(precision.needs_capability)
    for major, minor in needed:
        if has < (major, minor):
            lacking = precision.name if (major, minor) != _BF16_SINCE else "bf16"
            instead = "int8 or fp16" if lacking == "fp8" else "fp16"
            raise FasterViTError(
                f"compute capability {capability} has no {lacking}; use --precision {instead}, or {major}.{minor} and "
                "later"
            )


def rtx_unavailable_reason() -> str | None:
    """None where TensorRT-RTX is installed, else one line that says what is missing."""
    return unavailable_reason("tensorrt-rtx")


def build_rtx_engine(
    onnx_path: Path,
    plan_path: Path,
    target: RtxTarget,
    batch: BatchRange,
    input_name: str,
    input_shape: tuple[int, int, int],
) -> BuiltEngine:
    """Compile ``onnx_path`` into ``plan_path`` afresh, with one profile and TensorRT-RTX's own choices.

    Raises:
        FasterViTError: parser or builder refused the graph; the message names the block and the operator.
    """
    request = BuildRequest(
        onnx=onnx_path,
        engine=plan_path,
        runtime="tensorrt-rtx",
        precision="",
        input_name=input_name,
        image_shape=input_shape,
        profiles=(batch,),
        compute_capability=str(target),
    )
    return build_engine(request)
