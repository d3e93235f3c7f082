"""Rows in, how and where they were measured out, as far as the rows themselves tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from fastervit_trt.benchmarks.report.text import Fact, significant
from fastervit_trt.benchmarks.rows import BenchmarkRow
from fastervit_trt.benchmarks.timing import STABLE

__all__ = ["Machine", "machines", "protocol"]

_VERSIONS = ("fastervit_trt", "python", "torch", "onnxruntime", "tensorrt", "openvino")
_NAMES = {"fastervit_trt": "fastervit-trt", "python": "Python", "torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
_BOOTSTRAP = "intervals of {} are 95 % of resamplings of the images (bootstrap)"
_INTERVALS = {"top-1": "intervals are 95 % Wilson intervals"}
_SAME = {
    "classification": "the share of images with the class of PyTorch fp32",
    "segmentation": "the share of annotated pixels with the class that PyTorch fp32 gives them",
    "detection": "the share of sure boxes (score from 0.5 on) that PyTorch fp32 has, too, and of its that are there: "
    "same class, IoU from 0.9 on, score within 0.1",
}
_NAMES |= {"tensorrt": "TensorRT", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Machine:
    """A device and what is known of it."""

    title: str
    facts: list[Fact]


def protocol(rows: Sequence[BenchmarkRow]) -> list[Fact]:
    """What was done to get the figures of ``rows``; nothing is claimed that no row recorded."""
    if not rows:
        return []
    known = [
        Fact(
            "one file", "Accuracy and speed of a row belong to the same file on the same backend (sha256 in the row)."
        ),
        Fact("accuracy", _accuracy(rows)),
        Fact("clock", _clocks(rows)),
        Fact(
            "warm-up", _span(rows, lambda r: r.warm_up_seconds, "Until the time per batch was stable: {} s per cell.")
        ),
        Fact("rounds", _rounds(rows)),
        Fact("latency", "One batch is handed in, the next when it is done; p50, p90, p95, p99 over single batches."),
        Fact(
            "throughput",
            "Batch over the time of the median call; p20–p80 over calls, so a wide bar is an unsteady cell.",
        ),
        Fact("stability", _stability(rows)),
        Fact("copies", _copies(rows)),
        Fact("machine", _watched(rows)),
    ]
    return [fact for fact in known if fact.text]


def machines(rows: Sequence[BenchmarkRow]) -> list[Machine]:
    """One per device, with what its rows say; where they differ, all values."""
    places: dict[tuple[str, str, str], list[BenchmarkRow]] = {}
    for row in rows:
        places.setdefault((row.machine, row.device or row.cpu or "unknown device", row.cpu), []).append(row)
    return [
        Machine(" · ".join(part for part in (device, name) if part), _machine(members))
        for (name, device, _), members in places.items()
    ]


def _accuracy(rows: Sequence[BenchmarkRow]) -> str:
    judged = [row for row in rows if row.score is not None]
    if not judged:
        return "No labelled images were given, so there is no front: only speeds."
    sets = _distinct(f"{row.dataset} ({row.images} images)" for row in judged)
    ways = _distinct(_INTERVALS.get(row.metric, _BOOTSTRAP).format(row.metric) for row in judged).replace(" | ", "; ")
    same = _distinct(_SAME[row.task] for row in judged if row.task in _SAME).replace(" | ", "; ")
    return f"Every image of {sets}; {ways}. “Same as fp32” is {same}."


def _clocks(rows: Sequence[BenchmarkRow]) -> str:
    words = {
        "host": "the host's monotonic clock around a batch",
        "CUDA events": "CUDA events around a batch on the GPU",
    }
    clocks = sorted({row.clock for row in rows if row.clock})
    return f"Read from {' or '.join(words.get(clock, clock) for clock in clocks)}." if clocks else ""


def _rounds(rows: Sequence[BenchmarkRow]) -> str:
    text = "Cells take turns in {} slices, so that a machine that drifts drifts for all alike."
    return _span(rows, lambda r: r.rounds or None, text)


def _stability(rows: Sequence[BenchmarkRow]) -> str:
    if not any(row.latency_drift is not None or row.throughput_drift is not None for row in rows):
        return ""
    again = sum(row.attempts > 1 for row in rows)
    unstable = sum(row.status == "unstable" for row in rows)
    return (
        "The median of the second half of a cell's time may differ from that of the first by "
        f"{100 * STABLE:.0f} %; else it is measured again in a fresh process, and marked unstable if that fails, too. "
        f"Measured again: {again}; unstable: {unstable}."
    )


def _copies(rows: Sequence[BenchmarkRow]) -> str:
    if not any(row.device_kind == "gpu" for row in rows):
        return ""
    timed = {row.transfers for row in rows if row.device_kind == "gpu"}
    (copied, *others) = timed
    text = "included where the row says so" if others else "included" if copied else "not included"
    cold = (
        "; the L2 cache is emptied before each batch where the row says so" if any(r.cold_cache for r in rows) else ""
    )
    return f"Copies to and from the GPU are {text}{cold}."


def _watched(rows: Sequence[BenchmarkRow]) -> str:
    gpu = any(row.sm_clock_mhz is not None or row.power_w is not None for row in rows)
    load = any(row.other_load is not None for row in rows)
    what = ["clocks, power, temperature and throttle reasons of the GPU"] if gpu else []
    what += ["what other processes used of the processor"] if load else []
    if not what:
        return ""
    flagged = sum(bool(row.flags) for row in rows)
    return f"Watched meanwhile: {' and '.join(what)}. Rows flagged for it: {flagged}."


def _machine(rows: Sequence[BenchmarkRow]) -> list[Fact]:
    def every(value: Callable[[BenchmarkRow], object]) -> str:
        return _distinct(str(value(row)) for row in rows if value(row) not in (None, ""))

    stamps = sorted(row.timestamp_utc for row in rows if row.timestamp_utc)
    versions = [f"{_NAMES[name]} {found}" for name in _VERSIONS if (found := every(attrgetter(name)))]
    known = [
        Fact("cells", str(len(rows))),
        Fact("compute capability", every(lambda r: r.compute_capability)),
        Fact("driver", every(lambda r: r.driver)),
        Fact("CUDA", every(lambda r: r.cuda)),
        Fact("processor", every(lambda r: r.cpu)),
        Fact("threads", every(lambda r: r.threads)),
        Fact("affinity", every(lambda r: r.affinity)),
        Fact("load before", _span(rows, lambda r: r.load_before, "{}")),
        Fact("SM clock", _span(rows, lambda r: r.sm_clock_mhz, "{} MHz while timed")),
        Fact("lowest SM clock", _span(rows, lambda r: r.sm_clock_low_mhz, "{} MHz")),
        Fact("power", _span(rows, lambda r: r.power_w, "{} W")),
        Fact("temperature", _span(rows, lambda r: r.temperature_c, "{} °C at most")),
        Fact("throttle reasons", every(lambda r: r.throttle)),
        Fact("system", every(lambda r: r.os)),
        Fact("versions", ", ".join(versions)),
        Fact("measured", " to ".join(dict.fromkeys((stamps[0], stamps[-1]))) if stamps else ""),
    ]
    return [fact for fact in known if fact.text]


def _distinct(values: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(values))


def _span(rows: Sequence[BenchmarkRow], value: Callable[[BenchmarkRow], float | None], text: str) -> str:
    """``text`` with "3" or "3–7" for its braces; empty where no row has the value."""
    known = [found for row in rows if (found := value(row)) is not None]
    if not known:
        return ""
    return text.format("–".join(dict.fromkeys(significant(end) for end in (min(known), max(known)))))
