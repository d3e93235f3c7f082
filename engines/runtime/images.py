"""Whatever a caller passes as images in, batches of a size that a backend serves out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

if TYPE_CHECKING:
    import torch

__all__ = ["Part", "check_images", "host_array", "is_on_gpu", "is_tensor", "pad", "pad_tensor", "parts_of"]

Part = tuple[slice, int]  # of the images, and how many must be added


def is_tensor(images: Any) -> TypeGuard[torch.Tensor]:
    """Whether these are PyTorch's, which nobody has imported yet if they are not."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(images, torch.Tensor)


def is_on_gpu(images: torch.Tensor) -> bool:
    """Whether their memory is a GPU's."""
    return bool(images.is_cuda)


def host_array(images: Any) -> np.ndarray:
    """Images in host memory as an array, without a copy.

    Raises:
        FasterViTError: something else.
    """
    if is_tensor(images):
        return np.asarray(images.detach().numpy())
    if not isinstance(images, np.ndarray):
        raise FasterViTError(f"images must be a NumPy array or a PyTorch tensor, not {type(images).__name__}")
    return images


def check_images(images: np.ndarray | torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is not float32 (B, \\*shape).

    Raises:
        FasterViTError: says what they are and should be.
    """
    is_float32 = images.dtype == np.float32 or str(images.dtype) == "torch.float32"
    if not is_float32 or images.shape[1:] != shape or images.ndim != 1 + len(shape):
        raise FasterViTError(
            f"images must be float32 (B, {', '.join(map(str, shape))}), not {str(images.dtype).removeprefix('torch.')} "
            f"{tuple(images.shape)}; prepare them as the manifest's 'preprocessing' says"
        )


def parts_of(count: int, batch: BatchRange) -> Iterator[Part]:
    """``count`` images in parts of at most the largest batch; of no images one part, which is all padding."""
    for start in range(0, max(count, 1), batch.maximum):
        size = min(batch.maximum, count - start)
        yield slice(start, start + size), max(batch.minimum - size, 0)


def pad(images: np.ndarray, missing: int) -> np.ndarray:
    """``missing`` more of the last image, or of zeros where there is none."""
    if not missing:
        return images
    last = images[-1:] if len(images) else np.zeros((1, *images.shape[1:]), images.dtype)
    return np.concatenate([images, np.repeat(last, missing, axis=0)])


def pad_tensor(images: torch.Tensor, missing: int) -> torch.Tensor:
    """:func:`pad`, contiguous and on the same device."""
    if missing:
        import torch

        last = images[-1:] if len(images) else images.new_zeros((1, *images.shape[1:]))
        images = torch.cat([images, last.expand(missing, *images.shape[1:])])
    return images.contiguous()
