"""The process of one cell: a job on standard input, events on standard output (:mod:`channel`).

Run as ``python -m fastervit_trt.benchmarks.sweep.worker``. A cell opens its artifact, takes its accuracy, warms up
until its time is stable, then times a slice whenever it is its turn.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastervit_trt.accuracy import Accuracy
from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends import BACKENDS
from fastervit_trt.benchmarks.backends.runner import Runner
from fastervit_trt.benchmarks.evaluate import Reference, evaluate
from fastervit_trt.benchmarks.examples import take_examples
from fastervit_trt.benchmarks.sweep.channel import Channel, Job
from fastervit_trt.benchmarks.telemetry import Telemetry
from fastervit_trt.benchmarks.timing import calls_for, warm_up
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import cache_folder
from fastervit_trt.metering import Data, images_at_once, numbered_batches
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages

if TYPE_CHECKING:
    from fastervit_trt.scoring import Score

__all__ = ["main"]

Lap = Callable[[int], list[float]]

_PROGRESS_SECONDS = 0.5
_LEAST_CALLS = 1  # of a slice
_MOST_WARM_UP = (1.0, 10.0)  # seconds, of latency and of throughput each: twice what is timed, within these
_NAMED = 3  # unreadable images, in a row's note
_FIGURE_DIGITS = 5


def main() -> None:
    """Do the job; whatever goes wrong becomes one event."""
    channel = Channel()
    job = Job.from_record(channel.receive())
    try:
        _measure_cell(job, channel)
    except FasterViTError as error:
        channel.send(failed=str(error))
    except Exception as error:  # whatever a backend raises; the row says it, the log has the whole
        traceback.print_exc()
        channel.send(failed=f"{type(error).__name__}: {_first_line(error)}")


def _measure_cell(job: Job, channel: Channel) -> None:
    manifest, data = _manifest_and_data(job)
    channel.send(begin="opening")
    cell = job.cell
    runner = BACKENDS[cell.backend].open(job.options.request(Path(cell.folder), manifest, cell.batch, cell.streams))
    try:
        if data is not None and not job.has_accuracy:
            channel.send(accuracy=_accuracy(job, manifest, data, runner, channel))
        runner.prepare(_timing_images(job, manifest, data))
        channel.send(begin="warming up")
        laps: dict[str, Lap] = {"latency": runner.latency, "throughput": runner.throughput}
        # Processes of the same sweep may be on the GPU, too: they wait for their turn.
        with Telemetry(runner.device, family=os.getppid()) as telemetry:
            least, most = _MOST_WARM_UP
            limit = min(most, max(least, 2 * job.options.seconds))
            warm_up_seconds = sum(warm_up(lap, most_seconds=limit).seconds for lap in laps.values())
            channel.send(ready=_facts(runner), context=telemetry.context(), warm_up_seconds=warm_up_seconds)
            _take_turns(job, runner, laps, telemetry, channel)
            channel.send(finished={**telemetry.summary(), "note": runner.note})
    finally:
        runner.close()


def _take_turns(job: Job, runner: Runner, laps: Mapping[str, Lap], telemetry: Telemetry, channel: Channel) -> None:
    """A slice per command, until told that it was the last."""
    while (command := channel.receive()).get("slice") is not None:
        taken = {}
        for name, lap in laps.items():
            streams = job.cell.streams if name == "throughput" else 1
            pace = lap(1)[0]  # not kept: something else ran before
            count = calls_for(command["slice"], pace, streams, least=_LEAST_CALLS)
            telemetry.start()
            taken[name] = lap(count)
            telemetry.stop()
            batches = runner.executed(count) if name == "throughput" else count
            telemetry.add_images(batches * job.cell.batch)
        channel.send(slice=taken)


def _manifest_and_data(job: Job) -> tuple[Manifest, Data | None]:
    manifest = Manifest.read(Path(job.cell.folder))
    return manifest, job.options.dataset(manifest.task)


def _accuracy(job: Job, manifest: Manifest, data: Data, runner: Runner, channel: Channel) -> dict[str, Any]:
    """Columns of a row, and which images were right; before, examples are left where the sweep wants them."""
    try:
        reference, note = _reference(job, manifest, data, channel), ""
    except FasterViTError as error:
        reference, note = None, f"no agreement with PyTorch: {error}"
    if job.examples and not isinstance(data, LabelledImages):
        folder, export, count = Path(job.examples), Path(job.cell.folder), job.options.examples
        backend = job.cell.backend
        take_examples(runner.outputs, data, manifest, reference, count, folder, export=export, backend=backend)
    found = evaluate(
        runner.outputs,
        data,
        Preprocessing(**manifest.preprocessing),
        manifest.resolution,
        min(runner.batch.maximum, images_at_once(manifest.resolution)),
        reference,
        _progress(channel, "accuracy", len(data)),
    )
    unreadable = [str(image.path) for image in found.unreadable]
    if unreadable:
        named = ", ".join(Path(name).name for name in unreadable[:_NAMED])
        note = "; ".join(text for text in (note, f"{len(unreadable)} images could not be read ({named})") if text)
    accuracy = found.accuracy
    columns = _top1_columns(accuracy) if isinstance(accuracy, Accuracy) else _score_columns(accuracy)
    columns |= {"dataset": data.name, "dataset_sha256": found.dataset_sha256, "unreadable_images": len(unreadable)}
    right = None if found.right is None else found.right.astype(int).tolist()
    return {"columns": columns, "right": right, "note": note}


def _score_columns(found: Score) -> dict[str, Any]:
    figures = {name: round(value, _FIGURE_DIGITS) for name, value in found.further.items() if math.isfinite(value)}
    return {
        "images": found.images,
        "metric": found.metric,
        "score": found.value,
        "score_low": found.low,
        "score_high": found.high,
        "figures": json.dumps(figures),
        "agreement_fp32": found.agreement,
        "non_finite_logits": found.non_finite,
    }


def _top1_columns(found: Accuracy) -> dict[str, Any]:
    return {
        "images": found.images,
        "top1": found.top1,
        "top1_low": found.low,
        "top1_high": found.high,
        "top5": found.top5,
        "top5_low": found.top5_low,
        "top5_high": found.top5_high,
        "agreement_fp32": found.agreement,
        "sqnr_db": found.sqnr_db,
        "non_finite_logits": found.non_finite,
    }


def _reference(job: Job, manifest: Manifest, data: Data, channel: Channel) -> Reference:
    from fastervit_trt.benchmarks.reference import reference_outputs  # PyTorch, which other cells need not

    progress = _progress(channel, "PyTorch fp32", len(data))
    return reference_outputs(manifest, data, cache_folder() / "references", progress, job.options.threads)


def _timing_images(job: Job, manifest: Manifest, data: Data | None) -> np.ndarray:
    """Real images where there are some, else noise: (B, 3, H, W) float32."""
    batch, resolution = job.cell.batch, manifest.resolution
    if data is None:
        shape = (batch, manifest.input["shape"][1], *resolution)
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    how = Preprocessing(**manifest.preprocessing)
    some, _ = next(iter(numbered_batches(data, min(batch, len(data)), how, resolution)))
    return np.ascontiguousarray(np.resize(some, (batch, *some.shape[1:])))


def _facts(runner: Runner) -> dict[str, Any]:
    artifact, device = runner.artifact, runner.device
    return {
        "artifact": artifact.name,
        "artifact_sha256": artifact.sha256,
        "file_bytes": artifact.bytes,
        "device": device.name,
        "device_kind": device.kind,
        "compute_capability": device.compute_capability,
        "clock": runner.clock,
        "speed_is_meaningful": not runner.emulated,
        "note": runner.note,
    }


def _progress(channel: Channel, what: str, total: int) -> Callable[[int], None]:
    """A function that is told how many images are done, and passes that on now and then."""
    told = -_PROGRESS_SECONDS

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            channel.send(progress=what, done=done, total=total)

    return tell


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


if __name__ == "__main__":
    main()
