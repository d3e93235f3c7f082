"""The checks of one engine against its manifest, this machine and the trusted keys: each yields what is wrong."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fastervit_trt import __version__
from fastervit_trt.artifacts import Manifest, sha256_file
from fastervit_trt.engines.api import INSTALL, NAMES, version_tuple
from fastervit_trt.engines.cache_key import BUILDER_SCHEMA
from fastervit_trt.engines.keys import Signed, Verdict
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.signing import verify_record
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["Checks", "rebuild_command"]

_HARDWARE = ("none", "ampere+", "same-capability")
_AMPERE = (8, 0)
# Majors whose version-compatible engines another one loads (support matrix of TensorRT 11.4.1, "Engine Portability").
_LOADS_TOO = {11: 10}
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "file": str,
    "runtime": str,
    "version": str,
    "compute_capability": str,
    "gpu": (str, type(None)),
    "profiles": (list, tuple),
    "hardware_compatibility": str,
    "version_compatible": bool,
    "stripped": bool,
    "plugins": (dict, type(None)),
    "onnx_sha256": str,
}


def rebuild_command(folder: Path, record: Mapping[str, Any], batch: str | None = None) -> str:
    """The command that builds an engine like ``record`` anew."""
    command = ["fastervit-engine", "build", str(folder), "--runtime"]
    if record.get("runtime") == "tensorrt-rtx":
        command += ["rtx", "--compute-capability", str(record.get("compute_capability"))]
    else:
        command.append("tensorrt")
    return shlex.join([*command, *(["--batch", batch] if batch else [])])


class Checks:
    """The checks of one engine; each yields lines that say what is wrong and what to do."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        record: Mapping[str, Any],
        trust: bool,
        batch: int | None,
        machine: Machine | None,
    ) -> None:
        self.folder, self.files, self.record = folder, manifest.files, record
        self.trust, self.batch, self._machine = trust, batch, machine
        self.rebuild = f"build it again with `{rebuild_command(folder, record)}`"
        self.sound = False  # whether the record can be read
        self.complete = True  # whether the file is there, of the right size
        self.content: bytes | None = None
        self.plugin_library: Path | None = None

    @property
    def path(self) -> Path:
        return self.folder / str(self.record["file"])

    @property
    def machine(self) -> Machine:
        if self._machine is None:  # asked for late: it costs a process
            self._machine = Machine.detect(self.record["runtime"])
        return self._machine

    @cached_property
    def verdict(self) -> Verdict:
        return verify_record(self.record, self.files)

    def problems(self) -> Iterator[str]:
        """Cheap checks before dear ones; nothing more where the record itself is damaged."""
        for problem in self._record():
            yield problem
            return
        self.sound = True
        for check in (
            self._size,
            self._batch,
            self._version,
            self._platform,
            self._gpu,
            self._plugins,
            self._signature,
            self._graph,
            self._content,
        ):
            yield from check()

    def warnings(self) -> Iterator[str]:
        """A GPU of another model: TensorRT says it may be slower there, or even fail."""
        built_on, here = self.record["gpu"], self.machine.gpu
        tuned = self.record["runtime"] == "tensorrt" and self.record["hardware_compatibility"] == "none"
        if tuned and None not in (built_on, here) and built_on != here:
            yield (
                f"'{self.path}' was tuned on {built_on!r} and this is {here!r}: it may be slower than one built here "
                f"with `{rebuild_command(self.folder, self.record)}`"
            )

    def _record(self) -> Iterator[str]:
        where, record = f"the record of engine {self.record.get('file')!r} in '{self.folder}'", self.record
        if isinstance(schema := record.get("builder_schema", 1), int) and schema > BUILDER_SCHEMA:
            yield (
                f"{where} was written by a newer fastervit-trt (schema {schema}, this one reads up to "
                f"{BUILDER_SCHEMA}); update fastervit-trt, or {self.rebuild}"
            )
        for name, kind in _FIELDS.items():
            value = record.get(name, ...)
            if not isinstance(value, kind) or (isinstance(value, str) and not value.isprintable()):
                yield f"{where} lacks a valid '{name}' (written by another version, or changed); {self.rebuild}"
                return
        if Path(record["file"]).name != record["file"] or not isinstance(self.files.get(record["file"]), dict):
            yield f"{where} names no file that the manifest lists; {self.rebuild}"
        known = record["runtime"] in NAMES and record["hardware_compatibility"] in _HARDWARE
        if not known or not version_tuple(record["version"]) or _capability(record["compute_capability"]) is None:
            yield f"{where} names a runtime, version or GPU that this version does not know; {self.rebuild}"
        if not record["profiles"] or not all(_is_profile(profile) for profile in record["profiles"]):
            yield f"{where} has no valid profiles; {self.rebuild}"

    def _size(self) -> Iterator[str]:
        expected = self.files[self.record["file"]].get("bytes")
        size = self.path.stat().st_size if self.path.is_file() else None
        self.complete = size is not None and size == expected
        if size is None:
            yield f"engine '{self.path}' is missing though the manifest lists it; {self.rebuild}"
        elif size != expected:
            yield f"engine '{self.path}' has {size} bytes, not the {expected} of the manifest; {self.rebuild}"

    def _batch(self) -> Iterator[str]:
        profiles = self.record["profiles"]
        if self.batch is None or any(low <= self.batch <= high for low, _, high in profiles):
            return
        ranges = ", ".join(str(low) if low == high else f"{low}–{high}" for low, _, high in profiles)
        low, high = min(p[0] for p in profiles), max(p[2] for p in profiles)
        wider = f"{min(low, self.batch)}:{self.batch}:{max(high, self.batch)}"
        yield (
            f"engine '{self.path}' takes batches of {ranges}, not {self.batch}; build it again with "
            f"`{rebuild_command(self.folder, self.record, wider)}`"
        )

    def _version(self) -> Iterator[str]:
        runtime, built, here = self.record["runtime"], self.record["version"], self.machine.version
        name = NAMES[runtime]
        if here is None:
            yield f"engine '{self.path}' needs {name} {built}, which is not installed: {INSTALL[runtime]}"
        elif runtime == "tensorrt" and self.record["version_compatible"]:
            if not _loads_compatible(here, built):
                yield (
                    f"engine '{self.path}' was built by {name} {built} and loads in later versions of it"
                    f"{_also(built)} only, this is {here}; {self.rebuild}"
                )
        elif not _same_version(here, built):
            yield (
                f"engine '{self.path}' was built by {name} {built} and loads in that version only, this is {here}; "
                f"{self.rebuild}"
            )

    def _platform(self) -> Iterator[str]:
        """TensorRT's engines belong to one operating system and processor; RTX's cross from Linux to Windows."""
        built = self.record.get("platform")
        if self.record["runtime"] == "tensorrt" and built not in (None, self.machine.platform):
            yield f"engine '{self.path}' was built on {built!r}, this is {self.machine.platform}; {self.rebuild}"

    def _gpu(self) -> Iterator[str]:
        if self.machine.gpu is None:
            yield (
                f"engine '{self.path}' needs a GPU and none was found here; see nvidia-smi, or run {GRAPH_FILE} on the "
                "CPU"
            )
            return
        built, here = self.record["compute_capability"], str(self.machine.capability)
        anywhere = self.record["runtime"] == "tensorrt" and self.record["hardware_compatibility"] == "ampere+"
        has = _capability(here) or (0, 0)
        if not (has >= _AMPERE if anywhere else has == _capability(built)):
            again = rebuild_command(self.folder, {**self.record, "compute_capability": here})
            needs = "8.0 or later" if anywhere else built
            yield (
                f"engine '{self.path}' is for compute capability {needs}, {self.machine.gpu} has {here}; build one for "
                f"it with `{again}`"
            )

    def _plugins(self) -> Iterator[str]:
        from fastervit_trt.plugins.library import VARIABLE, find_library

        plugins = self.record["plugins"]
        if plugins is None:
            return
        needed = f"engine '{self.path}' needs the plugin library of version {plugins.get('version')!r}"
        if plugins.get("version") != __version__:
            yield f"{needed}, this is {__version__}; {self.rebuild}"
            return
        try:
            path = find_library("plugins", self.path.parent)
        except FasterViTError as error:
            yield f"{needed}: {error}"
            return
        if sha256_file(path) != plugins.get("sha256"):  # loading it would run it
            yield (
                f"'{path}' is another plugin library than engine '{self.path}' was built with; set {VARIABLE} to that "
                f"one, or {self.rebuild}"
            )
        self.plugin_library = path

    def _signature(self) -> Iterator[str]:
        verdict = self.verdict
        danger = f"engine '{self.path}', which runs code on this machine,"
        once = "where you know its origin, --trust takes it as it is"
        if verdict.signed is Signed.BAD:
            yield f"{danger} or its record was changed after it was signed; {self.rebuild}"
        elif verdict.signed is Signed.UNSIGNED and not self.trust:
            yield f"{danger} is not signed; {once}, or {self.rebuild}"
        elif verdict.signed is Signed.UNKNOWN and not self.trust:
            yield (
                f"{danger} is signed by unknown key {verdict.fingerprint!r}; `fastervit-engine trust KEYFILE` trusts "
                f"its owner for good, {once}, or {self.rebuild}"
            )

    def _graph(self) -> Iterator[str]:
        """The weights of a stripped engine come from the graph."""
        if not self.record["stripped"]:
            return
        if self.files.get(GRAPH_FILE, {}).get("sha256") != self.record["onnx_sha256"]:
            yield (
                f"engine '{self.path}' takes its weights from another {GRAPH_FILE} than the manifest's; {self.rebuild}"
            )
        for name in sorted(name for name in self.files if name.startswith(GRAPH_FILE)):
            path = self.folder / name
            if not path.is_file() or sha256_file(path) != self.files[name].get("sha256"):
                yield (
                    f"'{path}', where engine '{self.path}' takes its weights from, is missing or was changed; export "
                    "the model again"
                )

    def _content(self) -> Iterator[str]:
        if not self.complete:
            return  # as was said
        content = self.path.read_bytes()  # not mapped: a mapped file can change after it was hashed
        if hashlib.sha256(content).hexdigest() != self.files[self.record["file"]].get("sha256"):
            yield f"engine '{self.path}' is not the file that the manifest describes; {self.rebuild}"
        self.content = content


def _same_version(one: str, other: str) -> bool:
    """TensorRT 10.3.0.26 calls itself 10.3.0 in Python, so what only one of them tells is not compared."""
    pairs = list(zip(version_tuple(one), version_tuple(other), strict=False))
    return len(pairs) >= 3 and all(a == b for a, b in pairs)


def _loads_compatible(here: str, built: str) -> bool:
    """Forward only, and across majors only where NVIDIA says so."""
    if version_tuple(here)[:1] == version_tuple(built)[:1]:
        return _same_version(here, built) or version_tuple(here) >= version_tuple(built)
    return _LOADS_TOO.get(version_tuple(here)[0]) == version_tuple(built)[0]


def _also(built: str) -> str:
    later = [major for major, earlier in _LOADS_TOO.items() if earlier == version_tuple(built)[0]]
    return f" and in {later[0]}.x" if later else ""


def _capability(text: str) -> tuple[int, int] | None:
    numbers = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _is_profile(profile: Any) -> bool:
    return (
        isinstance(profile, (list, tuple))
        and len(profile) == 3
        and all(type(size) is int for size in profile)
        and 1 <= profile[0] <= profile[1] <= profile[2]
    )
