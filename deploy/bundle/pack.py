"""An export and a target in, one signed bundle out: a folder, or a ``.tar.zst`` that is the same byte for byte.

Equal exports, labels, plugins and keys make equal bundles: nothing of the time, the machine or the user goes in, and
Ed25519 signatures are deterministic.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastervit_trt import __version__
from fastervit_trt.artifacts import Manifest, new_folder
from fastervit_trt.deploy.bundle.archive import write_archive
from fastervit_trt.deploy.bundle.contents import declare
from fastervit_trt.deploy.bundle.exported import check_golden, write_export
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, SIGNATURE_FILE, BundleManifest
from fastervit_trt.deploy.bundle.papers import write_checksums, write_licences, write_preprocessing, write_readme
from fastervit_trt.deploy.bundle.signature import sign_bundle
from fastervit_trt.deploy.bundle.suitability import calls_plugins, check_export
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.keys import signing_key
from fastervit_trt.engines.machine import Machine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.golden import GoldenComparison
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.plugins.fatbin import read_architectures
from fastervit_trt.plugins.library import find_library
from fastervit_trt.plugins.sources import build_command, write_sources

__all__ = ["ARCHIVE_SUFFIX", "PackRequest", "Packed", "bundle_name", "pack", "role_of", "sign_folder"]

ARCHIVE_SUFFIX = ".tar.zst"

PluginsChoice = Literal["auto", "library", "sources", "none"]
_PLUGINS = "plugins"
_LIBRARY = f"{_PLUGINS}/libfastervit_plugins.so"
_SOURCES = f"{_PLUGINS}/source"
_TIMING = "timing/timing.cache"
_LABELS = "labels.txt"
_ELF_MACHINES = {62: "linux-x86_64", 183: "linux-aarch64"}
_ROLES = {  # by what a path begins with, the first that fits
    f"{EXPORT_FOLDER}/{GRAPH_FILE}": "graph",
    f"{EXPORT_FOLDER}/golden-": "golden",
    f"{EXPORT_FOLDER}/ranges": "calibration",
    f"{EXPORT_FOLDER}/sensitivity": "calibration",
    f"{EXPORT_FOLDER}/assignments": "calibration",
    f"{EXPORT_FOLDER}/manifest": "manifest",
    _SOURCES: "source",
    _PLUGINS: "plugin",
    "timing/": "timing",
    _LABELS: "labels",
    "preprocessing": "preprocessing",
    "LICENSES/": "licence",
    "receipt": "receipt",
    "origin/": "origin",
}

Step = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class PackRequest:
    """One bundle, as asked for on the command line.

    Attributes:
        output: a folder, or an archive where it ends in ``.tar.zst``.
        labels: a text file with one class name a line.
        plugins: "auto" takes the library where it is one for the target's processor and GPU, else its sources.
    """

    export: Path
    target: Target
    output: Path
    labels: Path | None = None
    plugins: PluginsChoice = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Packed:
    """What was written, and what a user should know of it."""

    path: Path
    manifest: BundleManifest
    left_out: dict[str, str]  # engines, and why
    golden: GoldenComparison | None  # of the graph that goes along; None without ONNX Runtime


def bundle_name(manifest: Manifest, target: Target) -> str:
    """What a bundle of an export is called: "faster_vit_0_224-fp16-l4"."""
    parts = [manifest.model, manifest.precision, target.name]
    if manifest.precision.endswith(f"-{target.name}"):  # int8-cpu says it
        parts.pop()
    return "-".join(parts)


def pack(request: PackRequest, step: Step = lambda description: nullcontext()) -> Packed:
    """Write the bundle, whole or not at all.

    Args:
        step: wraps each long step, for progress.

    Raises:
        FasterViTError: damaged export, one that the target cannot run, labels of another number, plugins that are not
            to be had, or an output that exists.
    """
    manifest = Manifest.read(request.export)
    with step("hashes of the export"):
        manifest.check_files(request.export)
    check_export(request.export, manifest, request.target)
    signing_key()  # before the work, not after it, a key that cannot be used is said
    name = bundle_name(manifest, request.target)
    with _assembly(request, name) as folder:
        library = _library(request)
        exported, portable = write_export(request.export, manifest, request.target, folder / EXPORT_FOLDER, library)
        with step("golden outputs of the graph that goes along"):
            comparison = check_golden(folder / EXPORT_FOLDER, exported)
        plugin = _write_plugins(request, folder, library)
        labels = _write_labels(request.labels, exported, folder)
        timing = _write_timing(request.target, folder)
        licences, notices = write_licences(folder, exported)
        write_preprocessing(folder, exported)
        build = build_command(Path(_SOURCES)) if plugin is not None and plugin["kind"] == "sources" else None
        write_readme(folder, name, exported, request.target, build)
        write_checksums(folder, declare(folder, role_of))
        bundle = BundleManifest(
            name=name,
            target=request.target.record(),
            files=declare(folder, role_of),
            plugin=plugin,
            timing=timing,
            labels=labels,
            licences=licences,
            notices=notices,
            packed_with={"fastervit-trt": __version__},
        )
        sign_folder(folder, bundle)
        if _is_archive(request):
            with step(f"writing {request.output.name}"):
                write_archive(folder, request.output, overwrite=request.overwrite)
    return Packed(request.output, bundle, dict(portable.left_out), comparison)


def sign_folder(folder: Path, manifest: BundleManifest) -> None:
    """Write ``bundle.json`` and its signature by the user's own key.

    Raises:
        FasterViTError: the key cannot be read or made.
    """
    content = manifest.text().encode()
    (folder / BUNDLE_FILE).write_bytes(content)
    (folder / SIGNATURE_FILE).write_bytes(sign_bundle(content))


def role_of(path: str) -> str:
    """What a file of a bundle is for."""
    if path.startswith(f"{EXPORT_FOLDER}/"):
        if path.endswith(".engine"):
            return "engine"
        if path.endswith(".audit.json"):
            return "audit"
    return next((role for start, role in _ROLES.items() if path.startswith(start)), "document")


def _is_archive(request: PackRequest) -> bool:
    return request.output.name.endswith(ARCHIVE_SUFFIX)


@contextmanager
def _assembly(request: PackRequest, name: str) -> Iterator[Path]:
    """An empty folder to put the bundle together in; the output itself where that is a folder."""
    if not _is_archive(request):
        with new_folder(request.output, overwrite=request.overwrite, marker=BUNDLE_FILE) as folder:
            yield folder
        return
    output = request.output.absolute()
    if output.exists() and not request.overwrite:
        raise FasterViTError(f"'{output}' already exists; choose another --output or pass --overwrite")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        (Path(scratch) / name).mkdir()
        yield Path(scratch) / name


def _library(request: PackRequest) -> Path | None:
    """The plugin library to send along.

    Raises:
        FasterViTError: it was asked for and there is none, or it is one for another processor or other GPUs.
    """
    if not request.target.plugins or request.plugins in ("sources", "none"):
        if request.plugins == "library":
            raise FasterViTError(f"{request.target.title} takes no plugins; leave out --plugins library")
        return None
    try:
        path: Path = find_library("plugins")
    except FasterViTError:
        if request.plugins == "library":
            raise
        return None
    reason = _why_not_there(path, request.target)
    if reason is None:
        return path
    if request.plugins == "library":
        raise FasterViTError(
            f"'{path}' is a library for {reason}; pack with --plugins sources, they are built on the target"
        )
    return None


def _why_not_there(library: Path, target: Target) -> str | None:
    """What keeps a plugin library from running on ``target``, after "is a library for"."""
    if (platform := _platform_of(library)) not in target.platforms:
        return f"{platform}, {target.name} is {' or '.join(target.platforms)}"
    architectures = read_architectures(library)
    if target.capability is not None and not architectures.serve(target.capability):
        return f"{architectures}, {target.name} has compute capability {target.capability}"
    return None


def _platform_of(library: Path) -> str:
    """Of an ELF file, as :func:`platform_name` spells it."""
    with library.open("rb") as stream:
        header = stream.read(20)
    if header[:6] != b"\x7fELF\x02\x01":
        return "another kind of system"
    (machine,) = struct.unpack("<H", header[18:20])
    return _ELF_MACHINES.get(machine, f"an unknown processor ({machine})")


def _write_plugins(request: PackRequest, folder: Path, library: Path | None) -> dict[str, Any] | None:
    if (
        not request.target.plugins
        or request.plugins == "none"
        or not calls_plugins(folder / EXPORT_FOLDER / GRAPH_FILE)
    ):
        return None
    (folder / _PLUGINS).mkdir()
    if library is not None:
        shutil.copyfile(library, folder / _LIBRARY)
        return {"kind": "library", "path": _LIBRARY, "version": __version__}
    write_sources(folder / _SOURCES)
    return {"kind": "sources", "path": _SOURCES, "version": __version__}


def _write_labels(source: Path | None, manifest: Manifest, folder: Path) -> str | None:
    if source is None:
        return None
    try:
        names = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FasterViTError(
            f"labels '{source}' cannot be read ({error}); pass a text file, one name a line"
        ) from error
    if len(names) != manifest.num_classes or not all(names):
        given = f"{len(names)} lines" + ("" if all(names) else ", some of them empty")
        raise FasterViTError(
            f"labels '{source}' has {given}, {manifest.model} {manifest.num_classes} classes; name one a line, in order"
        )
    (folder / _LABELS).write_text("\n".join(names) + "\n", encoding="utf-8")
    return _LABELS


def _write_timing(target: Target, folder: Path) -> dict[str, Any] | None:
    """What TensorRT timed here before, where this machine is such a target."""
    machine = Machine.detect("tensorrt") if target.runtime == "tensorrt" else None
    if machine is None or machine.version is None or machine.capability != target.capability:
        return None
    cache = EngineCache.default().timing_cache("tensorrt", machine.version, machine.gpu, machine.capability or "")
    if cache is None:
        return None
    (folder / _TIMING).parent.mkdir()
    shutil.copyfile(cache, folder / _TIMING)
    return {"path": _TIMING, "version": machine.version, "gpu": machine.gpu, "capability": machine.capability}
