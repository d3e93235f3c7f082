"""What was answered, refused and executed, counted; as Triton's statistics in JSON and as Prometheus text.

Names and units are Triton's, so that what reads its statistics and metrics reads these:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html. A client library
for Prometheus would bring a registry that is global to the process, for counters that are kept here anyway.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastervit_trt.deploy.serving.refusal import FailureReason

__all__ = ["Spent", "Statistics"]

_COUNTERS = {
    "nv_inference_request_success": "Requests answered",
    "nv_inference_request_failure": "Requests not answered, by reason",
    "nv_inference_count": "Images inferred for requests answered",
    "nv_inference_exec_count": "Executions of the model",
    "nv_inference_request_duration_us": "Time of answered requests from their complete body on, in microseconds",
    "nv_inference_queue_duration_us": "Time requests waited for their execution, in microseconds",
    "nv_inference_compute_input_duration_us": "Time to read tensors or decode pictures, in microseconds",
    "nv_inference_compute_infer_duration_us": "Time of the execution that each request shared, in microseconds",
    "nv_inference_compute_output_duration_us": "Time to write responses, in microseconds",
}
_BATCH_SIZES = "fastervit_batch_size_executions"
_WAITING = "nv_inference_pending_request_count"


@dataclass(frozen=True)
class Spent:
    """Seconds of one answered request."""

    input_s: float
    queue_s: float
    infer_s: float
    output_s: float
    total_s: float


@dataclass
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)

    def json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class _Counted:
    """One model's; ``sizes`` is the time of executions by number of images."""

    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    input: _Duration = field(default_factory=_Duration)
    infer: _Duration = field(default_factory=_Duration)
    output: _Duration = field(default_factory=_Duration)
    reasons: Counter[FailureReason] = field(default_factory=Counter)
    sizes: dict[int, _Duration] = field(default_factory=dict)
    images: int = 0
    last_ms: int = 0


class Statistics:
    """Counts of every model since the start; all methods may be called from any thread."""

    def __init__(self, models: Sequence[str], version: str) -> None:
        self._version = version
        self._lock = threading.Lock()
        self._counted = {model: _Counted() for model in models}

    def answered(self, model: str, images: int, spent: Spent) -> None:
        with self._lock:
            counted = self._counted[model]
            counted.images += images
            counted.last_ms = time.time_ns() // 1_000_000
            counted.success.add(spent.total_s)
            counted.input.add(spent.input_s)
            counted.queue.add(spent.queue_s)
            counted.infer.add(spent.infer_s)
            counted.output.add(spent.output_s)

    def failed(self, model: str, reason: FailureReason, seconds: float) -> None:
        with self._lock:
            self._counted[model].fail.add(seconds)
            self._counted[model].reasons[reason] += 1

    def executed(self, model: str, images: int, seconds: float) -> None:
        with self._lock:
            self._counted[model].sizes.setdefault(images, _Duration()).add(seconds)

    def json(self, model: str) -> dict[str, Any]:
        """Triton's record of a model."""
        nothing = _Duration().json()
        with self._lock:
            counted = self._counted[model]
            return {
                "name": model,
                "version": self._version,
                "last_inference": counted.last_ms,
                "inference_count": counted.images,
                "execution_count": sum(time.count for time in counted.sizes.values()),
                "inference_stats": {
                    "success": counted.success.json(),
                    "fail": counted.fail.json(),
                    "queue": counted.queue.json(),
                    "compute_input": counted.input.json(),
                    "compute_infer": counted.infer.json(),
                    "compute_output": counted.output.json(),
                    "cache_hit": nothing,
                    "cache_miss": nothing,
                },
                "batch_stats": [
                    {"batch_size": size, "compute_input": nothing, "compute_infer": t.json(), "compute_output": nothing}
                    for size, t in sorted(counted.sizes.items())
                ],
            }

    def prometheus(self, waiting: int) -> str:
        """All counters in Prometheus' text format, and the gauge of requests that are ``waiting``."""
        with self._lock:
            return "\n".join([*self._counter_lines(), *self._size_lines(), *_gauge_lines(waiting)]) + "\n"

    def _counter_lines(self) -> Iterator[str]:
        for name, meaning in _COUNTERS.items():
            yield f"# HELP {name} {meaning}"
            yield f"# TYPE {name} counter"
            for model, counted in self._counted.items():
                labels = self._labels(model)
                if name == "nv_inference_request_failure":
                    reasons: tuple[FailureReason, ...] = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
                    for reason in reasons:
                        yield f'{name}{{{labels},reason="{reason}"}} {counted.reasons[reason]}'
                else:
                    yield f"{name}{{{labels}}} {_value(name, counted)}"

    def _size_lines(self) -> Iterator[str]:
        yield f"# HELP {_BATCH_SIZES} Executions by the number of images in them"
        yield f"# TYPE {_BATCH_SIZES} counter"
        for model, counted in self._counted.items():
            for size, duration in sorted(counted.sizes.items()):
                yield f'{_BATCH_SIZES}{{{self._labels(model)},images="{size}"}} {duration.count}'

    def _labels(self, model: str) -> str:
        return f'model="{_escaped(model)}",version="{self._version}"'


def _value(name: str, counted: _Counted) -> int:
    microseconds = {
        "nv_inference_request_duration_us": counted.success,
        "nv_inference_queue_duration_us": counted.queue,
        "nv_inference_compute_input_duration_us": counted.input,
        "nv_inference_compute_infer_duration_us": counted.infer,
        "nv_inference_compute_output_duration_us": counted.output,
    }
    if name in microseconds:
        return microseconds[name].ns // 1000
    executions = sum(duration.count for duration in counted.sizes.values())
    counts = {"nv_inference_request_success": counted.success.count, "nv_inference_count": counted.images}
    return counts.get(name, executions)


def _gauge_lines(waiting: int) -> list[str]:
    return [
        f"# HELP {_WAITING} Complete requests that have no answer yet",
        f"# TYPE {_WAITING} gauge",
        f"{_WAITING} {waiting}",
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
