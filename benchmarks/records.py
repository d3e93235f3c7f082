"""What one cell of a sweep yielded, as a file: its row, every sample behind it, and which images it got right."""

from __future__ import annotations

import base64
import csv
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from fastervit_trt.benchmarks.rows import ROWS_NAME, SCHEMA, BenchmarkRow
from fastervit_trt.errors import FasterViTError

__all__ = ["CELLS", "Record", "read_records", "write_record"]

CELLS = "cells"  # folder of the records of a sweep
_HINTS = get_type_hints(BenchmarkRow)
_FIELDS = {field.name: field for field in fields(BenchmarkRow)}
_LATENCY_OF_SCHEMA_1 = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_samples")
_THROUGHPUT_OF_SCHEMA_1 = (
    "throughput_img_per_s",
    "throughput_p20_img_per_s",
    "throughput_p80_img_per_s",
    "throughput_samples",
)


@dataclass(frozen=True)
class Record:
    """One cell. ``latency_s`` and ``throughput_s`` are seconds per batch, by round; empty where only a row is left."""

    row: BenchmarkRow
    latency_s: tuple[tuple[float, ...], ...] = ()
    throughput_s: tuple[tuple[float, ...], ...] = ()
    right: np.ndarray | None = None  # (images,) bool, in the order of the dataset
    path: Path | None = None


def write_record(record: Record, path: Path) -> None:
    """``record`` as the file ``path``, which is there whole or not at all, whatever ends this process."""
    content = {
        "row": asdict(record.row),
        "latency_s": record.latency_s,
        "throughput_s": record.throughput_s,
        "right": _packed(record.right),
    }
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_records(path: Path) -> list[Record]:
    """The records of a result folder, or the rows of a ``rows.json`` or ``rows.csv`` without samples.

    Raises:
        FasterViTError: nothing there, damaged, or of a newer schema.
    """
    if path.is_dir():
        cells = sorted((path / CELLS).glob("*.json"))
        if cells:
            return [_read_record(cell) for cell in cells]
        if not (path / ROWS_NAME).is_file():
            raise FasterViTError(f"'{path}' holds no results of fastervit-bench: neither {CELLS} nor {ROWS_NAME}")
        path = path / ROWS_NAME
    if not path.is_file():
        raise FasterViTError(f"there are no results at '{path}'; fastervit-bench writes them")
    try:
        entries = _entries(path)
        return [Record(row, path=path) for entry in entries for row in _rows(entry, path)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FasterViTError(f"'{path}' holds no rows of fastervit-bench ({_spoken(error)})") from error


def _read_record(path: Path) -> Record:
    try:
        content = json.loads(path.read_text())
        (row,) = _rows(content["row"], path)
        latency, throughput = (tuple(map(tuple, content[name])) for name in ("latency_s", "throughput_s"))
        return Record(row, latency, throughput, _unpacked(content["right"]), path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FasterViTError(
            f"'{path}' is damaged ({_spoken(error)}); remove it, and --resume measures that cell again"
        ) from error


def _entries(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".csv":
        entries: list[dict[str, Any]] = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise ValueError("no list of rows")
        return entries
    with path.open(newline="") as stream:
        return [dict(entry) for entry in csv.DictReader(stream)]


def _rows(entry: Mapping[str, Any], path: Path) -> list[BenchmarkRow]:
    schema = int(entry["schema"])
    if schema > SCHEMA:
        raise FasterViTError(
            f"'{path}' has rows of schema {schema}, this version reads up to {SCHEMA}; update fastervit-trt"
        )
    return _rows_of_schema_1(entry) if schema == 1 else [_row(entry)]


def _row(entry: Mapping[str, Any]) -> BenchmarkRow:
    """Columns that this version does not know are left out, those that the file does not have are as by default."""
    known = {name: _value(name, entry[name]) for name in _FIELDS if name in entry}
    missing = [name for name, field in _FIELDS.items() if field.default is MISSING and name not in known]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    row = BenchmarkRow(**known)
    _ = row.further  # damaged text shows here, not in the middle of a report
    return row


def _value(name: str, value: Any) -> Any:
    """Text of a CSV file as what the column holds; JSON's own types are checked."""
    kind = _HINTS[name]
    if value is None or (value == "" and kind is not str and not _is_text(kind)):
        if kind in (int | None, float | None, str | None):
            return None
        raise ValueError(f"column {name} is empty")
    for plain in (bool, int, float):
        if kind in (plain, plain | None):
            return _number(name, plain, value)
    if not isinstance(value, str):
        raise ValueError(f"column {name} has {value!r}")
    return None if value == "" and kind == (str | None) else value


def _is_text(kind: Any) -> bool:
    return kind not in (bool, int, float) and kind not in (bool | None, int | None, float | None)


def _number(name: str, kind: type, value: Any) -> Any:
    if kind is bool:
        if value not in (True, False, "True", "False"):
            raise ValueError(f"column {name} has {value!r}")
        return value in (True, "True")
    return kind(value)


def _rows_of_schema_1(entry: Mapping[str, Any]) -> list[BenchmarkRow]:
    """Schema 1 had latency and throughput of two batch sizes in one row, and a front, which is found anew."""
    shared = {
        name: _value(name, entry[name])
        for name in _FIELDS
        if name in entry and name not in (*_LATENCY_OF_SCHEMA_1, *_THROUGHPUT_OF_SCHEMA_1, "schema")
    }
    row = BenchmarkRow(
        **{**shared, "status": "ok", "batch": 0},
        artifact="model.onnx",
        artifact_sha256=entry["onnx_sha256"],
        clock="host",
        device=entry["cpu"],
        device_kind="cpu",
    )
    latency = {name: _value(name, entry[name]) for name in _LATENCY_OF_SCHEMA_1}
    throughput = {name: _value(name, entry[name]) for name in _THROUGHPUT_OF_SCHEMA_1}
    return [
        replace(row, batch=int(entry["latency_batch"]), **latency),
        replace(row, batch=int(entry["throughput_batch"]), **throughput),
    ]


def _packed(right: np.ndarray | None) -> dict[str, Any] | None:
    if right is None:
        return None
    return {"images": len(right), "bits": base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()}


def _unpacked(packed: Mapping[str, Any] | None) -> np.ndarray | None:
    if packed is None:
        return None
    bits = np.frombuffer(base64.b64decode(packed["bits"], validate=True), np.uint8)
    return np.unpackbits(bits, count=int(packed["images"])).astype(bool)


def _spoken(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
