"""This machine in, the target that it is out; or a target and this machine in, every reason why they differ out."""

from __future__ import annotations

from collections.abc import Sequence

from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.table import TARGETS
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engines.api import INSTALL, NAMES
from fastervit_trt.errors import FasterViTError

__all__ = ["detect_target", "why_not_here"]

_NAMES = {**{str(runtime): name for runtime, name in NAMES.items()}, "onnxruntime": "ONNX Runtime"}
_INSTALL = {**{str(runtime): text for runtime, text in INSTALL.items()}, "onnxruntime": "pip install onnxruntime"}
_JETSON_PYTHON = "sudo apt install nvidia-jetpack, then python3 -m venv --system-site-packages .venv"


def detect_target(here: Here) -> Target:
    """The row of the table that this machine is; without a GPU, the CPU.

    Raises:
        FasterViTError: it is none; names what was found and the target that is nearest.
    """
    if here.gpu is None:
        if here.platform in TARGETS["cpu"].platforms:
            return TARGETS["cpu"]
        raise FasterViTError(f"{here.platform} is no platform of a target; --target names one for another machine")
    kin = [t for t in TARGETS.values() if t.capability == here.capability and here.platform in t.platforms]
    named = [target for target in kin if target.names(here.gpu)]
    fitting = [target for target in named if _may_run(target, here)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(target.name for target in fitting)
        raise FasterViTError(
            f"this is {here}, without a sign of its JetPack (no /etc/nv_tegra_release, no TensorRT): name it with "
            f"--target {names}"
        )
    if named:
        systems = " or ".join(f"{', '.join(target.jetpack)} ({target.name})" for target in named)
        raise FasterViTError(f"this is {here}; targets are {systems}: update it, or name one with --target")
    nearest = _nearest(here, kin or list(TARGETS.values()))
    raise FasterViTError(
        f"this is {here}, which is no target; the nearest is {nearest.name} ({nearest.title}, compute capability "
        f"{nearest.capability}, {' or '.join(nearest.platforms)}): name one with --target, or take --target cpu"
    )


def why_not_here(target: Target, here: Here) -> list[str]:
    """Everything that keeps this machine from being ``target``, each a line that says what to do; empty where it is."""
    return [reason for check in (_platform, _gpu, _jetpack, _runtime) if (reason := check(target, here)) is not None]


def _platform(target: Target, here: Here) -> str | None:
    if here.platform in target.platforms:
        return None
    return (
        f"{target.name} is {' or '.join(target.platforms)}, this is {here.platform}: install it there, or pack the "
        f"export for this machine with --target local"
    )


def _gpu(target: Target, here: Here) -> str | None:
    if target.capability is None or target.capability == here.capability:
        return None
    if here.gpu is None:
        return (
            f"{target.name} needs a GPU of compute capability {target.capability}, and none was found: see nvidia-smi, "
            "or pack the export with --target cpu"
        )
    found = here.capability or "an unknown one"
    return (
        f"{target.name} has compute capability {target.capability}, {here.gpu} has {found}: pack the export for it "
        "with --target local"
    )


def _jetpack(target: Target, here: Here) -> str | None:
    """Nothing where the board does not say, as in a container."""
    release = here.board.release
    if target.l4t is None or not release or release in target.l4t:
        return None
    other = [t.name for t in TARGETS.values() if t.capability == target.capability and t.l4t and release in t.l4t]
    instead = f"pack the export with --target {other[0]}" if other else f"update to {', '.join(target.jetpack)}"
    return f"{target.name} is {', '.join(target.jetpack)}, this is Jetson Linux {release}: {instead}"


def _runtime(target: Target, here: Here) -> str | None:
    name, version = _NAMES[target.runtime], here.versions.get(target.runtime)
    on_jetson = target.l4t is not None
    if version is None:
        there = f" (the system has {here.system_tensorrt})" if on_jetson and here.system_tensorrt else ""
        remedy = _JETSON_PYTHON if on_jetson else _INSTALL[target.runtime]
        return f"{target.name} needs {name}, which this Python does not have{there}: {remedy}"
    if version in target.versions:
        return None
    remedy = f"update to {', '.join(target.jetpack)}, which brings it"
    if not on_jetson:
        remedy = f"pip install '{target.runtime}{target.versions.requirement}'"
    return f"{target.name} needs {name} {target.versions}, this is {version}: {remedy}"


def _may_run(target: Target, here: Here) -> bool:
    """Whether JetPack allows it; where the board does not say which it has, what its TensorRT says."""
    if target.l4t is None:
        return True
    if here.board.release:
        return here.board.release in target.l4t
    tensorrt = here.versions.get("tensorrt") or here.system_tensorrt
    return not tensorrt or tensorrt in target.versions


def _nearest(here: Here, targets: Sequence[Target]) -> Target:
    """Jetsons for a Jetson and others for others; by compute capability, then by operating system and processor."""

    def distance(target: Target) -> tuple[bool, float, bool]:
        away = abs(_number(here.capability) - _number(target.capability))
        return (target.l4t is not None) != here.board.is_jetson, away, here.platform not in target.platforms

    return min((target for target in targets if target.capability is not None), key=distance)


def _number(capability: str | None) -> float:
    major, _, minor = (capability or "0.0").partition(".")
    return int(major) * 10 + int(minor or 0)
