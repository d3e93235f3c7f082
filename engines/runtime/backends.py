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
from fastervit_trt.engines.runtime.device import Device
from fastervit_trt.engines.runtime.ort_session import OrtCpu, OrtCuda, why_no_cuda_provider
from fastervit_trt.engines.runtime.pycuda_device import open_device
from fastervit_trt.engines.runtime.session import Session
from fastervit_trt.engines.runtime.tensorrt_api import Source, import_runtime
from fastervit_trt.engines.runtime.tensorrt_session import TensorRtSession
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["BACKENDS", "Backend", "Opened", "Wish", "open_backend"]

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


def open_backend(manifest: Manifest, wish: Wish) -> Opened:
    """What ``wish`` asks for.

    Raises:
        FasterViTError: it cannot be had; the message says what is missing and how to get it.
    """
    passed_over: list[str] = []
    for backend in BACKENDS if wish.backend == "auto" else (wish.backend,):
        assert backend in BACKENDS
        try:
            return Opened(backend, _open(backend, manifest, wish), tuple(passed_over))
        except FasterViTError as error:
            if wish.backend != "auto" or backend == BACKENDS[-1]:
                raise
            passed_over.append(f"{backend}: {error}")
            if not isinstance(error, _AbsentError):
                warn(f"{backend} is passed over: {error}")
    raise AssertionError("the last backend opens or raises")


def _open(backend: Backend, manifest: Manifest, wish: Wish) -> Session:
    path, batch = wish.folder / GRAPH_FILE, BatchRange.parse(manifest.batch)
    if backend == "ort-cpu":
        return OrtCpu(path, batch, wish.threads)
    if backend == "ort-cuda":
        reason = why_no_cuda_provider() or _why_no_driver()
        if reason is not None:
            raise _AbsentError(reason)
        shapes = {output["name"]: tuple(output["shape"][1:]) for output in manifest.outputs}
        return OrtCuda(path, batch, shapes, wish.device)
    return _open_tensorrt(_RUNTIMES[backend], manifest, wish)


def _open_tensorrt(runtime: RuntimeName, manifest: Manifest, wish: Wish) -> Session:
    records = [record for record in manifest.engines if record.get("runtime") == runtime]
    if wish.file is not None:
        records = [record for record in records if record.get("file") == wish.file]
    if not records:
        raise _AbsentError(f"'{wish.folder}' has no {NAMES[runtime]} engine; {_build(runtime, wish.folder)}")
    reason = _why_no_driver()
    if reason is not None:
        raise _AbsentError(f"{NAMES[runtime]} needs a GPU, and {reason}")
    trt, device = import_runtime(runtime), open_device(wish.device)
    record = _for_this_gpu(records, runtime, device, wish)
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
    return TensorRtSession(
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


def _for_this_gpu(records: list[dict[str, Any]], runtime: RuntimeName, device: Device, wish: Wish) -> Mapping[str, Any]:
    """The engine built for this capability, or one that says that it runs here; admission checks the rest."""
    if wish.file is not None:
        return records[0]
    exact = [record for record in records if record.get("compute_capability") == device.capability]
    newer = tuple(map(int, device.capability.split("."))) >= _AMPERE
    anywhere = [record for record in records if newer and record.get("hardware_compatibility") == "ampere+"]
    if not exact + anywhere:
        built_for = ", ".join(sorted({str(record.get("compute_capability")) for record in records}))
        raise _AbsentError(
            f"the {NAMES[runtime]} engines of '{wish.folder}' are for compute capability {built_for}, "
            f"{device.name} has {device.capability}; {_build(runtime, wish.folder, device.capability)}"
        )
    return (exact + anywhere)[0]


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
