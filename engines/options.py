"""How an engine is to be built: what a user asks for, checked against what the installed TensorRT has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fastervit_trt.engines.api import FEATURES, RuntimeName
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

__all__ = ["BuildOptions", "HardwareCompatibility", "parse_profiles"]

HardwareCompatibility = Literal["none", "ampere+", "same-capability"]
_COMPATIBILITIES = ("none", "ampere+", "same-capability")
_TILINGS = ("none", "fast", "moderate", "full")
_MIB, _KIB = 1 << 20, 1 << 10
_WORKSPACE_MIB = 4096  # where the retries begin if no limit was asked for: TensorRT's own is all memory


@dataclass(frozen=True)
class BuildOptions:
    """Limits and choices of a build; None leaves them to TensorRT.

    Attributes:
        workspace_mib: memory a kernel may use besides its tensors.
        shared_memory_kib: shared memory a kernel may use per block.
        level: builder optimisation level, 0 (fast build) to 5 (fast engine); TensorRT's own is 3.
        max_tactics: kernels timed per layer.
        tiling: none, fast, moderate or full: how far tiling across layers is searched.
        hardware_compatibility: none (this GPU), ampere+ or same-capability.
        version_compatible: loadable by later TensorRT releases of the same major version.
        strip_weights: leave the weights out; they come from ``model.onnx`` when the engine is loaded.
    """

    workspace_mib: int | None = None
    shared_memory_kib: int | None = None
    level: int | None = None
    max_tactics: int | None = None
    tiling: str | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    strip_weights: bool = False

    def __post_init__(self) -> None:
        self._need(self.workspace_mib is None or self.workspace_mib > 0, "--workspace is MiB, at least 1")
        self._need(self.shared_memory_kib is None or self.shared_memory_kib > 0, "--shared-memory is KiB, at least 1")
        self._need(self.level is None or 0 <= self.level <= 5, "--level goes from 0 (fast build) to 5 (fast engine)")
        self._need(self.max_tactics is None or self.max_tactics > 0, "--max-tactics is at least 1")
        self._need(self.tiling is None or self.tiling in _TILINGS, f"--tiling is one of {', '.join(_TILINGS)}")
        known = self.hardware_compatibility in _COMPATIBILITIES
        self._need(known, f"--hardware-compatibility is one of {', '.join(_COMPATIBILITIES)}")

    def check(self, runtime: RuntimeName, version: str) -> None:
        """Refuse what this release lacks.

        Raises:
            FasterViTError: names the option and the release that has it.
        """
        asked = {
            "level": self.level is not None,
            "max_tactics": self.max_tactics is not None,
            "tiling": self.tiling is not None,
            "hardware_compatibility": self.hardware_compatibility != "none",
            "same_capability": self.hardware_compatibility == "same-capability",
            "version_compatible": self.version_compatible,
            "strip_weights": self.strip_weights,
        }
        for name in (name for name, wanted in asked.items() if wanted):
            FEATURES[name].check(runtime, version)

    def record(self) -> dict[str, Any]:
        """What was asked for, without what was left to TensorRT."""
        default = asdict(BuildOptions())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> BuildOptions:
        """The options a manifest keeps."""
        return cls(**record)

    def with_less_memory(self, runtime: RuntimeName) -> list[BuildOptions]:
        """Builds to try when memory ran out, each needing less than the one before; none where all is lowest.

        A smaller workspace leaves out kernels that need much of it; a lower level also times fewer of them, which is
        what runs out of memory on a Jetson, where builder and kernels share it. RTX builds ahead of time and has
        nothing to lower but the workspace.
        """
        start = self.workspace_mib or _WORKSPACE_MIB
        steps = [self]
        for divisor, level in ((2, 2), (8, 1), (32, 0)):
            less = replace(self, workspace_mib=max(1, start // divisor))
            if runtime == "tensorrt":
                less = replace(less, level=level if self.level is None else min(self.level, level))
            if less != steps[-1]:
                steps.append(less)
        return steps[1:]

    def bytes_of(self, name: Literal["workspace_mib", "shared_memory_kib"]) -> int | None:
        value: int | None = getattr(self, name)
        return None if value is None else value * (_MIB if name == "workspace_mib" else _KIB)

    @staticmethod
    def _need(condition: bool, message: str) -> None:
        if not condition:
            raise FasterViTError(message)

    def __str__(self) -> str:
        typed = {"workspace_mib": "workspace", "shared_memory_kib": "shared-memory"}
        said = (
            f"--{typed.get(name, name).replace('_', '-')}{'' if value is True else f' {value}'}"
            for name, value in self.record().items()
        )
        return " ".join(said) or "no limits"


def parse_profiles(text: str) -> tuple[BatchRange, ...]:
    """Optimisation profiles from ``"1:8:32"``, or several as ``"1,2:16:64"``.

    Raises:
        FasterViTError: not of that form, or the same one twice.
    """
    profiles = tuple(BatchRange.parse(part.strip()) for part in text.split(","))
    if len(set(profiles)) != len(profiles):
        raise FasterViTError(f"batch '{text}' names a profile twice")
    return profiles
