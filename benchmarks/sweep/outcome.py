"""What came of a cell, as a record: its row with the whole context, and the samples behind it."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_trt import __version__
from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import BenchmarkRow, Status
from fastervit_trt.benchmarks.sweep.audit_text import audit_text
from fastervit_trt.benchmarks.sweep.cell import Cell
from fastervit_trt.benchmarks.sweep.group import Measurement
from fastervit_trt.benchmarks.sweep.plan import Options
from fastervit_trt.benchmarks.timing import STABLE, Rounds, is_stable
from fastervit_trt.host import cpu_name, versions

__all__ = ["accuracy_of", "record_of", "unmeasured"]

_ACCURACY_COLUMNS = (
    "dataset",
    "dataset_sha256",
    "images",
    "unreadable_images",
    "metric",
    "score",
    "score_low",
    "score_high",
    "figures",
    "top1",
    "top1_low",
    "top1_high",
    "top5",
    "top5_low",
    "top5_high",
    "agreement_fp32",
    "sqnr_db",
    "non_finite_logits",
)


def record_of(measurement: Measurement, manifest: Manifest, options: Options) -> Record:
    """The record of a cell that was tried."""
    cell = measurement.cell
    if measurement.failure:
        return unmeasured(cell, options, "failed", measurement.failure, manifest, attempts=measurement.attempts)
    accuracy = measurement.accuracy or {"columns": {}, "note": "", "right": None}
    facts = dict(measurement.facts)
    notes = [facts.pop("note", ""), accuracy["note"]]
    status, reason = _stability(measurement)
    row = BenchmarkRow(
        **_condition(cell, options),
        **_context(manifest),
        **facts,
        **accuracy["columns"],
        **measurement.latency.latency_columns(),
        **measurement.throughput.throughput_columns(cell.batch),
        status=status,
        reason=reason,
        rounds=options.rounds,
        attempts=measurement.attempts,
        audit=audit_text(manifest, facts.get("artifact", "")),
        note="; ".join(dict.fromkeys(text for note in notes for text in note.split("; ") if text)),
    )
    right = None if accuracy["right"] is None else np.asarray(accuracy["right"], dtype=bool)
    return Record(row, _frozen(measurement.latency), _frozen(measurement.throughput), right)


def unmeasured(
    cell: Cell, options: Options, status: Status, reason: str, manifest: Manifest | None = None, attempts: int = 1
) -> Record:
    """The record of a cell that has no measurement, and why."""
    context = _context(manifest) if manifest else _versions()
    return Record(
        BenchmarkRow(
            **_condition(cell, options), **context, status=status, reason=reason, attempts=attempts, cpu=cpu_name()
        )
    )


def accuracy_of(record: Record) -> dict[str, Any] | None:
    """What a record says of its artifact's accuracy, for other cells of the artifact; None where it was not taken."""
    row = record.row
    if row.score is None or (row.task == "classification" and record.right is None):
        return None
    columns = {name: getattr(row, name) for name in _ACCURACY_COLUMNS}
    return {"columns": columns, "right": record.right, "note": row.note}


def _condition(cell: Cell, options: Options) -> dict[str, Any]:
    return {
        "model": cell.model,
        "precision": cell.precision,
        "backend": cell.backend,
        "resolution": cell.resolution,
        "task": cell.task,
        "batch": cell.batch,
        "streams": cell.streams,
        "transfers": options.transfers,
        "cold_cache": options.cold_cache,
        "export": cell.export or Path(cell.folder).name,
        "machine": options.machine,
        "threads": options.threads,
    }


def _context(manifest: Manifest) -> dict[str, Any]:
    weights = manifest.weights
    return {
        **_versions(),
        "weights_sha256": weights.get("sha256", f"random, seed {weights.get('seed')}"),
        "parameters": manifest.graph["deploy"]["parameters_after"],
    }


def _versions() -> dict[str, Any]:
    installed = versions()
    return {
        "os": platform.platform(),
        "fastervit_trt": __version__,
        "python": installed["python"],
        "torch": installed.get("torch", ""),
        "onnxruntime": installed.get("onnxruntime-gpu", installed.get("onnxruntime", "")),
        "tensorrt": installed.get("tensorrt", installed.get("tensorrt-rtx", "")),
        "openvino": installed.get("openvino", ""),
        "timestamp_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _stability(measurement: Measurement) -> tuple[Status, str]:
    if measurement.stable:
        return "ok", ""
    drifts = {"latency": measurement.latency.drift, "throughput": measurement.throughput.drift}
    moved = ", ".join(f"{name} by {value:+.1%}" for name, value in drifts.items() if not is_stable(value))
    return "unstable", (
        f"the second half of the time differs from the first by more than {STABLE:.0%} ({moved}) in "
        f"{measurement.attempts} fresh process{'es' if measurement.attempts > 1 else ''}"
    )


def _frozen(timed: Rounds) -> tuple[tuple[float, ...], ...]:
    """To the nanosecond."""
    return tuple(tuple(round(sample, 9) for sample in samples) for samples in timed.rounds)
