"""A model and annotated images in, its outputs in PyTorch fp32 out, from a file where they are known.

They are computed once per model, data and preprocessing: all precisions and backends of one model are compared with the
same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastervit_trt.artifacts import Manifest, new_file
from fastervit_trt.benchmarks.evaluate import Advance, Reference, tell
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import versions
from fastervit_trt.metering import Data, images_at_once, numbered_batches
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, resolve_source

__all__ = ["reference_outputs"]

_INDICES = ("masks", "labels")  # outputs that are class indices: whole numbers, which need a byte or two
_KNOWN = "known"
_DIGEST = hashlib.sha256().digest_size


def reference_outputs(
    manifest: Manifest,
    data: Data,
    cache: Path,
    progress: Advance | None = None,
    threads: int | None = None,
) -> Reference:
    """What PyTorch fp32 yields on the CPU for the model whose weights were exported, for every image of ``data``.

    The arrays are mapped from a file in ``cache``, which is made at the first call and again where it is damaged; one
    that fits into no memory is read as far as it is asked for.

    Args:
        threads: for PyTorch while they are computed; as set by default.

    Raises:
        FasterViTError: the checkpoint is gone or has changed, too many images cannot be read, or the model itself
            yields outputs that are not finite.
    """
    source = resolve_source(WeightSource.from_record(manifest.weights))
    path = cache / f"{manifest.model}-{_key(manifest, source, data)[:16]}.npy"
    kind = _kind(manifest)
    if (found := _read(path, len(data), kind)) is None:
        model, _ = build_model(ModelSpec.from_record(manifest.spec), source)
        with _torch_threads(threads), new_file(path, overwrite=True) as new, new.open("wb") as stream:
            _write(stream, len(data), kind, _rows(model, manifest, data, kind, progress))
        found = _read(path, len(data), kind)
        assert found is not None
    tell(progress, len(data))
    names = [output["name"] for output in manifest.outputs]
    return Reference(tuple(found[name] for name in names), np.array(found[_KNOWN]), (str(path),))


def _kind(manifest: Manifest) -> np.dtype[np.void]:
    """What is kept of one image: all outputs of the export, and whether it could be read."""
    fields: list[Any] = [(_KNOWN, np.bool_)]
    for output in manifest.outputs:
        small = np.min_scalar_type(manifest.num_classes) if output["name"] in _INDICES else np.float32
        fields.append((output["name"], small, tuple(output["shape"][1:])))
    return np.dtype(fields)


def _key(manifest: Manifest, source: WeightSource, data: Data) -> str:
    """All that the outputs depend on; pixels depend on Pillow's decoders, and rounding on PyTorch."""
    import PIL

    depends = {
        "spec": manifest.spec,
        "weights": source.sha256 or f"random, seed {source.seed}",
        "data": data.sha256(),
        "resolution": list(manifest.resolution),
        "preprocessing": asdict(_preprocessing(manifest)),
        "versions": [versions()["torch"], PIL.__version__],
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=list).encode()).hexdigest()


def _preprocessing(manifest: Manifest) -> Preprocessing:
    return Preprocessing(**manifest.preprocessing)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(
    model: torch.nn.Module, manifest: Manifest, data: Data, kind: np.dtype[np.void], progress: Advance | None
) -> Iterator[np.ndarray]:
    """Of all images in order, zeros for those that cannot be read."""
    how, resolution, done = _preprocessing(manifest), manifest.resolution, 0
    for images, numbers in numbered_batches(data, images_at_once(resolution), how, resolution):
        rows = np.zeros(int(numbers[-1]) + 1 - done, kind)
        rows[_KNOWN][numbers - done] = True
        with torch.inference_mode():
            found = model(torch.from_numpy(images))
        names = [output["name"] for output in manifest.outputs]
        for name, output in zip(names, (found,) if isinstance(found, Tensor) else found, strict=True):
            _check_finite(name, output.numpy(), numbers, manifest.model, data.name)
            rows[name][numbers - done] = output.numpy()
        done = int(numbers[-1]) + 1
        yield rows
        tell(progress, done)
    yield np.zeros(len(data) - done, kind)


def _check_finite(name: str, output: np.ndarray, numbers: np.ndarray, model: str, data: str) -> None:
    finite = np.isfinite(output.reshape(len(output), -1)).all(axis=1)
    if not finite.all():
        raise FasterViTError(
            f"{model} in PyTorch fp32 yields {name} that are not finite for image {numbers[~finite][0]} of '{data}'; "
            "its checkpoint is broken"
        )


def _write(stream: BinaryIO, count: int, kind: np.dtype[np.void], rows: Iterator[np.ndarray]) -> None:
    """An .npy file, with the SHA-256 of the array behind it, where readers of .npy do not look: so one rename is enough
    to publish both. Written, not mapped, because a full disk kills a process that writes through a map."""
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)
    digest = hashlib.sha256()
    for some in rows:
        stream.write(content := some.tobytes())
        digest.update(content)
    stream.write(digest.digest())


def _read(path: Path, count: int, kind: np.dtype[np.void]) -> np.ndarray | None:
    """The outputs in ``path``, mapped; None where there are none, or damaged ones."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as stream:
            stream.seek(-_DIGEST, 2)
            digest = stream.read()
    except (OSError, ValueError, EOFError):
        return None
    if found.shape != (count,) or found.dtype != kind:
        return None
    return found if hashlib.sha256(found.view(np.uint8).data).digest() == digest else None
