"""What TensorRT 10, 11 and TensorRT-RTX have, and where their Python API differs: all of that drift is in this file.

Versions of ``tensorrt``: read from the bindings of every minor release from 10.3 to 10.16, 11.0, 11.1 and 11.4; of
``tensorrt_rtx``: 1.4 to 1.7 (tests/engines/recorded/api). What TensorRT-RTX accepts without effect, or fails on, was
found by building with 1.7.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastervit_trt.engines.machine import installed_version
from fastervit_trt.errors import FasterViTError

__all__ = [
    "INSTALL",
    "NAMES",
    "Feature",
    "RuntimeName",
    "TensorRtApi",
    "check_target",
    "unavailable_reason",
    "unsuitable_reason",
    "version_tuple",
]

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
NAMES: Mapping[RuntimeName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MODULES: Mapping[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST: Mapping[RuntimeName, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}
INSTALL: Mapping[RuntimeName, str] = {
    "tensorrt": "pip install 'fastervit-trt[gpu]'",
    "tensorrt-rtx": "pip install 'fastervit-trt[cpu]'",
}
_MISSING: Mapping[RuntimeName, str] = {
    "tensorrt": f"TensorRT is not installed: {INSTALL['tensorrt']} (JetPack brings it with the system)",
    "tensorrt-rtx": (
        f"TensorRT-RTX is not installed (PyPI has tensorrt-rtx for x86-64 Linux and Windows): {INSTALL['tensorrt-rtx']}"
    ),
}
# From here on a parser prefers a registered plugin over the function of a node that names its namespace. Before, it
# may know no functions (10.3) or look at them in another order, so it is given a graph without them.
_FUNCTIONS_AND_PLUGINS = (10, 15)
_RTX_TARGETS_SINCE = {"12.1": (1, 5)}  # the others are as old as TensorRT-RTX 1.4


@dataclass(frozen=True)
class Feature:
    """Something to build with that not every TensorRT has."""

    option: str  # as typed
    since: tuple[int, int]  # the first release of TensorRT with it
    rtx: str | None  # None: TensorRT-RTX has it; else why not

    def check(self, runtime: RuntimeName, version: str) -> None:
        """Refuse what is lacking.

        Raises:
            FasterViTError: names the release that has it.
        """
        if runtime == "tensorrt-rtx":
            if self.rtx is not None:
                raise FasterViTError(f"TensorRT-RTX has no {self.option}: {self.rtx}; leave it out or use TensorRT")
        elif version_tuple(version) < self.since:
            major, minor = self.since
            raise FasterViTError(f"TensorRT {version} has no {self.option}; TensorRT {major}.{minor} and later have it")


FEATURES: Mapping[str, Feature] = {
    "hardware_compatibility": Feature(
        "--hardware-compatibility", (10, 3), "an engine is for the compute capability it was compiled for"
    ),
    "same_capability": Feature(
        "--hardware-compatibility same-capability",
        (10, 9),
        "every engine of it serves all GPUs of its compute capability",
    ),
    "version_compatible": Feature("--version-compatible", (10, 3), "it has no lean runtime"),
    "level": Feature("--level", (10, 3), "its plans do not depend on it"),
    "max_tactics": Feature("--max-tactics", (10, 4), "its plans do not depend on it"),
    "tiling": Feature("--tiling", (10, 8), "its plans do not depend on it"),
    "strip_weights": Feature("--strip-weights", (10, 3), "without a GPU it fails on refittable engines"),
    "plugins": Feature("plugins", (10, 3), "it knows none, attentions are left to its compiler"),
    "timing_cache": Feature("timing cache", (10, 3), "it times nothing before it is on the device"),
}


def version_tuple(version: str) -> tuple[int, ...]:
    """``"10.16.1.11"`` → (10, 16, 1, 11); what follows a first non-number is left out."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def unavailable_reason(runtime: RuntimeName) -> str | None:
    """None where ``runtime`` is installed and new enough, else one line that says what is missing."""
    return unsuitable_reason(runtime, installed_version(runtime))


def unsuitable_reason(runtime: RuntimeName, version: str | None) -> str | None:
    """None where ``version``, None for none at all, is new enough, else one line that says what is missing."""
    if version is None:
        return _MISSING[runtime]
    oldest = _OLDEST[runtime]
    if version_tuple(version)[:2] < oldest:
        needed = ".".join(map(str, oldest))
        return (
            f"{NAMES[runtime]} {version} is too old; {needed} or later is needed: {_MISSING[runtime].split(': ')[-1]}"
        )
    return None


def check_target(version: str, compute_capability: str) -> None:
    """Refuse what TensorRT-RTX ``version`` cannot compile for.

    Raises:
        FasterViTError: names the release that can.
    """
    major, minor = _RTX_TARGETS_SINCE.get(compute_capability, _OLDEST["tensorrt-rtx"])
    if version_tuple(version) < (major, minor):
        raise FasterViTError(
            f"TensorRT-RTX {version} has no compute capability {compute_capability}; {major}.{minor} and later have it"
        )


class TensorRtApi:
    """The calls that differ between releases, of one imported module ``trt``."""

    def __init__(self, trt: Any, runtime: RuntimeName) -> None:
        self.trt, self.runtime = trt, runtime
        self.version = version_tuple(trt.__version__)

    @property
    def takes_functions(self) -> bool:
        """Whether the parser takes fused operators as they are: plugins where registered, functions elsewhere."""
        return self.runtime == "tensorrt-rtx" or self.version >= _FUNCTIONS_AND_PLUGINS

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network: the types of the graph are the types of the engine."""
        flags = self.trt.NetworkDefinitionCreationFlag
        if self.runtime == "tensorrt" and self.version >= (11,):  # there is no other kind; the flag is deprecated
            return builder.create_network()
        return builder.create_network(1 << int(flags.STRONGLY_TYPED))

    def set_target(self, config: Any, compute_capability: str | None) -> None:
        """Compile ahead of time for ``"8.9"``; TensorRT builds for the GPU it runs on and takes None."""
        if compute_capability is None:
            return
        name = f"SM{compute_capability.replace('.', '')}"
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.trt.ComputeCapability, name), 0)

    def set_hardware_compatibility(self, config: Any, level: str) -> None:
        """``level``: none, ampere+ or same-capability."""
        names = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
        if level in names:
            config.hardware_compatibility_level = getattr(self.trt.HardwareCompatibilityLevel, names[level])

    def set_strip_weights(self, config: Any) -> None:
        """Leave the weights out of the engine; the same ones are put back when it is loaded."""
        config.set_flag(self.trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(self.trt.BuilderFlag.REFIT_IDENTICAL)

    def set_version_compatible(self, config: Any) -> None:
        """Loadable by later releases, through the lean runtime that TensorRT embeds into the engine."""
        config.set_flag(self.trt.BuilderFlag.VERSION_COMPATIBLE)

    def place_of(self, error: Any) -> str:
        """The node a parser's error is about; within a function after the call, which names the block."""
        calls = [call.split(" ")[0] for call in error.local_function_stack()]
        return "/".join([*calls, error.node_name()])

    def runtime_config(self, engine: Any, *, cuda_graph: bool, cached: bytes | None) -> tuple[Any, Any] | None:
        """How TensorRT-RTX is to execute, and its cache of compiled kernels; None for TensorRT, which has neither.

        CUDA graphs are left to TensorRT-RTX: it runs general kernels first and specialised ones once it has compiled
        them in the background, and only itself knows when; a capture of ours would keep the general ones for good.
        """
        if self.runtime == "tensorrt":
            return None
        config = engine.create_runtime_config()
        if cuda_graph:
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        if cached:
            cache.deserialize(cached)  # False where it is another GPU's or version's: then it starts empty
        config.set_runtime_cache(cache)
        return config, cache
