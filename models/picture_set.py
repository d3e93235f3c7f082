"""A set of pictures, in memory or files: batches of what can be read, a few spread over all, what the set is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from fastervit_trt.host import usable_cpus
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.decoding import Picture, Unreadable, decoded, readable

__all__ = ["LEFT_OUT", "numbered_batches", "set_sha256", "spread"]

_Item = TypeVar("_Item")

LEFT_OUT = 0.01  # share of unreadable images that accuracy survives: less than its interval on 10 000 images is wide
_HASHED = 256  # images whose contents are part of a data set's identity; 50 000 would take minutes from a disk


def numbered_batches(
    images: Sequence[Picture],
    size: int,
    how: Preprocessing,
    resolution: tuple[int, int],
    *,
    share: float,
    data: str,
    left_out: list[Unreadable],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (B, 3, H, W) float32, their numbers (B,)) of what can be read, in order; the last batch may be smaller.

    Args:
        share: of ``images`` that may be left out, in [0, 1].
        data: name for the error.
        left_out: gets the images that cannot be read.

    Raises:
        FasterViTError: more than ``share`` of the images cannot be read, or all of one.
    """
    with closing(decoded(images, how, resolution, ahead=size + usable_cpus())) as items:
        kept = readable(items, len(images), share, data, left_out)
        while batch := list(islice(kept, size)):
            numbers, pictures = zip(*batch, strict=True)
            yield np.stack(pictures), np.array(numbers)


def spread(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    """Evenly over all: files come sorted by class, and the first few hundred would be one class alone."""
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def set_sha256(
    images: Sequence[Picture],
    root: Path | None,
    head: str,
    note: Callable[[int, bool], str],
    without: Collection[int],
) -> str:
    """What a data set is, but for the images numbered ``without``.

    Every image counts with its path below ``root``, its size in bytes and its note; the contents of 256 evenly spread
    ones count, too, so that the same pictures compressed anew are another data set. One file of tens of thousands that
    was replaced by another of the same size goes unnoticed.

    Args:
        root: folder of the images.
        head: what is said once, as the classes.
        note: of an image, by its number: what belongs to it; True asks for the contents of that, too.
    """
    missing = set(without)
    kept = [i for i in range(len(images)) if i not in missing]
    hashed = set(spread(kept, _HASHED))
    digest = hashlib.sha256(f"{head}, {len(kept)} images".encode())
    for i in kept:
        digest.update(f"\n{note(i, i in hashed)} {_identity(images[i], root)}".encode())
        if i in hashed:
            digest.update(_contents(images[i]))
    return digest.hexdigest()


def _identity(image: Picture, root: Path | None) -> str:
    if isinstance(image, Image.Image):
        return f"{image.mode} {image.size}"
    path = image.relative_to(root).as_posix() if root is not None else image.name
    return f"{path} {image.stat().st_size}"


def _contents(image: Picture) -> bytes:
    content = image.tobytes() if isinstance(image, Image.Image) else image.read_bytes()
    return hashlib.sha256(content).digest()
