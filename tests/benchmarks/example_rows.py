"""Rows of a report, made up."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastervit_trt.benchmarks.rows import BenchmarkRow


def row(model: str, top1: float | None, speed: float, **changes: Any) -> BenchmarkRow:
    """One of ``model`` with this accuracy in [0, 1] and this many images per second."""
    defaults: dict[str, Any] = {f.name: "x" for f in dataclasses.fields(BenchmarkRow)}
    defaults.update(
        precision="fp16",
        throughput_batch=8,
        schema=1,
        note="",
        slower_because="",
        engines_against_8_bits="",
        file_bytes=1,
        parameters=1,
        images=100,
    )
    defaults.update(agreement_fp32=1.0, latency_p50_ms=1.0, latency_p90_ms=1.0, latency_p99_ms=1.0, load_before=0.1)
    defaults.update(
        model=model,
        top1=top1,
        top1_low=None if top1 is None else top1 - 0.01,
        top1_high=None if top1 is None else top1 + 0.01,
        throughput_img_per_s=speed,
        throughput_p20_img_per_s=speed * 0.95,
        throughput_p80_img_per_s=speed * 1.05,
        speed_is_meaningful=True,
    )
    return BenchmarkRow(**{**defaults, **changes})
