"""What was asked for on the command line in, the engines to build on this machine out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from fastervit_trt.engines.api import RuntimeName, unavailable_reason
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.rtx import RtxTarget, check_precision
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import Precision

__all__ = [
    "EngineChoice",
    "EngineRequest",
    "PluginChoice",
    "choose_engines",
    "parse_capabilities",
    "parse_plugin_choice",
]

PluginChoice = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class EngineRequest:
    """One engine, as asked for on the command line.

    Attributes:
        compute_capability: of TensorRT-RTX's target, e.g. "8.9"; None: the GPU of this machine.
        profiles: the export's own batch where there are none.
        plugin_library: to build with; by default the one that is found.
    """

    runtime: RuntimeName
    compute_capability: str | None = None
    profiles: tuple[BatchRange, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    plugins: PluginChoice = "auto"
    use_cache: bool = True
    plugin_library: Path | None = None


@dataclass(frozen=True)
class EngineChoice:
    """The engines to build, or why there are none."""

    requests: tuple[EngineRequest, ...]
    skipped: str | None = None

    def check_precision(self, precision: Precision) -> None:
        """Refuse, before anything is computed, what a GPU cannot do.

        Raises:
            FasterViTError: names the first compute capability that can.
        """
        for request in self.requests:
            capability = request.compute_capability or Machine.detect(request.runtime).capability
            if capability is not None:
                check_precision(capability, precision)


def choose_engines(
    runtime: str,
    capabilities: Sequence[str],
    plugins: PluginChoice = "auto",
    *,
    options: BuildOptions | None = None,
    profiles: tuple[BatchRange, ...] = (),
    use_cache: bool = True,
) -> EngineChoice:
    """What ``--runtime`` means on this machine.

    Args:
        runtime: "tensorrt" (for this machine's GPU), "rtx" (ahead of time, for ``capabilities``), "none", or "auto":
            TensorRT where it is installed beside a GPU, else TensorRT-RTX where that is.

    Raises:
        FasterViTError: ``runtime`` is none, or one was asked for by name and it, or the GPU it builds on, is missing;
            or plugins where there can be none.
    """
    if runtime not in ("auto", "tensorrt", "rtx", "none"):
        raise FasterViTError(f"runtime '{runtime}' is none of auto, tensorrt, rtx and none")
    if runtime == "none" or (runtime != "tensorrt" and not capabilities):
        return EngineChoice((), "not asked for")
    request = EngineRequest("tensorrt", None, profiles, options or BuildOptions(), plugins, use_cache)
    if runtime != "rtx":
        if (reason := _why_not_here()) is None:
            return EngineChoice((request,))
        if runtime == "tensorrt":
            raise FasterViTError(reason)
    if (reason := unavailable_reason("tensorrt-rtx")) is not None:
        if runtime == "rtx":
            raise FasterViTError(reason)
        return EngineChoice((), reason)
    if plugins == "on":
        raise FasterViTError("TensorRT-RTX knows no plugins; leave out --plugins on, or build with --runtime tensorrt")
    wanted = dict.fromkeys(capabilities)
    return EngineChoice(tuple(replace(request, runtime="tensorrt-rtx", compute_capability=each) for each in wanted))


def _why_not_here() -> str | None:
    """Why TensorRT cannot build for this machine's GPU; None where it can."""
    if (reason := unavailable_reason("tensorrt")) is not None:
        return reason
    if Machine.detect("tensorrt").gpu is None:
        return "TensorRT builds on the GPU that an engine is for, and none was found here; build with --runtime rtx"
    return None


def parse_capabilities(text: str) -> list[str]:
    """``"8.6,8.9"``, or ``"none"``.

    Raises:
        FasterViTError: not a compute capability TensorRT-RTX has.
    """
    if text.strip().lower() == "none":
        return []
    return [str(RtxTarget.parse(part.strip())) for part in text.split(",")]


def parse_plugin_choice(text: str) -> PluginChoice:
    """One of auto, on and off.

    Raises:
        FasterViTError: another word.
    """
    for choice in get_args(PluginChoice):
        if text == choice:
            return choice
    raise FasterViTError(f"--plugins '{text}' is none of auto, on and off")
