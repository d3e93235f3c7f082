"""A bundle in, the two models it is served as out: one takes tensors, one takes encoded pictures.

They have the names and the tensors of the Triton repository that is written of the same bundle, so that clients move
from one to the other unchanged. Metadata: https://github.com/kserve/open-inference-protocol; configuration as Triton's:
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.serving.admission import Lease
from fastervit_trt.deploy.serving.limits import MOST_JSON_BYTES, Limits
from fastervit_trt.deploy.serving.pictures import images_of_pictures
from fastervit_trt.deploy.serving.refusal import RefusedError
from fastervit_trt.deploy.serving.request import InferRequest
from fastervit_trt.deploy.serving.tensors import GivenTensor, TensorSpec, byte_strings, float32_array
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.tasks.heads import LOGITS

__all__ = ["PICTURE_INPUT", "VERSION", "ServedModel", "models_of"]

VERSION = "1"
PICTURE_INPUT = "picture"
_FLOAT32_BYTES = 4

_Images = Callable[[GivenTensor, Lease], np.ndarray]


@dataclass(frozen=True)
class ServedModel:
    """What clients see of a model, and how its input becomes images.

    Attributes:
        labels: class names by output and index.
        limits: of the server.
        executes: whether executions are counted as its own; pictures are executed by the other model.
    """

    name: str
    platform: str
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    labels: Mapping[str, tuple[str, ...]]
    limits: Limits
    executes: bool
    to_images: _Images

    def images(self, request: InferRequest, lease: Lease) -> np.ndarray:
        """The images of a request: float32 (B, 3, H, W).

        Raises:
            RefusedError: another tensor than the model's input, or something is wrong with it.
        """
        for tensor in request.inputs:
            if tensor.name != self.input.name:
                raise RefusedError(400, f"'{self.name}' has no input '{tensor.name}'; its input is '{self.input.name}'")
        if len(request.inputs) > 1:
            raise RefusedError(400, f"input '{self.input.name}' is given {len(request.inputs)} times")
        return self.to_images(request.inputs[0], lease)

    def metadata(self) -> dict[str, Any]:
        """As ``GET /v2/models/NAME`` answers."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [_described(self.input)],
            "outputs": [_described(output) for output in self.outputs],
        }

    def config(self) -> dict[str, Any]:
        """As Triton's ``GET /v2/models/NAME/config`` answers; shapes without the batch."""
        return {
            "name": self.name,
            "platform": self.platform,
            "backend": self.platform.partition("_")[0],
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.limits.batch,
            "input": [_configured(self.input)],
            "output": [
                _configured(output) | ({"label_filename": "labels.txt"} if output.name in self.labels else {})
                for output in self.outputs
            ],
            "dynamic_batching": {
                "preferred_batch_size": [self.limits.batch],
                "max_queue_delay_microseconds": round(self.limits.delay_s * 1e6),
                "default_queue_policy": {
                    "default_timeout_microseconds": round(self.limits.timeout_s * 1e6),
                    "allow_timeout_override": True,
                    "max_queue_size": self.limits.queue,
                },
            },
            "instance_group": [{"name": f"{self.name}_0", "kind": "KIND_CPU", "count": 1}],
        }


def models_of(bundle: Bundle, limits: Limits) -> dict[str, ServedModel]:
    """``NAME`` and ``NAME_pictures`` of a bundle, by name; the first executes."""
    export = bundle.export
    outputs = tuple(TensorSpec(o["name"], "FP32", (-1, *o["shape"][1:])) for o in export.outputs)
    classes = {output.name for output in outputs if output.name == LOGITS}
    names = bundle.labels
    labels = {output: names for output in classes if names}
    images = TensorSpec(export.input["name"], "FP32", (-1, *export.input["shape"][1:]))
    picture = TensorSpec(PICTURE_INPUT, "BYTES", (-1, 1))
    served = partial(ServedModel, outputs=outputs, labels=labels, limits=limits)
    return {
        model.name: model
        for model in (
            served(
                name=export.model,
                platform="onnxruntime_onnx",
                input=images,
                executes=True,
                to_images=_from_tensor(images),
            ),
            served(
                name=f"{export.model}_pictures",
                platform="ensemble",  # as Triton says of the repository's model of that name
                input=picture,
                executes=False,
                to_images=_from_pictures(
                    picture, Preprocessing(**export.preprocessing), export.resolution, limits.body
                ),
            ),
        )
    }


def _from_tensor(spec: TensorSpec) -> _Images:
    def images(tensor: GivenTensor, lease: Lease) -> np.ndarray:
        tensor.check(spec)
        sent = len(tensor.binary) if tensor.binary is not None else 2 * MOST_JSON_BYTES  # 2 characters become 4 bytes
        lease.grow(min(math.prod(tensor.shape) * _FLOAT32_BYTES, sent))
        array: np.ndarray = float32_array(tensor)
        return array

    return images


def _from_pictures(spec: TensorSpec, how: Preprocessing, resolution: tuple[int, int], most: int) -> _Images:
    height, width = resolution
    each = 3 * height * width * _FLOAT32_BYTES

    def images(tensor: GivenTensor, lease: Lease) -> np.ndarray:
        if tensor.shape[1:] == ():  # (B,) instead of (B, 1): there is only one way to read it
            tensor = GivenTensor(tensor.name, tensor.datatype, (*tensor.shape, 1), tensor.data, tensor.binary)
        tensor.check(spec)
        pictures = byte_strings(tensor)
        # A picture of a few bytes becomes an image of many: what images sent as tensors may take, these may.
        if len(pictures) > max(1, most // each):
            raise RefusedError(413, f"{len(pictures)} pictures are more than {max(1, most // each)} at a time")
        lease.grow(len(pictures) * each)
        array: np.ndarray = images_of_pictures(pictures, how, resolution)
        return array

    return images


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    kind = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": kind, "dims": list(spec.shape[1:])}
