"""This machine in, everything that matters for running FasterViT on it out, good and bad; never an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastervit_trt.deploy.doctor import gpu, jetson, runtimes, system
from fastervit_trt.deploy.doctor.findings import Finding, note, ok, problem
from fastervit_trt.deploy.targets.detect import detect_target, why_not_here
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.errors import FasterViTError

__all__ = ["examine"]

_Check = Callable[[Here], list[Finding]]
_MACHINE: tuple[tuple[str, _Check], ...] = (
    ("system", system.check_system),
    ("python", system.check_python),
    ("container", system.check_container),
    ("driver", gpu.check_driver),
    ("CUDA", gpu.check_cuda),
    ("GPU", gpu.check_gpu),
    ("clocks", gpu.check_clocks),
)
_SOFTWARE: tuple[tuple[str, _Check], ...] = (
    ("TensorRT", runtimes.check_tensorrt),
    ("TensorRT-RTX", runtimes.check_tensorrt_rtx),
    ("ONNX Runtime", runtimes.check_onnxruntime),
    ("PyCUDA", runtimes.check_pycuda),
    ("plugins", runtimes.check_plugins),
    ("disk", system.check_disk),
    ("folders", system.check_folders),
)


def examine(here: Here, target: Target | None = None) -> list[Finding]:
    """Look at everything, in the order in which one thing rests on another.

    Args:
        target: that this machine is to be; what keeps it from that comes last, in the area "target". Without one, that
            area says which target it is.
    """
    looks: list[tuple[str, Callable[[], list[Finding]]]] = [
        *((area, partial(check, here)) for area, check in _MACHINE),
        *(("Jetson", part) for part in jetson.parts(here)),
        *((area, partial(check, here)) for area, check in _SOFTWARE),
    ]
    found: list[Finding] = []
    for area, look in looks:
        try:
            found += look()
        except Exception as error:  # whatever a strange machine brings: a doctor that falls ill helps nobody
            found.append(note(area, f"cannot be looked at ({type(error).__name__}: {error})"))
    return [*found, *_target(here, target)]


def _target(here: Here, target: Target | None) -> list[Finding]:
    if target is None:
        try:
            return [ok("target", f"this machine is {detect_target(here).name}")]
        except FasterViTError as error:
            return [note("target", str(error))]
    reasons = why_not_here(target, here)
    if not reasons:
        return [ok("target", f"{target.name} runs here")]
    split = [reason.rpartition(": ") for reason in reasons]
    return [problem("target", text, advice) for text, _, advice in split]
