"""An ONNX file in, a TensorRT-RTX engine for one compute capability out; ahead of time, without a GPU.

TensorRT-RTX knows no plugins and no datacenter or Jetson GPU (SM 75, 80, 86, 89, 120, 121 only); it is a real
TensorRT parser and compiler all the same, and the one that runs anywhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import Bf16, Precision, Quantised

__all__ = ["RtxEngine", "RtxTarget", "build_rtx_engine", "rtx_unavailable_reason"]

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

    def check_precision(self, precision: Precision) -> None:
        """Refuse what the hardware lacks.

        Raises:
            FasterViTError: names the first capability that has it.
        """
        needed = [_BF16_SINCE] if precision.arithmetic == Bf16() else []
        if isinstance(precision, Quantised):
            needed.append(precision.needs_capability)
        for major, minor in needed:
            if (self.major, self.minor) < (major, minor):
                lacking = precision.name if (major, minor) != _BF16_SINCE else "bf16"
                instead = "int8 or fp16" if lacking == "fp8" else "fp16"
                raise FasterViTError(
                    f"compute capability {self} has no {lacking}; use --precision {instead}, or {major}.{minor} and "
                    "later"
                )


@dataclass(frozen=True)
class RtxEngine:
    """A built engine file and what building it took."""

    path: Path
    target: RtxTarget
    tensorrt_rtx: str
    layers: int
    seconds: float
    peak_rss_mib: int


def rtx_unavailable_reason() -> str | None:
    """None where TensorRT-RTX is installed, else one line that says what is missing."""
    try:
        importlib.metadata.version("tensorrt-rtx")
    except importlib.metadata.PackageNotFoundError:
        return (
            "TensorRT-RTX is not installed (PyPI has tensorrt-rtx for x86-64 Linux and Windows): "
            "pip install 'fastervit-trt[cpu]'"
        )
    return None


def build_rtx_engine(
    onnx_path: Path,
    plan_path: Path,
    target: RtxTarget,
    batch: BatchRange,
    input_name: str,
    input_shape: tuple[int, int, int],
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> RtxEngine:
    """Compile ``onnx_path`` into ``plan_path`` in a subprocess.

    Args:
        batch: becomes the optimisation profile where it is a range.
        on_progress: called with (phase, steps done, steps in all).

    Raises:
        FasterViTError: parser or builder refused the graph; the message names the block and the operator.
    """
    profile = [[size, *input_shape] for size in (batch.minimum, batch.optimum, batch.maximum)]
    job = {
        "onnx": str(onnx_path),
        "plan": str(plan_path),
        "compute_capability": target.sm.upper(),
        "input": input_name,
        "profile": profile if batch.dynamic else None,
    }
    # The job is a file, not a pipe: a worker that dies before reading it would break the pipe under the writer.
    with tempfile.TemporaryFile("w+") as request, tempfile.TemporaryFile("w+") as stderr:
        json.dump(job, request)
        request.flush()
        request.seek(0)
        answer = _run_worker(request, on_progress, stderr)
    if "failure" in answer:
        plan_path.unlink(missing_ok=True)
        raise FasterViTError(_describe_failure(answer["failure"], target))
    return RtxEngine(plan_path, target, **answer["result"])


def _run_worker(request: IO[str], on_progress: Callable[[str, int, int], None], stderr: IO[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "fastervit_trt.engines.rtx_worker"]
    answer: dict[str, Any] | None = None
    with subprocess.Popen(command, stdin=request, stdout=subprocess.PIPE, stderr=stderr, text=True) as worker:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                message = _json_or_none(line)
                if message is None:
                    continue  # native code may print to standard output
                if "progress" in message:
                    report = message["progress"]
                    on_progress(report["phase"], report["done"], report["total"])
                else:
                    answer = message
        except BaseException:
            worker.kill()
            raise
    if answer is None:
        stderr.seek(0)
        last = (stderr.read().strip().splitlines() or ["no message"])[-1]
        raise FasterViTError(f"TensorRT-RTX ended without an answer ({_exit_reason(worker.returncode)}): {last[:300]}")
    return answer


def _describe_failure(failure: dict[str, Any], target: RtxTarget) -> str:
    first = failure["errors"][0] if failure["errors"] else {"node": "", "operator": "", "reason": "no reason given"}
    reasons = [line.strip() for line in first["reason"].splitlines()]
    useful = [line for line in reasons if line and "Cuda Runtime" not in line and not line.startswith("Invalid Node")]
    if failure["stage"] == "parser":
        block = first["node"].split("/")[0] or "the graph"
        what = f"parser refuses {first['operator'] or 'a node'} in {block} (node '{first['node']}')"
    else:
        what = f"cannot build an engine for compute capability {target}"
    reason = useful[0] if useful else "no reason given"
    return f"TensorRT-RTX {what}: {reason[:400]}; skip engines with --compute-capability none"


def _exit_reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _json_or_none(line: str) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
