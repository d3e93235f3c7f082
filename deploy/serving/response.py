"""Outputs of a model in, the body of an inference response out: JSON, and binary data behind it where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastervit_trt.deploy.serving.request import AskedOutput, InferRequest
from fastervit_trt.deploy.serving.tensors import binary_of, json_of

__all__ = ["InferResponse", "classified", "render_response"]


@dataclass(frozen=True)
class InferResponse:
    """A body; ``header_length`` bytes of it are JSON, or all where that is None."""

    body: bytes
    header_length: int | None


def render_response(
    request: InferRequest,
    model: str,
    version: str,
    outputs: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[str]],
) -> InferResponse:
    """The outputs a request asks for, in its order.

    Args:
        outputs: float32 (B, …) by name.
        labels: names of the classes of an output, by index.

    Raises:
        RefusedError: an output holds what JSON cannot.
    """
    described, binary = [], []
    for asked in request.outputs:
        array = _asked_for(asked, outputs[asked.name], labels.get(asked.name, ()))
        item: dict[str, Any] = {
            "name": asked.name,
            "datatype": "BYTES" if array.dtype == object else "FP32",
            "shape": list(array.shape),
        }
        if asked.binary:
            binary.append(binary_of(array))
            item["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            item["data"] = json_of(asked.name, array)
        described.append(item)
    identity = {} if request.id is None else {"id": request.id}
    content = {**identity, "model_name": model, "model_version": version, "outputs": described}
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return InferResponse(b"".join([text, *binary]), len(text) if binary else None)


def classified(array: np.ndarray, classes: int, labels: Sequence[str]) -> np.ndarray:
    """(B, …) → the largest values of each row, (B, min(classes, size of a row)) of b"value:index:label".

    Triton's format: six decimals, and no label where there is none
    (https://github.com/triton-inference-server/server/blob/main/src/classification.cc). Equal values come in the order
    of their indices, and NaN last.
    """
    rows = array.reshape(len(array), -1)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :classes]
    texts = np.empty(order.shape, object)
    for row, column in np.ndindex(*order.shape):
        index = int(order[row, column])
        label = f":{labels[index]}" if index < len(labels) else ""
        texts[row, column] = f"{rows[row, index]:f}:{index}{label}".encode()
    return texts


def _asked_for(asked: AskedOutput, array: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    return classified(array, asked.classes, labels) if asked.classes else array
