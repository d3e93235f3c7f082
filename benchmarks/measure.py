"""Export folders in, rows out: accuracy, agreement, latency and throughput of each file on this machine's CPU."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastervit_trt import __version__
from fastervit_trt.accuracy import Accuracy, accuracy_from_logits
from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.timing import Timer, interleaved
from fastervit_trt.console import track
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE, OUTPUT
from fastervit_trt.host import cpu_name, versions
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, resolve_source

__all__ = ["Subject", "measure", "open_subject"]

_CPU_FP16 = "ONNX Runtime's x86 CPU kernels compute fp16 in fp32 between casts: fp16 pays on GPUs"
_EMULATED = (
    "bfloat16 ran as float32 with exact rounding (ONNX Runtime's CPU lacks it): accuracy holds, speed means nothing"
)


@dataclass(frozen=True)
class Subject:
    """An export folder whose files match its manifest, ready to run."""

    folder: Path
    manifest: Manifest
    engine: Engine

    @property
    def batch(self) -> BatchRange:
        return self.engine.batch

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(**self.manifest.preprocessing)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits for any number of images."""
        logits: np.ndarray = self.engine(images)[0]
        return logits


def open_subject(folder: Path, threads: int) -> Subject:
    """Check ``folder`` against its manifest and load its graph.

    Raises:
        FasterViTError: no export, changed files, or a graph ONNX Runtime refuses.
    """
    manifest = Manifest.read(folder)
    manifest.check_files(folder)
    return Subject(folder, manifest, Engine.load(folder, backend="ort-cpu", threads=threads))


def measure(
    subjects: Sequence[Subject], data: LabelledImages | None, batch: int, seconds: float, threads: int
) -> list[BenchmarkRow]:
    """One row per subject; speed of all is measured in turns.

    Args:
        batch: throughput batch; latency is taken at the smallest batch a subject serves.
        seconds: timed per subject, for each of latency and throughput.

    Raises:
        FasterViTError: a batch outside a subject's range, or data with another number of classes.
    """
    for subject in subjects:
        _check(subject, data, batch)
    load_before = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    torch.set_num_threads(threads)
    accuracies = _accuracies(subjects, data)
    timers = {subject.folder: _timers(subject, data, batch) for subject in subjects}
    for i in track(range(2), "timing latency, then throughput"):
        interleaved([timers[subject.folder][i] for subject in subjects], seconds)
    rows = []
    for subject, (accuracy, note) in zip(subjects, accuracies, strict=True):
        latency, throughput = timers[subject.folder]
        rows.append(_row(subject, data, accuracy, note, latency, throughput, threads, load_before))
    return rows


def _check(subject: Subject, data: LabelledImages | None, batch: int) -> None:
    manifest = subject.manifest
    if batch not in subject.batch:
        raise FasterViTError(
            f"'{subject.folder}' serves batch {manifest.batch}, not {batch}; pass another --batch or export it again"
        )
    if data is not None and [output["name"] for output in manifest.outputs] != [OUTPUT]:
        raise FasterViTError(f"'{subject.folder}' is a backbone without classes; measure its speed without --data")
    if data is not None and data.classes != manifest.num_classes:
        raise FasterViTError(
            f"dataset '{data.name}' has {data.classes} classes, '{subject.folder}' {manifest.num_classes}; "
            "they must be the same classes in the same order"
        )


def _accuracies(subjects: Sequence[Subject], data: LabelledImages | None) -> list[tuple[Accuracy | None, str]]:
    if data is None:
        return [(None, "") for _ in subjects]
    references: dict[str, np.ndarray | str] = {}
    results: list[tuple[Accuracy | None, str]] = []
    for subject in subjects:
        key = f"{subject.manifest.spec} {subject.manifest.weights}"
        if key not in references:
            references[key] = _reference_predictions(subject, data)
        reference = references[key]
        logits = np.concatenate([subject.run(x) for x, _ in _batches(subject, data, subject.folder.name)])
        predictions, note = (None, reference) if isinstance(reference, str) else (reference, "")
        results.append((accuracy_from_logits(logits, data.labels, predictions), note))
    return results


@torch.inference_mode()
def _reference_predictions(subject: Subject, data: LabelledImages) -> np.ndarray | str:
    """Classes PyTorch fp32 predicts, or why they cannot be had."""
    manifest = subject.manifest
    try:
        source = resolve_source(WeightSource.from_record(manifest.weights))
        model, _ = build_model(ModelSpec.from_record(manifest.spec), source)
    except FasterViTError as error:
        return f"no agreement with PyTorch: {error}"
    batches = _batches(subject, data, f"{manifest.model} PyTorch fp32")
    return np.concatenate([model(torch.from_numpy(x)).argmax(1).numpy() for x, _ in batches])


def _batches(subject: Subject, data: LabelledImages, description: str) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    size = min(subject.batch.maximum, 32)
    batches = data.batches(size, subject.preprocessing, subject.manifest.resolution)
    return track(batches, f"accuracy {description}", total=-(-len(data) // size))


def _timers(subject: Subject, data: LabelledImages | None, batch: int) -> tuple[Timer, Timer]:
    """Latency and throughput timers on real images where there are some, else on noise."""
    resolution, channels = subject.manifest.resolution, subject.manifest.input["shape"][1]
    if data is None:
        images = np.random.default_rng(0).standard_normal((batch, channels, *resolution)).astype(np.float32)
    else:
        some, _ = next(iter(data.batches(min(batch, len(data)), subject.preprocessing, resolution)))
        images = np.resize(some, (batch, *some.shape[1:]))
    small = np.ascontiguousarray(images[: subject.batch.minimum])
    return Timer(partial(subject.engine, small), len(small)), Timer(partial(subject.engine, images), batch)


def _row(
    subject: Subject,
    data: LabelledImages | None,
    accuracy: Accuracy | None,
    note: str,
    latency: Timer,
    throughput: Timer,
    threads: int,
    load_before: float | None,
) -> BenchmarkRow:
    manifest, installed = subject.manifest, versions()
    emulated = subject.engine.emulated
    return BenchmarkRow(
        model=manifest.model,
        precision=manifest.precision,
        backend=subject.engine.backend,
        resolution="x".join(str(side) for side in manifest.resolution),
        parameters=manifest.graph["deploy"]["parameters_after"],
        dataset=data.name if data else None,
        images=accuracy.images if accuracy else None,
        top1=accuracy.top1 if accuracy else None,
        top1_low=accuracy.low if accuracy else None,
        top1_high=accuracy.high if accuracy else None,
        agreement_fp32=accuracy.agreement if accuracy else None,
        non_finite_logits=accuracy.non_finite if accuracy else None,
        latency_batch=latency.images,
        latency_p50_ms=latency.latency_ms(50),
        latency_p90_ms=latency.latency_ms(90),
        latency_p99_ms=latency.latency_ms(99),
        latency_samples=len(latency.samples),
        throughput_batch=throughput.images,
        throughput_img_per_s=throughput.images_per_second(),
        throughput_p20_img_per_s=throughput.images_per_second(80),
        throughput_p80_img_per_s=throughput.images_per_second(20),
        throughput_samples=len(throughput.samples),
        speed_is_meaningful=not emulated,
        on_front=None,
        dominated_by=None,
        slower_because="",
        engines_against_8_bits="",
        note="; ".join(text for text in (note, _speed_note(manifest.precision, emulated)) if text),
        file_bytes=sum(entry["bytes"] for name, entry in manifest.files.items() if name.startswith(GRAPH_FILE)),
        onnx_sha256=manifest.files[GRAPH_FILE]["sha256"],
        weights_sha256=manifest.weights.get("sha256", f"random, seed {manifest.weights.get('seed')}"),
        export=subject.folder.name,
        cpu=cpu_name(),
        threads=threads,
        load_before=load_before,
        os=platform.platform(),
        fastervit_trt=__version__,
        python=installed["python"],
        torch=installed["torch"],
        onnxruntime=installed.get("onnxruntime", installed.get("onnxruntime-gpu", "")),
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _speed_note(precision: str, emulated: bool) -> str:
    if emulated:
        return _EMULATED
    return _CPU_FP16 if precision == "fp16" and platform.machine() in ("x86_64", "AMD64") else ""
