"""A request in, a runner on an NVIDIA GPU out: TensorRT, TensorRT-RTX and ONNX Runtime's CUDA provider.

Batches stay in device memory while they are timed, which needs no PyTorch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends.runner import Artifact, Clock, DeviceFacts, Outputs, Request
from fastervit_trt.engines.admission_checks import rebuild_command
from fastervit_trt.engines.api import NAMES, RuntimeName, unavailable_reason
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.runtime.backends import (
    engines_for,
    why_no_engine,
    why_no_gpu,
    why_no_ort_cuda,
    why_not_this_gpu,
)
from fastervit_trt.engines.runtime.engine import Engine
from fastervit_trt.engines.runtime.resident import EMPTY_CACHE_ALONE, EXTRA
from fastervit_trt.engines.runtime.session import Timed
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = [
    "DeviceRunner",
    "open_ort_cuda",
    "open_rtx",
    "open_tensorrt",
    "why_not_ort_cuda",
    "why_not_rtx",
    "why_not_tensorrt",
]

_ENGINE_BACKENDS: Mapping[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_ORT = "ONNX Runtime's CUDA provider"


class DeviceRunner:
    """:class:`~fastervit_trt.benchmarks.backends.runner.Runner` of a loaded engine.

    Args:
        clock: of what times it.
        caveats: what its speed depends on, known before it is timed.
    """

    emulated = False

    def __init__(
        self, engine: Engine, request: Request, artifact: Artifact, device: DeviceFacts, clock: Clock, caveats: str
    ) -> None:
        self.artifact, self.device, self.clock = artifact, device, clock
        self.batch: BatchRange = engine.batch
        self.note = self._caveats = caveats
        self._engine, self._request = engine, request
        self._timed: Timed | None = None

    def outputs(self, images: np.ndarray) -> Outputs:
        """Every output, (N, …) float32, of any number of images, float32 (N, 3, H, W)."""
        return tuple(np.asarray(output) for output in self._engine(images))

    def prepare(self, images: np.ndarray) -> None:
        """Put the batch (B, 3, H, W) float32 on the GPU, once for each stream, and run it until graphs are captured.

        Raises:
            FasterViTError: the engine does not serve such a batch, or the GPU's memory is too small.
        """
        self._close_timed()
        request = self._request
        self._timed = self._engine.timed(images, transfers=request.transfers, cold_cache=request.cold_cache)
        self._take_note(self._timed)

    def latency(self, count: int) -> list[float]:
        """Seconds of each of ``count`` batches, every one waited for before the next."""
        return self._prepared().latency(count)

    def throughput(self, count: int) -> list[float]:
        """Seconds per batch, ``count`` samples, with batches under way in each of the streams."""
        timed = self._prepared()
        samples = timed.throughput(count)
        self._take_note(timed)
        return samples

    def executed(self, count: int) -> int:
        """Batches that ``throughput(count)`` executes."""
        return count if self._request.cold_cache else (count + EXTRA) * self._request.streams

    def close(self) -> None:
        self._close_timed()
        self._engine.close()

    def _prepared(self) -> Timed:
        if self._timed is None:
            raise FasterViTError("no batch to time; call prepare first")
        return self._timed

    def _take_note(self, timed: Timed) -> None:
        self.note = "; ".join(text for text in (self._caveats, timed.note) if text)

    def _close_timed(self) -> None:
        if self._timed is not None:
            self._timed.close()
            self._timed = None


def why_not_tensorrt(request: Request) -> str | None:
    """None where an engine of the export runs here as far as can be told without loading it, else one line."""
    return _why_not_engine("tensorrt", request)


def open_tensorrt(request: Request) -> DeviceRunner:
    """The engine that serves the batch, one tuned for it where there are several.

    Raises:
        FasterViTError: what :func:`why_not_tensorrt` says, or the engine is not admitted or refused.
    """
    return _open_engine("tensorrt", request)


def why_not_rtx(request: Request) -> str | None:
    """As :func:`why_not_tensorrt`, of TensorRT-RTX."""
    return _why_not_engine("tensorrt-rtx", request)


def open_rtx(request: Request) -> DeviceRunner:
    """As :func:`open_tensorrt`, of TensorRT-RTX."""
    return _open_engine("tensorrt-rtx", request)


def why_not_ort_cuda(request: Request) -> str | None:
    """None where ONNX Runtime can run the export on the GPU as far as can be told without loading it, else one line."""
    reason = why_no_gpu(_ORT) or why_no_ort_cuda() or _why_not_cold(request)
    if reason is None and request.cold_cache:
        reason = _why_no_pycuda("emptying the GPU's cache")
    batch = BatchRange.parse(request.manifest.batch)
    if reason is None and request.batch not in batch:
        reason = (
            f"'{request.folder}' serves batch {batch}, not {request.batch}; pass another --batch or export it again"
        )
    return reason


def open_ort_cuda(request: Request) -> DeviceRunner:
    """ONNX Runtime on the GPU.

    Raises:
        FasterViTError: what :func:`why_not_ort_cuda` says, a changed file, or ONNX Runtime refuses the graph.
    """
    reason = why_not_ort_cuda(request)
    if reason is not None:
        raise FasterViTError(reason)
    manifest, folder = request.manifest, request.folder
    names = [name for name in manifest.files if name.startswith(GRAPH_FILE)]
    manifest.check_files(folder, names)
    machine = Machine.detect("tensorrt", request.device)  # whose GPU is meant; no TensorRT is needed
    engine = Engine.load(folder, backend="ort-cuda", streams=request.streams, device=request.device)
    artifact = _graph_artifact(manifest, names)
    return DeviceRunner(engine, request, artifact, _facts(machine, request), "host", "")


def _why_not_engine(runtime: RuntimeName, request: Request) -> str | None:
    """What is missing that a machine needs, then the engine, then what it must be like; loads nothing."""
    reason = (
        why_no_gpu(NAMES[runtime])
        or unavailable_reason(runtime)
        or _why_no_pycuda(NAMES[runtime])
        or _why_not_cold(request)
        or why_no_engine(runtime, request.manifest, request.folder)
    )
    if reason is not None:
        return reason
    machine = Machine.detect(runtime, request.device)
    if machine.gpu is None or machine.capability is None:
        return _no_such_gpu(request.device)
    here = (machine.gpu, machine.capability)
    reason = why_not_this_gpu(runtime, request.manifest, request.folder, *here)
    return reason or _why_not_batch(runtime, request, machine.capability)


def _open_engine(runtime: RuntimeName, request: Request) -> DeviceRunner:
    reason = _why_not_engine(runtime, request)
    if reason is not None:
        raise FasterViTError(reason)
    machine = Machine.detect(runtime, request.device)
    assert machine.capability is not None
    records = engines_for(runtime, request.manifest, machine.capability)
    record, profile = (_serving(records, request.batch) or [(records[0], 0)])[0]  # a damaged record is not admitted
    engine = Engine.load(
        request.folder / record["file"],
        backend=_ENGINE_BACKENDS[runtime],
        profile=profile,
        streams=request.streams,
        cuda_graph=request.cuda_graph,
        device=request.device,
        trust=request.trust,
    )
    entry = request.manifest.files[engine.file]
    artifact = Artifact(engine.file, entry["sha256"], entry["bytes"])
    caveats = _caveats(record, machine, request)
    return DeviceRunner(engine, request, artifact, _facts(machine, request), "CUDA events", caveats)


def _serving(records: list[dict[str, Any]], batch: int) -> list[tuple[dict[str, Any], int]]:
    """Engines and profiles that serve ``batch``, those tuned for it first."""
    found = [
        (optimum != batch, record, number)
        for record in records
        for number, (low, optimum, high) in enumerate(record.get("profiles", ()))
        if low <= batch <= high
    ]
    return [(record, number) for _, record, number in sorted(found, key=lambda one: one[0])]


def _why_not_batch(runtime: RuntimeName, request: Request, capability: str) -> str | None:
    records, batch = engines_for(runtime, request.manifest, capability), request.batch
    profiles = [profile for record in records for profile in record.get("profiles", ())]
    if not profiles or _serving(records, batch):
        return None
    served = dict.fromkeys(str(low) if low == high else f"{low}–{high}" for low, _, high in profiles)
    wider = f"{min(batch, *(low for low, _, _ in profiles))}:{batch}:{max(batch, *(high for *_, high in profiles))}"
    return (
        f"the {NAMES[runtime]} engines of '{request.folder}' take batches of {', '.join(served)}, not {batch}; "
        f"make one with `{rebuild_command(request.folder, records[0], wider)}`"
    )


def _why_not_cold(request: Request) -> str | None:
    return EMPTY_CACHE_ALONE if request.cold_cache and request.streams > 1 else None


def _why_no_pycuda(who: str) -> str | None:
    if importlib.util.find_spec("pycuda") is not None:
        return None
    return f"{who} needs PyCUDA, which is not installed: pip install 'fastervit-trt[gpu]'"


def _no_such_gpu(device: int) -> str:
    return f"CUDA finds no GPU {device} here; see nvidia-smi and CUDA_VISIBLE_DEVICES, or choose another device"


def _facts(machine: Machine, request: Request) -> DeviceFacts:
    return DeviceFacts("gpu", machine.gpu or "", request.device, machine.capability or "")


def _caveats(record: Mapping[str, Any], machine: Machine, request: Request) -> str:
    """TensorRT chose kernels by timing them on a GPU: on another model of it, others may be faster."""
    tuned_on = record.get("gpu") if record.get("runtime") == "tensorrt" else None
    elsewhere = f"tuned on {tuned_on}, not on this GPU" if tuned_on not in (None, machine.gpu) else ""
    launched = "" if request.cuda_graph else "without CUDA graphs, as asked"
    return "; ".join(text for text in (elsewhere, launched) if text)


def _graph_artifact(manifest: Manifest, names: list[str]) -> Artifact:
    size = sum(manifest.files[name]["bytes"] for name in names)
    return Artifact(GRAPH_FILE, manifest.files[GRAPH_FILE]["sha256"], size)
