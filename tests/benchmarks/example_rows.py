"""Rows and records of a report, made up: a plain one to vary, and two machines' worth as a sweep would leave them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastervit_trt.accuracy import wilson_interval
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import BenchmarkRow

CPU = "AMD EPYC"
GPU = "NVIDIA Example GPU"  # no such device: its figures must not be taken for measured ones
IMAGES = 599
_RIGHT = {"faster_vit_digits_l": 595, "faster_vit_digits_m": 592, "faster_vit_digits_s": 582}


def row(model: str, top1: float | None, speed: float, **changes: Any) -> BenchmarkRow:
    """One of ``model`` with this accuracy in [0, 1] and this many images per second at batch 8."""
    milliseconds = 8e3 / speed
    defaults: dict[str, Any] = {
        "model": model,
        "precision": "fp16",
        "backend": "ort-cpu",
        "resolution": "224x224",
        "batch": 8,
        "status": "ok",
        "export": f"{model}-fp16",
        "artifact": "model.onnx",
        "artifact_sha256": "ab" * 32,
        "weights_sha256": "cd" * 32,
        "file_bytes": 1_500_000,
        "parameters": 132_658,
        "dataset": None if top1 is None else "digits, held-out third",
        "images": None if top1 is None else 100,
        "top1": top1,
        "top1_low": None if top1 is None else top1 - 0.01,
        "top1_high": None if top1 is None else top1 + 0.01,
        "agreement_fp32": None if top1 is None else 1.0,
        "clock": "host",
        "throughput_img_per_s": speed,
        "throughput_p20_img_per_s": speed * 0.95,
        "throughput_p80_img_per_s": speed * 1.05,
        "throughput_samples": 500,
        "throughput_drift": 0.012,
        "latency_p20_ms": milliseconds * 0.95,
        "latency_p50_ms": milliseconds,
        "latency_p80_ms": milliseconds * 1.05,
        "latency_p90_ms": milliseconds * 1.1,
        "latency_p95_ms": milliseconds * 1.2,
        "latency_p99_ms": milliseconds * 1.6,
        "latency_samples": 500,
        "latency_drift": -0.008,
        "rounds": 5,
        "warm_up_seconds": 0.8,
        "device": CPU,
        "device_kind": "cpu",
        "cpu": CPU,
        "threads": 2,
        "affinity": "0-1",
        "load_before": 0.1,
        "other_load": 0.02,
        "os": "Linux",
        "fastervit_trt": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "onnxruntime": "1.31.1",
        "timestamp_utc": "2026-01-02T03:04:05+00:00",
    }
    return BenchmarkRow(**{**defaults, **changes})


def judged(model: str, speed: float, *, wrong_more: int = 0, **changes: Any) -> BenchmarkRow:
    """A row of a digits model, with the accuracy it has and its interval, less some images."""
    right = _RIGHT[model] - wrong_more
    low, high = wilson_interval(right, IMAGES)
    accuracy = {"images": IMAGES, "top1_low": low, "top1_high": high, "sqnr_db": 58.3}
    return row(model, right / IMAGES, speed, **{**accuracy, "export": f"{model}-x", **changes})


def record(of: BenchmarkRow, *, seed: int = 0, drift: float = 0.0) -> Record:
    """``of`` with 5 rounds of 60 latencies about its p50, which become longer by ``drift``."""
    rng = np.random.default_rng(seed)
    noise = 1 + 0.02 * np.abs(rng.standard_normal(300)) + drift * np.linspace(-0.5, 0.5, 300)
    samples = (of.latency_p50_ms or 1.0) / 1e3 * noise
    samples[rng.integers(0, 300, 3)] *= 2.5
    rounds = tuple(tuple(float(s) for s in part) for part in np.array_split(samples, 5))
    return Record(of, latency_s=rounds, throughput_s=rounds)


def sweep() -> list[Record]:
    """Digits models on a processor and on a GPU; some rows are unstable, flagged, failed, skipped or emulated."""
    return [*_on_the_processor(), *_on_the_gpu()]


def of_tasks() -> list[Record]:
    """Detectors and segmenters, one of them at two resolutions, and a segmenter that was not judged."""
    seen = {"dataset": "scenes, validation part", "dataset_sha256": "5c" * 32, "images": 300, "sqnr_db": None}
    found = {"task": "detection", "metric": "mAP", "figures": '{"mAP@50": 0.893, "mAP@75": 0.701}', **seen}
    painted = {
        "task": "segmentation",
        "metric": "mIoU",
        "figures": '{"pixel accuracy": 0.974, "IoU of 3": 0.78, "IoU of 8": 0.71}',
        **seen,
    }

    def judged_by(name: str, score: float, speed: float, **changes: Any) -> BenchmarkRow:
        ends = {"score": score, "score_low": score - 0.02, "score_high": score + 0.02}
        return row(name, None, speed, **{**ends, "agreement_fp32": 0.991, "export": f"{name}-x", **changes})

    rows = [
        judged_by("faster_vit_scenes_detector", 0.612, 210, precision="fp32", resolution="128x128", **found),
        judged_by("faster_vit_scenes_detector", 0.609, 330, precision="int8-cpu", resolution="128x128", **found),
        judged_by("faster_vit_scenes_detector", 0.667, 90, precision="fp32", resolution="192x192", **found),
        judged_by("faster_vit_scenes_segmenter", 0.834, 300, precision="fp32", resolution="128x128", **painted),
        judged_by("faster_vit_scenes_segmenter", 0.829, 410, precision="int8-cpu", resolution="128x128", **painted),
        row("faster_vit_scenes_segmenter", None, 55, precision="fp16", resolution="256x512", task="segmentation"),
    ]
    return [record(one, seed=200 + i) for i, one in enumerate(rows)]


def _on_the_processor() -> list[Record]:
    half = {
        "precision": "fp16",
        "note": "ONNX Runtime's x86 CPU kernels compute fp16 in fp32 between casts: fp16 pays on GPUs",
    }
    eight = {"precision": "int8-cpu", "sqnr_db": 37.2, "agreement_fp32": 0.998}
    rows = [
        judged("faster_vit_digits_s", 2011, precision="fp32", sqnr_db=200.0),
        judged("faster_vit_digits_m", 1258, precision="fp32", sqnr_db=200.0),
        judged("faster_vit_digits_l", 489, precision="fp32", sqnr_db=200.0),
        judged("faster_vit_digits_s", 1488, **half),
        judged("faster_vit_digits_m", 889, **half),
        judged("faster_vit_digits_l", 378, **half),
        judged("faster_vit_digits_s", 2950, wrong_more=1, **eight),
        judged("faster_vit_digits_m", 1890, wrong_more=1, **eight),
        judged("faster_vit_digits_l", 1240, wrong_more=2, **eight, status="unstable",
               reason="throughput drifted by 9.1 %", throughput_drift=0.091, attempts=2),
        judged("faster_vit_digits_m", 1270, precision="fp32", backend="openvino", openvino="2026.3.0"),
        judged("faster_vit_digits_l", 655, precision="fp32", backend="openvino", openvino="2026.3.0"),
        judged("faster_vit_digits_m", 690, precision="fp32", backend="torch", artifact="weights", latency_drift=0.031),
        judged("faster_vit_digits_m", 40, precision="bf16", speed_is_meaningful=False,
               note="bfloat16 ran as float32 with exact rounding"),
        judged("faster_vit_digits_m", 700, wrong_more=1, precision="int8", slower_because="0.56 times as fast as fp32",
               engines_against_8_bits="tensorrt-rtx for 8.9: stem: no kernel in 8 bits"),
    ]  # fmt: skip
    failed = _unmeasured(
        "faster_vit_digits_l", "fp8", "ort-cpu", "failed", "ONNX Runtime has no kernel for float8e4m3fn"
    )
    skipped = _unmeasured("faster_vit_digits_m", "fp16", "tensorrt", "skipped", "no NVIDIA driver is here")
    drifts = {8: 0.18}
    return [*(record(r, seed=i, drift=drifts.get(i, 0.0)) for i, r in enumerate(rows)), Record(failed), Record(skipped)]


def _on_the_gpu() -> list[Record]:
    gpu = {
        "device": GPU, "device_kind": "gpu", "machine": "workstation", "compute_capability": "8.9", "driver": "999.0",
        "cuda": "13.0", "clock": "CUDA events", "sm_clock_mhz": 2505.0, "sm_clock_low_mhz": 2490.0,
        "memory_clock_mhz": 9501.0, "power_w": 214.0, "temperature_c": 61.0, "energy_mj_per_image": 4.1,
        "gpu_memory_mib": 312, "tensorrt": "11.1",
        "audit": "fp16 in 41 of 43 products; 4 of 4 attentions fused; 36 launches",
    }  # fmt: skip
    made = []
    for model, speed in {
        "faster_vit_digits_s": 61000,
        "faster_vit_digits_m": 47000,
        "faster_vit_digits_l": 29500,
    }.items():
        for precision, times in {"fp32": 0.62, "fp16": 1.0, "int8": 1.19, "fp8": 1.21}.items():
            wrong = {"int8": 1, "fp8": 2}.get(precision, 0)
            what = {"precision": precision, "backend": "tensorrt", "artifact": "model.trt-sm89.engine", **gpu}
            made.append(judged(model, speed * times, wrong_more=wrong, **what))
    throttled = "SM clock fell to 1410 MHz, 44 % below the median; throttled: power cap"
    made[-1] = dataclasses.replace(made[-1], flags=throttled, throttle="power cap", sm_clock_low_mhz=1410.0)
    peers = [
        judged(model, 21000 / math.sqrt(i), precision="fp16", backend="torch-fused", **gpu)
        for i, model in enumerate(_RIGHT, 1)
    ]
    unknown = {"throughput_p20_img_per_s": None, "throughput_p80_img_per_s": None}
    single = [
        dataclasses.replace(r, batch=1, throughput_img_per_s=(r.throughput_img_per_s or 0) / 6, **unknown)
        for r in made[:4]
    ]
    return [record(r, seed=100 + i) for i, r in enumerate([*made, *peers, *single])]


def _unmeasured(model: str, precision: str, backend: str, status: Any, reason: str) -> BenchmarkRow:
    return BenchmarkRow(
        model=model, precision=precision, backend=backend, resolution="224x224", batch=8, status=status, reason=reason
    )
