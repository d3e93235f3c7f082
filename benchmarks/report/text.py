"""Rows and standings in, the words and numbers of the report out; nothing here is markup."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

from fastervit_trt.benchmarks.pareto import Standing, doubt
from fastervit_trt.benchmarks.report.look import short_name
from fastervit_trt.benchmarks.rows import BenchmarkRow, Variant

__all__ = [
    "Fact",
    "caveats",
    "facts",
    "full_label",
    "interval",
    "metric_title",
    "percent",
    "signed",
    "significant",
    "sqnr",
    "verdict",
]

_EXACT_DB = 200.0  # as fastervit_trt.accuracy writes infinity
_TITLES = {"top-1": "top-1 accuracy, %", "mAP": "mAP (IoU 0.50 to 0.95), %", "mIoU": "mean IoU, %"}
_BY_CLASS = "IoU of "  # begins the name of a figure that there is one of per class
_WORST = 8  # classes that are named where there are many


class Fact(NamedTuple):
    """A term and what is to be said about it."""

    term: str
    text: str


def percent(share: float | None, digits: int = 2) -> str:
    """A share as its percentage without the sign; "–" where there is none."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def significant(value: float | None) -> str:
    """Three significant digits without an exponent: 0.0123, 1.20, 12.3, 1234; a count as it is."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or value == 0:
        return str(value)
    rounded = float(f"{value:.3g}")
    return f"{value:.{min(12, max(0, 2 - math.floor(math.log10(abs(rounded)))))}f}"


def signed(share: float | None) -> str:
    """A drift as "+1.2 %"."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:+.1f} %".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """Of shares, in percent: "97.6–99.4"."""
    return "–" if low is None or high is None else f"{percent(low, 1)}–{percent(high, 1)}"


def sqnr(row: BenchmarkRow) -> str:
    """In dB; logits without any difference have no noise to speak of."""
    if row.sqnr_db is None or math.isnan(row.sqnr_db):
        return "–"
    return "exact" if row.sqnr_db >= _EXACT_DB else f"{row.sqnr_db:.1f}"


def metric_title(metric: str) -> str:
    """An axis of accuracy."""
    return _TITLES.get(metric, f"{metric}, %")


def full_label(row: BenchmarkRow, exports: Collection[Variant] = (), *, resolution: str = "") -> str:
    """Names the row in a sentence; its resolution, too, if it is not ``resolution``, which is told already.

    Args:
        exports: what there are several exports of, which is named with its own.
    """
    size = f" at {row.resolution}" if resolution and row.resolution != resolution else ""
    export = f" ({row.export})" if row.variant in exports and row.export else ""
    return f"{short_name(row.model)} {row.precision}{export}{size} on {row.backend}"


def verdict(standing: Standing, axis: str, exports: Collection[Variant] = ()) -> str:
    """One sentence: on the front of accuracy against ``axis``, or dominated by what, by how much and how surely.

    Args:
        exports: as of :func:`full_label`.
    """
    if standing.on_front is None:
        return f"Not compared by {axis}: {standing.why_not}."
    if standing.on_front:
        mark = ", if its time holds" if doubt(standing.row) else ""
        return f"On the front by {axis}{mark}: no other is better in one of the two without being worse in the other."
    other = standing.dominated_by
    assert other is not None
    how = "Clearly dominated" if standing.clearly else "Dominated within uncertainty"
    chance = "" if standing.clearly else "; intervals overlap, so the order may be chance"
    label = full_label(other, exports, resolution=standing.row.resolution)
    return f"{how} by {axis} by {label}: {_margin(other, standing.row, axis)}{chance}."


def caveats(row: BenchmarkRow) -> Iterator[Fact]:
    """What a reader must know before trusting or comparing the row."""
    if row.measured and doubt(row):
        yield Fact("doubt", doubt(row))
    if not row.speed_is_meaningful:
        yield Fact("speed", "means nothing: the backend emulates the precision")
    if row.non_finite_logits:
        kind = "logits" if row.task == "classification" else "outputs"
        yield Fact(kind, f"{row.non_finite_logits} are NaN or infinite")
    if row.unreadable_images:
        yield Fact("images", f"{row.unreadable_images} could not be read and were left out")
    if row.note:
        yield Fact("note", row.note)
    if row.slower_because:
        yield Fact("not faster in 8 bits", row.slower_because)
    for engine in row.engines_against_8_bits.split(" | "):
        if engine:
            yield Fact("engine, read off its plan", engine)


def facts(row: BenchmarkRow) -> list[Fact]:
    """All that was measured of a row, and of what, in the order of interest; what is unknown is left out."""
    candidates = (
        Fact("ran as", _ran_as(row)),
        Fact("throughput", _throughput(row)),
        Fact("latency", _latency(row)),
        Fact(row.metric, _score(row)),
        *_figures(row),
        Fact("top-5", "" if row.top5 is None else f"{percent(row.top5)} % ({interval(row.top5_low, row.top5_high)})"),
        Fact("same as fp32", "" if row.agreement_fp32 is None else f"{percent(row.agreement_fp32)} % of {_same(row)}"),
        Fact("SQNR", "" if row.sqnr_db is None else sqnr(row) + (" dB" if sqnr(row) != "exact" else "")),
        Fact("file", _file(row)),
        Fact("made of", row.audit),
        Fact(
            "energy", "" if row.energy_mj_per_image is None else f"{significant(row.energy_mj_per_image)} mJ per image"
        ),
        Fact("GPU", _telemetry(row)),
        Fact("processor", _load(row)),
        Fact("memory", _memory(row)),
    )
    return [fact for fact in candidates if fact.text]


def _margin(better: BenchmarkRow, row: BenchmarkRow, axis: str) -> str:
    points = 100 * ((better.score or 0) - (row.score or 0))
    accuracy = f"the same {row.metric}" if points == 0 else f"{points:.2f} points more {row.metric}"
    if axis == "throughput":
        times = (better.throughput_img_per_s or 0) / (row.throughput_img_per_s or 1)
    else:
        times = (row.latency_p50_ms or 0) / (better.latency_p50_ms or 1)
    return f"{accuracy}, {times:.2f} times as fast"


def _ran_as(row: BenchmarkRow) -> str:
    parts = [f"{row.precision} on {row.backend}", f"batch {row.batch} of {row.resolution}"]
    parts += [f"{row.streams} streams"] if row.streams > 1 else []
    parts += ["transfers timed"] if row.transfers else []
    parts += ["cold L2 cache"] if row.cold_cache else []
    return ", ".join(parts)


def _throughput(row: BenchmarkRow) -> str:
    if row.throughput_img_per_s is None:
        return ""
    low, high = row.throughput_p20_img_per_s, row.throughput_p80_img_per_s
    spread = "" if low is None or high is None else f" (p20–p80 {significant(low)}–{significant(high)})"
    samples = _samples(row.throughput_samples, row.throughput_drift)
    return f"{significant(row.throughput_img_per_s)} images/s{spread}{samples}"


def _latency(row: BenchmarkRow) -> str:
    if row.latency_p50_ms is None:
        return ""
    tails = [
        f"{name} {significant(value)}"
        for name, value in (("p90", row.latency_p90_ms), ("p95", row.latency_p95_ms), ("p99", row.latency_p99_ms))
        if value is not None
    ]
    figures = ", ".join([f"p50 {significant(row.latency_p50_ms)}", *tails])
    return f"{figures} ms per batch{_samples(row.latency_samples, row.latency_drift)}"


def _samples(count: int, drift: float | None) -> str:
    parts = [f"{count} samples"] if count else []
    parts += [] if drift is None else [f"drift {signed(drift)}"]
    return "; " + ", ".join(parts) if parts else ""


def _score(row: BenchmarkRow) -> str:
    if row.score is None:
        return ""
    images = "" if row.images is None else f" of {row.images} images"
    return f"{percent(row.score)} % (95 %: {interval(row.score_low, row.score_high)}){images}, {row.dataset}"


def _figures(row: BenchmarkRow) -> Iterator[Fact]:
    """What else was found, in percent; of figures per class the worst."""
    by_class = []
    for name, value in row.further.items():
        if name.startswith(_BY_CLASS):
            by_class.append((value, name.removeprefix(_BY_CLASS)))
        else:
            yield Fact(name, f"{percent(value)} %")
    by_class.sort()
    if by_class:
        worst = ", ".join(f"{name} {percent(value, 1)}" for value, name in by_class[:_WORST])
        more = f"; {len(by_class) - _WORST} classes are better" if len(by_class) > _WORST else ""
        yield Fact("IoU by class", f"{worst} %{more}")


def _same(row: BenchmarkRow) -> str:
    """What agreement with PyTorch fp32 is a share of."""
    return {"segmentation": "pixels", "detection": "boxes"}.get(row.task, "images")


def _file(row: BenchmarkRow) -> str:
    parts = [row.artifact, f"from {row.export}" if row.export else ""]
    parts += [f"{significant(row.file_bytes / 1e6)} MB"] if row.file_bytes is not None else []
    parts += [f"{row.parameters:,} parameters".replace(",", " ")] if row.parameters is not None else []
    parts += [f"sha256 {row.artifact_sha256[:12]}…"] if row.artifact_sha256 else []
    return ", ".join(part for part in parts if part)


def _telemetry(row: BenchmarkRow) -> str:
    low = f", lowest {row.sm_clock_low_mhz:.0f}" if row.sm_clock_low_mhz is not None else ""
    parts = [f"SM {row.sm_clock_mhz:.0f} MHz{low}"] if row.sm_clock_mhz is not None else []
    parts += [f"memory {row.memory_clock_mhz:.0f} MHz"] if row.memory_clock_mhz is not None else []
    parts += [f"{row.power_w:.0f} W"] if row.power_w is not None else []
    parts += [f"{row.temperature_c:.0f} °C"] if row.temperature_c is not None else []
    parts += [f"throttled: {row.throttle}"] if row.throttle else []
    return "; ".join(parts)


def _load(row: BenchmarkRow) -> str:
    parts = [f"{row.threads} threads"] if row.threads is not None else []
    parts += [f"on CPUs {row.affinity}"] if row.affinity else []
    parts += [f"others used {row.other_load:.2f} cores"] if row.other_load is not None else []
    return ", ".join(parts)


def _memory(row: BenchmarkRow) -> str:
    parts = [f"{row.peak_rss_mib} MiB of the process"] if row.peak_rss_mib is not None else []
    parts += [f"{row.gpu_memory_mib} MiB of the GPU"] if row.gpu_memory_mib is not None else []
    return ", ".join(parts)
