"""A model and labelled images in, its logits in PyTorch fp32 out, from a file where they are known.

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
from typing import BinaryIO

import numpy as np
import torch

from fastervit_trt.artifacts import Manifest, new_file
from fastervit_trt.benchmarks.evaluate import Advance, tell
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import versions
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, resolve_source

__all__ = ["reference_logits"]

_BATCH = 32  # the logits do not depend on it beyond rounding
_DIGEST = hashlib.sha256().digest_size


def reference_logits(
    manifest: Manifest,
    data: LabelledImages,
    cache: Path,
    progress: Advance | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Logits (len(data), classes) of PyTorch fp32 for the model whose weights were exported, on the CPU.

    Rows are numbered as the images of ``data``; those of images that cannot be read are NaN. The array is mapped from a
    file in ``cache``, which is made at the first call and again where it is damaged.

    Args:
        threads: for PyTorch while the logits are computed; as set by default.

    Raises:
        FasterViTError: the checkpoint is gone or has changed, too many images cannot be read, or the model itself
            yields logits that are not finite.
    """
    source = resolve_source(WeightSource.from_record(manifest.weights))
    path = cache / f"{manifest.model}-{_key(manifest, source, data)[:16]}.npy"
    shape = (len(data), manifest.num_classes)
    if (known := _read(path, shape)) is None:
        model, _ = build_model(ModelSpec.from_record(manifest.spec), source)
        with _torch_threads(threads), new_file(path, overwrite=True) as new, new.open("wb") as stream:
            _write(stream, shape, _rows(model, manifest, data, progress))
        known = _read(path, shape)
        assert known is not None
    tell(progress, len(data))
    return known


def _key(manifest: Manifest, source: WeightSource, data: LabelledImages) -> str:
    """All that the logits depend on; pixels depend on Pillow's decoders, and rounding on PyTorch."""
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
    model: torch.nn.Module, manifest: Manifest, data: LabelledImages, progress: Advance | None
) -> Iterator[np.ndarray]:
    """Logits by number of the image, NaN between them for those that cannot be read."""
    how, done = _preprocessing(manifest), 0
    for images, numbers in data.numbered_batches(_BATCH, how, manifest.resolution):
        with torch.inference_mode():
            logits = model(torch.from_numpy(images)).numpy()
        if not np.isfinite(logits).all():
            raise FasterViTError(
                f"{manifest.model} in PyTorch fp32 yields logits that are not finite for image "
                f"{numbers[~np.isfinite(logits).all(axis=1)][0]} of '{data.name}'; its checkpoint is broken"
            )
        rows = np.full((int(numbers[-1]) + 1 - done, logits.shape[1]), np.nan, np.float32)
        rows[numbers - done] = logits
        done = int(numbers[-1]) + 1
        yield rows
        tell(progress, done)
    yield np.full((len(data) - done, manifest.num_classes), np.nan, np.float32)


def _write(stream: BinaryIO, shape: tuple[int, int], rows: Iterator[np.ndarray]) -> None:
    """An .npy file, with the SHA-256 of the array behind it, where readers of .npy do not look: so one rename is enough
    to publish both. Written, not mapped, because a full disk kills a process that writes through a map."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    digest = hashlib.sha256()
    for some in rows:
        stream.write(content := some.tobytes())
        digest.update(content)
    stream.write(digest.digest())


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The logits in ``path``, mapped; None where there are none, or damaged ones."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as stream:
            stream.seek(-_DIGEST, 2)
            digest = stream.read()
    except (OSError, ValueError, EOFError):
        return None
    if found.shape != shape or found.dtype != np.float32:
        return None
    return found if hashlib.sha256(found.data).digest() == digest else None
