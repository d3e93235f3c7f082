"""Stage ``facts``: do TensorRT-RTX and ONNX Runtime run on this GPU? Yes or no, with the message; each step a row."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu import rtx as gpu_rtx
from fastervit_trt.benchmarks.gpu.cases import ModelCase
from fastervit_trt.benchmarks.gpu.job import Job, Report, first_line
from fastervit_trt.benchmarks.gpu.judge import relative_error, rounding
from fastervit_trt.benchmarks.gpu.models import export_for
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED, WRONG
from fastervit_trt.benchmarks.gpu.timing import clock_for, latency_seconds, take_turns
from fastervit_trt.benchmarks.studies.plain import random_model
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.factory import resolve_config

__all__ = ["run"]

_SMALL = "faster_vit_digits_s"  # says yes or no in seconds
_BATCH = 8
_CAPABILITIES = ("CURRENT", "SM80")  # of plans: for the GPU at hand, and one whose code a later GPU might take
_TOOLS = ("nvcc", "cmake", "ninja", "ncu", "compute-sanitizer", "cuobjdump")

T = TypeVar("T")


@torch.no_grad()
def run(job: Job, report: Report) -> None:
    """Tools, ONNX Runtime, then TensorRT-RTX as far as it goes; the first model only where the small one runs."""
    for tool in _TOOLS:
        where = shutil.which(tool)
        report.add("tools", tool, OK if where else SKIPPED, where or "not on the PATH")
    with tempfile.TemporaryDirectory() as scratch:
        small = _Subject(_SMALL, _BATCH, Path(scratch), job.device)
        small.onnxruntime(report)
        if small.tensorrt_rtx(report, job):
            folder = Path(scratch) / "model"
            folder.mkdir()
            _Subject(job.models[0], job.batches[0], folder, job.device).tensorrt_rtx(report, job)


class _Subject:
    """A model with random weights, its export, and images."""

    def __init__(self, name: str, batch: int, folder: Path, device: str) -> None:
        self.case = ModelCase(name, batch, resolve_config(name).resolution)
        model = random_model(name)
        self.path = export_for(copy.deepcopy(model), self.case, folder)
        self.images = np.random.default_rng(0).standard_normal((batch, 3, *self.case.resolution)).astype(np.float32)
        images = torch.from_numpy(self.images)
        self.logits = model(images)
        fp16 = model.to(device).half()(images.to(device).half()).cpu()
        self.allowed = 2 * relative_error(fp16, self.logits) + rounding(torch.float16)

    def onnxruntime(self, report: Report) -> None:
        """Whether its CUDA provider is there, and runs."""
        fact = _Facts(report, "ONNX Runtime", self.case)

        def providers() -> list[str]:
            import onnxruntime

            found: list[str] = onnxruntime.get_available_providers()
            if "CUDAExecutionProvider" not in found:
                raise FasterViTError(f"{onnxruntime.__version__} has only {', '.join(found)}")
            return found

        def execute() -> float:
            import onnxruntime

            session = onnxruntime.InferenceSession(self.path, providers=["CUDAExecutionProvider"])
            if "CUDAExecutionProvider" not in session.get_providers():
                raise FasterViTError("the session fell back on the CPU")
            (logits,) = session.run(None, {session.get_inputs()[0].name: self.images})
            return self._error(torch.from_numpy(logits))

        if fact.of("CUDA provider", providers):
            fact.of("CUDA session", execute)

    def tensorrt_rtx(self, report: Report, job: Job) -> bool:
        """Whether it runs, with any of the plans."""
        fact = _Facts(report, "TensorRT-RTX", self.case)
        if fact.of("import", lambda: gpu_rtx.rtx_module().__version__) is None:
            return False
        ran = [self._plan(fact, capability, job) for capability in _CAPABILITIES]
        return any(ran)

    def _plan(self, fact: _Facts, capability: str, job: Job) -> bool:
        runner = fact.of(f"{capability} runtime", gpu_rtx.RtxRunner)
        plan = fact.of(f"{capability} build", lambda: gpu_rtx.build_plan(self.path, capability)) if runner else None
        if runner is None or plan is None:
            return False
        if not fact.of(f"{capability} deserialise", lambda: runner.deserialise(plan)):
            return False
        if not fact.of(f"{capability} context", runner.create_context):
            return False
        images = torch.from_numpy(self.images).to(job.device)
        call = runner.call(tuple(self.logits.shape))
        error = fact.of(f"{capability} execute", lambda: self._error(call(images).cpu()))
        if error is None:
            return False
        for capture in (False, True):
            self._time(fact, f"{capability} {'CUDA graph' if capture else 'stream'}", call, images, job, capture)
        return True

    def _error(self, logits: Tensor) -> float:
        """Of the logits.

        Raises:
            _NotTheSameError: it is larger than that of fp16.
        """
        error = relative_error(logits, self.logits)
        if not error <= self.allowed:
            raise _NotTheSameError(f"logits are off by {error:.2g} of PyTorch's float32, {self.allowed:.2g} is allowed")
        return error

    def _time(
        self, fact: _Facts, name: str, call: Callable[[Tensor], Tensor], images: Tensor, job: Job, capture: bool
    ) -> None:
        def timed() -> dict[str, Any]:
            clock = clock_for(job.device)
            lap = clock.lap(call, [(images,)], capture=capture)
            timings, state = take_turns({name: lap}, job.seconds, clock)
            time_us = float(np.median(timings[name].samples)) * 1e6
            return {
                "time_us": time_us,
                "latency_us": latency_seconds(lap, job.seconds / 2, clock) * 1e6,
                "throughput_img_per_s": self.case.batch / time_us * 1e6,
                "captured": lap.captured,
                **asdict(state),
            }

        fact.of(name, timed)


class _Facts:
    """Rows of one runtime and one model: a step worked, or why not."""

    def __init__(self, report: Report, runtime: str, case: ModelCase) -> None:
        self.report, self.case = report, case
        self.name = f"{runtime}, {case.name}"

    def of(self, step: str, do: Callable[[], T]) -> T | None:
        """What ``do`` gives, None where it fails; a dict is values of the row, a text its note."""
        about: dict[str, Any] = {"model": self.case.model, "batch": self.case.batch, "shape": self.case.shape}
        if self.report.is_done(self.name, step, self.case.batch):
            return None  # it killed its process
        self.report.start(self.name, step, self.case.batch)
        try:
            found = do()
        except _NotTheSameError as error:
            self.report.add(self.name, step, WRONG, first_line(error), **about)
            return None
        except (ImportError, FasterViTError) as error:
            self.report.add(self.name, step, SKIPPED, first_line(error), **about)
            return None
        except Exception as error:  # whatever a runtime raises is the fact
            self.report.add(self.name, step, FAILED, first_line(error), **about)
            return None
        values = found if isinstance(found, dict) else {"error": found} if isinstance(found, float) else {}
        self.report.add(self.name, step, OK, found if isinstance(found, str) else "", **about, **values)
        return found


class _NotTheSameError(FasterViTError):
    """It runs and computes something else."""
