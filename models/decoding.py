"""Pictures in, the model's inputs out: read and preprocessed by several threads, in order, few ahead of the reader.

Pillow decodes and resizes without Python's lock, so threads are enough: of JPEG files of 500x375 pixels (4 ms each),
two free cores gave 1.9 times the images per second of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.preprocessing import preprocess_image

__all__ = ["Picture", "Unreadable", "decoded", "describe_unreadable", "readable", "why_unreadable"]

Picture = Image.Image | Path

_MOST_THREADS = 32  # more wait for the disk and for each other
_NAMED = 3  # images that a message names before it only counts


@dataclass(frozen=True)
class Unreadable:
    """An image that yields no pixels: its number in the data, its file, what is wrong with it."""

    index: int
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"'{self.path}' cannot be read ({self.reason})"


def decoded(
    images: Sequence[Picture], how: Preprocessing, resolution: tuple[int, int], ahead: int
) -> Generator[np.ndarray | Unreadable, None, None]:
    """Per image, in order: float32 (3, H, W), or why there is none.

    Args:
        ahead: images held ready, or in work, beyond the one that is asked for: the memory this takes.
    """
    waiting: deque[Future[np.ndarray | Unreadable]] = deque()
    with ThreadPoolExecutor(min(_MOST_THREADS, usable_cpus()), thread_name_prefix="decode") as pool:
        try:
            for index, image in enumerate(images):
                waiting.append(pool.submit(_decode, index, image, how, resolution))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the reader may have stopped in the middle
            for future in waiting:
                future.cancel()


def readable(
    items: Iterable[np.ndarray | Unreadable], total: int, share: float, data: str, left_out: list[Unreadable]
) -> Iterator[tuple[int, np.ndarray]]:
    """The images among ``items`` with their numbers; the others go to ``left_out``.

    Args:
        total: how many items there will be.
        share: of ``total`` that may be left out, in [0, 1]; one image always may unless it is 0, all never.
        data: name for the error.

    Raises:
        FasterViTError: more cannot be read, or none can.
    """
    allowed = max(1, int(share * total)) if share > 0 else 0
    for index, item in enumerate(items):
        if not isinstance(item, Unreadable):
            yield index, item
            continue
        left_out.append(item)
        if len(left_out) > min(allowed, total - 1):
            limit = f"; at most {allowed} of {total} may be left out" if 0 < allowed < total else ""
            raise FasterViTError(f"{data}: {describe_unreadable(left_out)}{limit}. Remove or replace what is damaged")


def describe_unreadable(images: Sequence[Unreadable]) -> str:
    """One line: the first few with what is wrong, and how many more."""
    named = ", ".join(str(image) for image in images[:_NAMED])
    return named if len(images) <= _NAMED else f"{named} and {len(images) - _NAMED} more"


def _decode(index: int, image: Picture, how: Preprocessing, resolution: tuple[int, int]) -> np.ndarray | Unreadable:
    picture = image
    if isinstance(image, Path):
        try:
            picture = _opened(image)
        except Exception as error:  # damaged bytes make decoders raise anything: SyntaxError, struct.error, …
            return Unreadable(index, image, why_unreadable(image, error))
    assert isinstance(picture, Image.Image)
    pixels: np.ndarray = preprocess_image(picture, how, resolution)
    return pixels


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with the picture ``path``, from what Pillow raised."""
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
