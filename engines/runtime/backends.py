"""An export folder and a wish in, a loaded session out: which backend, which engine of the folder, and why not."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastervit_trt.artifacts import Manifest
from fastervit_trt.console import warn
from fastervit_trt.engines.admission import admit
from fastervit_trt.engines.admission_checks import rebuild_command
from fastervit_trt.engines.api import NAMES, RuntimeName
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.runtime.ort_session import OrtCpu, OrtCuda, why_no_cuda_provider
from fastervit_trt.engines.runtime.pycuda_device import open_device
from fastervit_trt.engines.runtime.session import Session
from fastervit_trt.engines.runtime.tensorrt_api import Source, import_runtime
from fastervit_trt.engines.runtime.tensorrt_session import TensorRtSession
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = [
    "BACKENDS",
    "Backend",
    "Opened",
    "Wish",
    "engines_for",
    "open_backend",
    "why_no_engine",
    "why_no_gpu",
    "why_no_ort_cuda",
    "why_not_this_gpu",
]

Backend = Literal["tensorrt", "rtx", "ort-cuda", "ort-cpu"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)  # the fastest first
_RUNTIMES: dict[str, RuntimeName] = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
_AMPERE = (8, 0)


class _AbsentError(FasterViTError):
    """A backend that this folder or this machine does not have, which is no failure where any will do."""


@dataclass(frozen=True)
class Wish:
    """How an engine is to be loaded; the arguments of :meth:`Engine.load`."""

    folder: Path
    file: str | None  # of one engine in particular
    backend: str
    profile: int
    streams: int
    slots: int
    cuda_graph: bool
    device: int
    threads: int | None
    trust: bool

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            FasterViTError: names the argument.
        """
        if self.backend != "auto" and self.backend not in BACKENDS:
            raise FasterViTError(f"there is no backend '{self.backend}'; there are auto, {', '.join(BACKENDS)}")
        if self.streams < 1 or self.slots < 2:
            raise FasterViTError(
                f"at least 1 stream and 2 slots are needed to copy and execute, not {self.streams} and {self.slots}"
            )


@dataclass(frozen=True)
class Opened:
    """A session, and what was thought better but is not to be had here, with the reasons."""

    backend: Backend
    session: Session
    passed_over: tuple[str, ...]
    file: str  # of the folder, that it runs


def open_backend(manifest: Manifest, wish: Wish) -> Opened:
    """What ``wish`` asks for.

    Raises:
        FasterViTError: it cannot be had; the message says what is missing and how to get it.
    """
    passed_over: list[str] = []
    for backend in BACKENDS if wish.backend == "auto" else (wish.backend,):
        assert backend in BACKENDS
        try:
            session, file = _open(backend, manifest, wish)
            return Opened(backend, session, tuple(passed_over), file)
        except FasterViTError as error:
            if wish.backend != "auto" or backend == BACKENDS[-1]:
                raise
            passed_over.append(f"{backend}: {error}")
            if not isinstance(error, _AbsentError):
                warn(f"{backend} is passed over: {error}")
    raise AssertionError("the last backend opens or raises")


def why_no_engine(runtime: RuntimeName, manifest: Manifest, folder: Path, file: str | None = None) -> str | None:
    """None where ``folder`` has an engine for ``runtime`` and this machine a driver, else one line; costs nothing."""
    if not _records(runtime, manifest, file):
        return f"'{folder}' has no {NAMES[runtime]} engine; {_build(runtime, folder)}"
    return why_no_gpu(NAMES[runtime])


def why_no_gpu(who: str) -> str | None:
    """None where this machine has an NVIDIA driver, else one line of ``who`` needs it; costs nothing."""
    reason = _why_no_driver()
    return f"{who} needs a GPU, and {reason}" if reason is not None else None


def why_no_ort_cuda() -> str | None:
    """None where ONNX Runtime is one for CUDA and this machine has a driver, else one line."""
    return why_no_cuda_provider() or _why_no_driver()


def why_not_this_gpu(
    runtime: RuntimeName, manifest: Manifest, folder: Path, gpu: str, capability: str, file: str | None = None
) -> str | None:
    """None where one of the engines of ``folder`` is for GPUs like this one, else one line."""
    records = _records(runtime, manifest, file)
    if file is not None or engines_for(runtime, manifest, capability):
        return None
    built_for = ", ".join(sorted({str(record.get("compute_capability")) for record in records}))
    return (
        f"the {NAMES[runtime]} engines of '{folder}' are for compute capability {built_for}, "
        f"{gpu} has {capability}; {_build(runtime, folder, capability)}"
    )


def engines_for(runtime: RuntimeName, manifest: Manifest, capability: str) -> list[dict[str, Any]]:
    """Records of engines built for this capability, then of those that say they run here; admission checks more."""
    records = _records(runtime, manifest, None)
    exact = [record for record in records if record.get("compute_capability") == capability]
    newer = tuple(map(int, capability.split("."))) >= _AMPERE
    anywhere = [record for record in records if newer and record.get("hardware_compatibility") == "ampere+"]
    return exact + [record for record in anywhere if record not in exact]


def _open(backend: Backend, manifest: Manifest, wish: Wish) -> tuple[Session, str]:
    path, batch = wish.folder / GRAPH_FILE, BatchRange.parse(manifest.batch)
    if backend == "ort-cpu":
        return OrtCpu(path, batch, wish.threads), GRAPH_FILE
    if backend == "ort-cuda":
        reason = why_no_ort_cuda()
        if reason is not None:
            raise _AbsentError(reason)
        shapes = {output["name"]: tuple(output["shape"][1:]) for output in manifest.outputs}
        return OrtCuda(path, batch, shapes, wish.device, wish.streams), GRAPH_FILE
    record, session = _open_tensorrt(_RUNTIMES[backend], manifest, wish)
    return session, str(record["file"])


def _open_tensorrt(runtime: RuntimeName, manifest: Manifest, wish: Wish) -> tuple[Mapping[str, Any], Session]:
    reason = why_no_engine(runtime, manifest, wish.folder, wish.file)
    if reason is not None:
        raise _AbsentError(reason)
    trt, device = import_runtime(runtime), open_device(wish.device)
    reason = why_not_this_gpu(runtime, manifest, wish.folder, device.name, device.capability, wish.file)
    if reason is not None:
        raise _AbsentError(reason)
    named = _records(runtime, manifest, wish.file) if wish.file is not None else []
    record = (named or engines_for(runtime, manifest, device.capability))[0]
    machine = Machine.detect(runtime, wish.device)
    admitted = admit(wish.folder, manifest, record, trust=wish.trust, machine=machine)
    source = Source(
        runtime,
        admitted.content,
        str(wish.folder / record["file"]),
        plugins=admitted.plugin_library,
        weights=admitted.graph,
        host_code=admitted.host_code,
    )
    return record, TensorRtSession(
        device,
        trt,
        source,
        [output["name"] for output in manifest.outputs],
        profile=wish.profile,
        streams=wish.streams,
        slots=wish.slots,
        cuda_graph=wish.cuda_graph,
        spoken=f"{NAMES[runtime]} {trt.__version__}, {record['file']} on {device.name}",
    )


def _records(runtime: RuntimeName, manifest: Manifest, file: str | None) -> list[dict[str, Any]]:
    of_runtime = [record for record in manifest.engines if record.get("runtime") == runtime]
    return [record for record in of_runtime if file in (None, record.get("file"))]


def _build(runtime: RuntimeName, folder: Path, capability: str = "8.9") -> str:
    record = {"runtime": runtime, "compute_capability": capability}
    return f"make one with `{rebuild_command(folder, record)}`"


def _why_no_driver() -> str | None:
    """None where the driver's library is, which costs nothing to find out."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver"
    return None
