"""Exports, backends, batches and streams in, cells out: which can be measured here, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends import BACKENDS
from fastervit_trt.benchmarks.sweep.cell import Cell, cell_of
from fastervit_trt.benchmarks.sweep.plan import AUTO, Options
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

__all__ = ["Candidate", "Subject", "candidates", "check_backends", "open_subject"]

# The order in which "auto" asks: runtimes of exported files, the fastest first.
_AUTO_ORDER = ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort-cpu")


@dataclass(frozen=True)
class Subject:
    """An export whose files are what its manifest says."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Candidate:
    """A cell, and why it cannot be measured here; "" if it can."""

    cell: Cell
    subject: Subject
    why_not: str
    failed: bool = False  # what it needs could not be made; else it was not to be had from the start


def check_backends(names: Sequence[str]) -> None:
    """Refuse names that no backend has.

    Raises:
        FasterViTError: lists those that there are.
    """
    for name in names:
        if name != AUTO and name not in BACKENDS:
            raise FasterViTError(f"there is no backend '{name}'; there are {AUTO}, {', '.join(BACKENDS)}")


def open_subject(folder: Path) -> Subject:
    """Check ``folder`` against its manifest.

    Raises:
        FasterViTError: no export, or changed files.
    """
    manifest = Manifest.read(folder)
    manifest.check_files(folder)
    return Subject(folder.absolute(), manifest)


def candidates(
    subjects: Sequence[Subject],
    backends: Sequence[str],
    batches: Sequence[int],
    streams: Sequence[int],
    options: Options,
    dataset_sha256: str,
) -> list[Candidate]:
    """All cells: those of one batch together, as they are compared."""
    names = _names([subject.folder for subject in subjects])
    variants = Counter(_variant(subject) for subject in {subject.folder: subject for subject in subjects}.values())

    def cell(subject: Subject, backend: str, batch: int, count: int) -> Cell:
        found = cell_of(subject.folder, subject.manifest, backend, batch, count, options, dataset_sha256)
        return replace(found, export=names[subject.folder], twin=variants[_variant(subject)] > 1)

    return [
        Candidate(
            cell(subject, backend, batch, count),
            subject,
            _why_not(subject, backend, batch, count, options),
        )
        for batch in batches
        for subject in subjects
        for backend in _backends_of(subject, backends, options)
        for count in streams
    ]


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The name of each folder, with as much of its path as tells it from the others."""
    names = {}
    for folder in folders:
        parts = 1
        while any(other != folder and other.parts[-parts:] == folder.parts[-parts:] for other in folders):
            parts += 1
        names[folder] = "/".join(folder.parts[-parts:])
    return names


def _variant(subject: Subject) -> tuple[object, ...]:
    manifest = subject.manifest
    return manifest.model, manifest.precision, manifest.resolution


def _backends_of(subject: Subject, names: Sequence[str], options: Options) -> Iterator[str]:
    for name in names:
        yield _fastest(subject, options) if name == AUTO else name


def _fastest(subject: Subject, options: Options) -> str:
    for name in _AUTO_ORDER:
        batch = BatchRange.parse(subject.manifest.batch).optimum
        if BACKENDS[name].why_not(options.request(subject.folder, subject.manifest, batch, 1)) is None:
            return name
    return _AUTO_ORDER[-1]


def _why_not(subject: Subject, backend: str, batch: int, streams: int, options: Options) -> str:
    served = BatchRange.parse(subject.manifest.batch)
    if batch not in served:
        return f"'{subject.folder.name}' serves batch {served}, not {batch}; pass another --batch or export it again"
    return BACKENDS[backend].why_not(options.request(subject.folder, subject.manifest, batch, streams)) or ""
