"""One cell of the matrix: an export on a backend, at a batch and a number of streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.rows import SCHEMA
from fastervit_trt.benchmarks.sweep.plan import Options, WantedExport
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["Cell", "cell_of", "cell_of_wanted"]

# What says where and beside whom it is measured does not make it another measurement.
_NO_CONDITION = ("trust", "together", "silence", "data", "attempts", "examples")
_DIGITS = 12  # of a hash


@dataclass(frozen=True)
class Cell:
    """What is measured as one row. ``key`` names its file: the same artifact under the same condition, the same key."""

    folder: str  # of the export
    model: str
    precision: str
    resolution: str
    backend: str
    batch: int
    streams: int
    key: str
    task: str = "classification"
    export: str = ""  # the folder's name, with as much of its path as tells it from the others
    twin: bool = False  # another export is of the same model, precision and resolution

    @property
    def name(self) -> str:
        streams = f" x{self.streams}" if self.streams > 1 else ""
        export = f" ({self.export})" if self.twin else ""
        return f"{self.model} {self.precision}{export} {self.backend} batch {self.batch}{streams}"

    @property
    def artifact(self) -> tuple[str, str]:
        """What cells must share for one's accuracy to be the other's."""
        return self.folder, self.backend


def cell_of(
    folder: Path, manifest: Manifest, backend: str, batch: int, streams: int, options: Options, dataset_sha256: str
) -> Cell:
    """The cell of an export that is there."""
    listed = (engine.get("file") for engine in manifest.engines if engine.get("runtime") == backend)
    graph = (name for name in manifest.files if name.startswith(GRAPH_FILE))  # and its external data
    names = [*sorted(graph), *sorted(name for name in listed if name in manifest.files)]
    hashes = [manifest.files[name]["sha256"] for name in names]
    identity = [hashes, manifest.weights, manifest.preprocessing, dataset_sha256]
    resolution = "x".join(map(str, manifest.resolution))
    key = _key(manifest.model, manifest.precision, backend, batch, streams, options, identity)
    return Cell(
        str(folder), manifest.model, manifest.precision, resolution, backend, batch, streams, key, manifest.task
    )


def cell_of_wanted(
    folder: Path, wanted: WantedExport, backend: str, batch: int, streams: int, options: Options
) -> Cell:
    """The cell of an export that is not there: yet to be made, or failed."""
    key = _key(wanted.model, wanted.precision, backend, batch, streams, options, ["no export", *wanted.arguments])
    return Cell(str(folder), wanted.model, wanted.precision, "", backend, batch, streams, key, wanted.task)


def _key(
    model: str, precision: str, backend: str, batch: int, streams: int, options: Options, identity: Sequence[Any]
) -> str:
    how = {name: value for name, value in asdict(options).items() if name not in _NO_CONDITION}
    content = json.dumps([SCHEMA, identity, backend, batch, streams, how], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]
    return f"{model}-{precision}-{backend}-b{batch}-s{streams}-{digest}"
