"""Tensors of the KServe v2 protocol, in JSON or as binary data, to NumPy arrays and back.

The formats: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastervit_trt.deploy.serving.refusal import RefusedError

__all__ = ["GivenTensor", "TensorSpec", "binary_of", "byte_strings", "float32_array", "json_of"]

_FLOAT32 = np.dtype("<f4")
_LARGEST = float(np.finfo(np.float32).max)
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model: (-1, 3, 224, 224) of FP32, where -1 is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GivenTensor:
    """An input as it was sent: numbers of its JSON, or bytes behind it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None
    binary: memoryview | None

    def check(self, spec: TensorSpec) -> None:
        """Compare with what the model takes.

        Raises:
            RefusedError: another type or shape, or no images.
        """
        if self.datatype != spec.datatype:
            raise RefusedError(400, f"input '{self.name}' is {self.datatype}; the model takes {spec.datatype} only")
        fits = len(self.shape) == len(spec.shape) and self.shape[1:] == spec.shape[1:]
        if not fits or self.shape[0] < 1:
            raise RefusedError(
                400, f"input '{self.name}' has shape {list(self.shape)}; the model takes {list(spec.shape)}, 1 or more"
            )


def float32_array(tensor: GivenTensor) -> np.ndarray:
    """An FP32 tensor as an array of its own, aligned; in binary data NaN and infinity are numbers like others.

    Raises:
        RefusedError: not as many numbers as the shape has, or something else than numbers.
    """
    count = math.prod(tensor.shape)
    if tensor.binary is not None:
        if len(tensor.binary) != count * _FLOAT32.itemsize:
            raise RefusedError(
                400,
                f"input '{tensor.name}' has {len(tensor.binary)} bytes of binary data; its shape {list(tensor.shape)} "
                f"takes {count * _FLOAT32.itemsize}",
            )
        return np.frombuffer(tensor.binary, _FLOAT32).reshape(tensor.shape).astype(np.float32, copy=True)
    values = _numbers(tensor)
    if values.size != count:
        raise RefusedError(
            400, f"input '{tensor.name}' has {values.size} numbers; its shape {list(tensor.shape)} takes {count}"
        )
    return values.astype(np.float32).reshape(tensor.shape)


def byte_strings(tensor: GivenTensor) -> list[memoryview]:
    """The elements of a BYTES tensor, each preceded by its length in 4 bytes, little-endian.

    Raises:
        RefusedError: not as many as the shape has, cut off, or in JSON, which cannot hold bytes.
    """
    if tensor.binary is None:
        raise RefusedError(400, f"JSON cannot hold the bytes of '{tensor.name}'; send them as binary data")
    elements, position, data = list[memoryview](), 0, tensor.binary
    count = math.prod(tensor.shape)
    while position < len(data):
        if len(elements) == count:
            raise RefusedError(400, f"input '{tensor.name}' has more than the {count} elements of its shape")
        start = position + _LENGTH.size
        length = _LENGTH.unpack(data[position:start])[0] if start <= len(data) else -1
        if length < 0 or start + length > len(data):
            raise RefusedError(400, f"element {len(elements)} of input '{tensor.name}' is cut off")
        elements.append(data[start : start + length])
        position = start + length
    if len(elements) != count:
        raise RefusedError(400, f"input '{tensor.name}' has {len(elements)} elements; its shape takes {count}")
    return elements


def binary_of(array: np.ndarray) -> bytes:
    """A float32 array, or an object array of bytes, as binary data."""
    if array.dtype == object:
        return b"".join(_LENGTH.pack(len(element)) + element for element in array.ravel())
    return array.astype(_FLOAT32, copy=False).tobytes()


def json_of(name: str, array: np.ndarray) -> list[Any]:
    """The elements of an array in row-major order, as JSON has them.

    Raises:
        RefusedError: NaN or infinity, which JSON has not.
    """
    if array.dtype == object:
        return [element.decode() for element in array.ravel()]
    if not np.isfinite(array).all():
        raise RefusedError(
            400, f"output '{name}' holds NaN or infinity, which JSON cannot; check the images, or ask for binary data"
        )
    values: list[Any] = array.ravel().tolist()
    return values


def _numbers(tensor: GivenTensor) -> np.ndarray:
    try:
        values = np.asarray(tensor.data)
    except (ValueError, OverflowError) as error:
        raise RefusedError(400, f"the data of input '{tensor.name}' is ragged or nested too deep") from error
    if values.size and values.dtype.kind not in "iuf":
        raise RefusedError(400, f"the data of input '{tensor.name}' holds something else than numbers")
    if values.size and not (np.abs(values.astype(np.float64)) <= _LARGEST).all():
        raise RefusedError(400, f"the data of input '{tensor.name}' holds a number that is no FP32")
    return values
