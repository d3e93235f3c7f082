"""Stage ``environment``: the GPU as it is found, and its two ceilings, measured: copying, and multiplying matrices."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from fastervit_trt.benchmarks.gpu.cases import Ceilings
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.rows import OK
from fastervit_trt.benchmarks.gpu.state import StateProbe
from fastervit_trt.benchmarks.gpu.timing import Timings, clock_for, take_turns

__all__ = ["COPY", "MATMUL", "ceilings_of", "measure_ceilings", "run"]

COPY, MATMUL = "device-to-device copy", "matrix product"  # cases, from which ceilings are read
_PERCENTILES = (50, 20, 80)
_COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 20}
_SIDE = {"cuda": 8192, "cpu": 64}


def run(job: Job, report: Report) -> None:
    """What the device says of itself, and the ceilings."""
    idle = StateProbe().read()
    for name, value in asdict(idle).items():
        if value not in (None, ""):
            number = isinstance(value, float)
            report.add("state when found", name, OK, "" if number else value, value=value if number else None)
    if job.device == "cuda":
        properties = torch.cuda.get_device_properties("cuda")
        report.add("device", "multiprocessors", OK, value=properties.multi_processor_count)
        report.add("device", "L2 cache", OK, value=properties.L2_cache_size / 1e6, unit="MB")
        report.add("device", "memory", OK, value=properties.total_memory / 1e9, unit="GB")
    measure_ceilings(report, job.device, job.seconds)


def measure_ceilings(report: Report, device: str, seconds: float) -> None:
    """Rows of both, in turns, on random numbers: zeros multiply faster than any data."""
    clock = clock_for(device)
    size, side = _COPY_BYTES[device], _SIDE[device]
    source = torch.randint(-(2**31), 2**31 - 1, (size // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).half() for _ in range(2))
    report.start(COPY, "")
    laps = {
        COPY: clock.lap(lambda: target.copy_(source), [()], capture=True),
        MATMUL: clock.lap(lambda: a @ b, [()], capture=True),
    }
    timings, state = take_turns(laps, seconds, clock)
    work = {COPY: (2 * size / 1e9, "GB/s"), MATMUL: (2 * side**3 / 1e12, "TFLOP/s")}
    shapes = {COPY: f"{size} bytes", MATMUL: f"{side}x{side}x{side}"}
    for case, (amount, unit) in work.items():
        time_us = _microseconds(timings[case])
        report.add(
            case,
            "",
            OK,
            value=amount / time_us[0] * 1e6,
            unit=unit,
            shape=shapes[case],
            dtype="fp16" if case == MATMUL else "",
            time_us=time_us[0],
            time_p20_us=time_us[1],
            time_p80_us=time_us[2],
            rounds=len(timings[case].rounds),
            samples=len(timings[case].samples),
            **asdict(state),
        )
    report.idle()


def ceilings_of(values: dict[str, float | None]) -> Ceilings | None:
    """From the values of the cases; None where one is missing."""
    copy, matmul = values.get(COPY), values.get(MATMUL)
    return Ceilings(copy, matmul) if copy and matmul else None


def _microseconds(timings: Timings) -> list[float]:
    return [float(x) * 1e6 for x in np.percentile(timings.samples, _PERCENTILES)]
