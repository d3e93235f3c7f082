"""What one kind of machine can run: its GPU, its runtime, what it serves by default, and where each fact comes from."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastervit_trt.engines.api import version_tuple
from fastervit_trt.errors import FasterViTError

__all__ = ["Fact", "Memory", "RuntimeKind", "Target", "VersionRange"]

RuntimeKind = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
Memory = Literal["unified", "device", "host"]


@dataclass(frozen=True)
class Fact:
    """Something that a row of the table rests on."""

    text: str
    source: str  # a public URL; "experiment: …", "measured: …" or "rule: …" where the fact is our own


@dataclass(frozen=True)
class VersionRange:
    """Releases from ``minimum`` on, before ``below``; ``"10.3.0" in VersionRange("10.3", "10.8")``."""

    minimum: str
    below: str | None = None  # None: open
    without: tuple[tuple[str, str], ...] = ()  # releases in between that do not serve: from, before

    def __contains__(self, version: object) -> bool:
        found = version_tuple(version) if isinstance(version, str) else ()
        inside = bool(found) and _between(found, self.minimum, self.below)
        return inside and not any(_between(found, start, end) for start, end in self.without)

    @property
    def requirement(self) -> str:
        """As pip writes it: ``">=10.3,<10.8"``; gaps are left out."""
        return f">={self.minimum}" + (f",<{self.below}" if self.below else "")

    def __str__(self) -> str:
        text = f"{self.minimum} and later" if self.below is None else f"{self.minimum} to before {self.below}"
        return text + "".join(f", but not {start} to before {end}" for start, end in self.without)


@dataclass(frozen=True)
class Target:
    """A kind of machine that FasterViT is deployed to.

    Attributes:
        gpus: names as the driver reports them (patterns of fnmatch), most specific first; empty for a CPU.
        capability: CUDA compute capability, "8.7"; None for a CPU.
        platforms: operating system and processor, as :func:`fastervit_trt.engines.machine.platform_name` says it.
        versions: releases of ``runtime`` that serve it.
        precisions: names of :mod:`fastervit_trt.export.precision`.
        plugins: whether our plugin library can be used there.
        flat: no release in ``versions`` takes model-local functions, so the graph has to be without them.
        batch: default optimisation profile, "1:1:8".
        workspace_mib: default limit of memory for a kernel besides its tensors; None leaves it to the runtime.
        memory: "unified" where CPU and GPU share it.
        memory_gib: of the smallest board of the kind; None where that says nothing.
        jetpack: releases in words; empty elsewhere.
        l4t: releases of Jetson Linux in ``jetpack``; None elsewhere.
    """

    name: str
    title: str
    gpus: tuple[str, ...]
    capability: str | None
    platforms: tuple[str, ...]
    runtime: RuntimeKind
    versions: VersionRange
    precisions: tuple[str, ...]
    plugins: bool
    flat: bool
    batch: str
    workspace_mib: int | None
    memory: Memory
    memory_gib: int | None
    jetpack: tuple[str, ...]
    l4t: VersionRange | None
    facts: tuple[Fact, ...]

    def names(self, gpu: str) -> bool:
        """Whether the driver's name of a GPU is one of this kind."""
        return any(fnmatch.fnmatchcase(gpu, pattern) for pattern in self.gpus)

    @property
    def concerns(self) -> frozenset[str]:
        """What a machine needs for it, as findings name it: its runtime, and gpu, jetson, plugins."""
        parts = {"gpu": self.capability is not None, "jetson": self.l4t is not None, "plugins": self.plugins}
        return frozenset({self.runtime, *(part for part, needed in parts.items() if needed)})

    def record(self) -> dict[str, Any]:
        """For a bundle's manifest; the same for equal targets."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Target:
        """The target that a bundle was packed for, as it was known then; JSON's lists become tuples.

        Raises:
            FasterViTError: damaged, or written by another version.
        """
        try:
            values: dict[str, Any] = {key: _as_tuple(value) for key, value in record.items()}
            values["versions"] = VersionRange(**_tuples(record["versions"]))
            if record["l4t"] is not None:
                values["l4t"] = VersionRange(**_tuples(record["l4t"]))
            values["facts"] = tuple(Fact(**fact) for fact in record["facts"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise FasterViTError(
                f"the record of a target is damaged or of another version ({error}); pack the export again"
            ) from error

    def __str__(self) -> str:
        return self.name


def _between(version: tuple[int, ...], start: str, end: str | None) -> bool:
    return version >= version_tuple(start) and (end is None or version < version_tuple(end))


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _as_tuple(value) for key, value in record.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value
