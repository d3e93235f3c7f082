"""An export folder in, an :class:`Engine` out that runs images; the same for every backend.

```python
with Engine.load("faster_vit_0_224-fp16") as engine:
    (logits,) = engine(images)  # float32 (B, 3, H, W), any B
    for (logits,) in engine.run_many(batches):  # copies and execution of consecutive batches overlap
        ...
```
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastervit_trt.artifacts import MANIFEST_NAME, Manifest
from fastervit_trt.engines.runtime.backends import Backend, Opened, Wish, open_backend
from fastervit_trt.engines.runtime.images import (
    check_images,
    host_array,
    is_on_gpu,
    is_tensor,
    pad,
    pad_tensor,
    parts_of,
)
from fastervit_trt.engines.runtime.session import Ticket, Timed
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

if TYPE_CHECKING:
    import torch

__all__ = ["Engine"]


class Engine:
    """Runs the images of an export. Made by :meth:`load`; may be called from several threads, one after the other.

    Attributes:
        backend: "tensorrt", "rtx", "ort-cuda" or "ort-cpu".
        outputs: names in the graph's order.
        batch: sizes executed at once; any number of images may be passed.
        emulated: arithmetic is exact for the precision, speed means nothing.
        description: one line for reports.
        passed_over: backends thought better but not to be had here, with the reasons.
        file: of the folder, that is run: an engine or the graph.
    """

    def __init__(self, opened: Opened, image_shape: tuple[int, ...]) -> None:
        session = opened.session
        self.backend: Backend = opened.backend
        self.outputs: tuple[str, ...] = session.outputs
        self.batch: BatchRange = session.batch
        self.emulated: bool = session.emulated
        self.description: str = session.description
        self.passed_over: tuple[str, ...] = opened.passed_over
        self.file: str = opened.file
        self._session = session
        self._image_shape = image_shape
        self._lock = threading.RLock()
        # Also for who forgets to close: when the engine is collected, or at the interpreter's exit while CUDA is there.
        self._close = weakref.finalize(self, session.close)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backend: str = "auto",
        profile: int = 0,
        streams: int = 1,
        slots: int = 2,
        cuda_graph: bool = True,
        device: int = 0,
        threads: int | None = None,
        trust: bool = False,
    ) -> Engine:
        """Load an export folder, or one engine of it.

        Args:
            path: the folder, or an engine file in it.
            backend: "tensorrt", "rtx", "ort-cuda", "ort-cpu", or "auto": the first of them that runs here.
            profile: optimisation profile of an engine, counted from 0.
            streams: batches executed at the same time by TensorRT, each with activation memory of its own.
            slots: batches under way per stream: 2 copy and execute at the same time, 3 copy both ways meanwhile.
            cuda_graph: launch what comes again as a CUDA graph.
            device: number of the GPU.
            threads: of ``ort-cpu``; ONNX Runtime's own choice by default.
            trust: also run an engine that nobody known has signed. Engines are executable code.

        Raises:
            FasterViTError: not an export, not admitted, or nothing here runs it; says what to do.
        """
        folder, file = _resolve(Path(path))
        wish = Wish(folder, file, backend, profile, streams, slots, cuda_graph, device, threads, trust)
        wish.check()
        manifest = Manifest.read(folder)
        if file is not None:
            wish = _for_file(manifest, wish)
        return cls(open_backend(manifest, wish), tuple(manifest.input["shape"][1:]))

    def __call__(self, images: Any) -> tuple[Any, ...]:
        """Outputs of any number of images.

        Args:
            images: float32 (B, 3, H, W), prepared as the manifest says: a NumPy array, or a PyTorch tensor. CUDA
                tensors are read where they are, in the order of PyTorch's current stream.

        Returns:
            One float32 array (B, …) per output; CUDA tensors for CUDA tensors, without waiting for them.

        Raises:
            FasterViTError: other shape, type or device; closed; or the GPU failed.
        """
        if is_tensor(images) and is_on_gpu(images):
            return self._run_on_gpu(images)
        return _collect(self._submit(images))

    def run_many(self, batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Outputs of each of ``batches``, in order; meanwhile the next ones are on their way.

        Args:
            batches: each as for a call, of any size; read ahead by as many as can be under way.

        Raises:
            FasterViTError: as for a call.
        """
        under_way: deque[list[_Part]] = deque()
        for images in batches:
            if is_tensor(images) and is_on_gpu(images):
                while under_way:
                    yield _collect(under_way.popleft())
                yield self._run_on_gpu(images)
                continue
            under_way.append(self._submit(images))
            while sum(map(len, under_way)) >= self._session.depth:
                yield _collect(under_way.popleft())
        while under_way:
            yield _collect(under_way.popleft())

    def timed(self, images: np.ndarray, *, transfers: bool = False, cold_cache: bool = False) -> Timed:
        """Time executions of one batch, which stays on the GPU; in as many streams as the engine was loaded with.

        Args:
            images: float32 (B, 3, H, W), of a size the engine serves; in host memory.
            transfers: copies from and to the host are timed, too.
            cold_cache: empty the GPU's L2 cache before each batch.

        Returns:
            What times it, and must be closed before the engine is called again.

        Raises:
            FasterViTError: another shape, type or batch; or it cannot be timed that way.
        """
        array = np.ascontiguousarray(host_array(images))
        check_images(array, self._image_shape)
        if len(array) not in self.batch:
            raise FasterViTError(f"{self.file} serves batch {self.batch}, not {len(array)}; time another batch")
        with self._lock:
            self._check_open()
            return self._session.timed(array, transfers=transfers, cold_cache=cold_cache)

    def close(self) -> None:
        """Give memory and GPU back; results stay valid. Closing twice is allowed."""
        with self._lock:
            self._close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _submit(self, images: Any) -> list[_Part]:
        array = host_array(images)
        check_images(array, self._image_shape)
        parts = []
        with self._lock:
            self._check_open()
            for where, missing in parts_of(len(array), self.batch):
                some = array[where]
                parts.append(
                    _Part(self._session.submit(pad(some, missing)), len(some), len(some) + missing, self._lock)
                )
        return parts

    def _run_on_gpu(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        import torch

        check_images(images, self._image_shape)
        with self._lock:
            self._check_open()
            images = images.detach()
            pieces = [
                tuple(output[: len(images[where])] for output in self._session.run_on_gpu(pad_tensor(images[where], n)))
                for where, n in parts_of(len(images), self.batch)
            ]
        return pieces[0] if len(pieces) == 1 else tuple(torch.cat(outputs) for outputs in zip(*pieces, strict=True))

    def _check_open(self) -> None:
        if not self._close.alive:
            raise FasterViTError("the engine is closed; load it again")


class _Part:
    """A ticket for ``size`` images, of which the first ``count`` were asked for."""

    def __init__(self, ticket: Ticket, count: int, size: int, lock: AbstractContextManager[bool]) -> None:
        self._ticket, self._count, self._size, self._lock = ticket, count, size, lock

    def outputs(self) -> tuple[np.ndarray, ...]:
        with self._lock:
            outputs = self._ticket.result()
        return outputs if self._count == self._size else tuple(output[: self._count] for output in outputs)


def _collect(parts: list[_Part]) -> tuple[np.ndarray, ...]:
    outputs = [part.outputs() for part in parts]
    return outputs[0] if len(outputs) == 1 else tuple(np.concatenate(pieces) for pieces in zip(*outputs, strict=True))


def _resolve(path: Path) -> tuple[Path, str | None]:
    """The export folder, and the engine file if one in particular is meant."""
    if path.name == MANIFEST_NAME:
        return path.parent, None
    return (path.parent, path.name) if path.is_file() else (path, None)


def _for_file(manifest: Manifest, wish: Wish) -> Wish:
    """The backend an engine file is for."""
    record = next((record for record in manifest.engines if record.get("file") == wish.file), None)
    if record is None:
        listed = ", ".join(str(record.get("file")) for record in manifest.engines) or "none"
        raise FasterViTError(f"'{wish.folder / (wish.file or '')}' is no engine the manifest lists ({listed})")
    backend = "rtx" if record.get("runtime") == "tensorrt-rtx" else "tensorrt"
    if wish.backend not in ("auto", backend):
        raise FasterViTError(f"'{wish.file}' is an engine for the backend {backend}, not {wish.backend}")
    return replace(wish, backend=backend)
