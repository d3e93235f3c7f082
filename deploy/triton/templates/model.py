"""Triton's Python step: encoded pictures in, the model's input out, with the very code the model was validated with.

Runs in the Python backend (https://github.com/triton-inference-server/python_backend) with NumPy and Pillow alone;
``preprocessing.py`` beside this file is fastervit-trt's own. A picture that cannot be used fails its request, no other.
"""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image, UnidentifiedImageError

__all__ = ["TritonPythonModel"]

_FORMATS = ("JPEG", "PNG")  # each parser more is one more that strangers may feed


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the parameters of config.pbtxt."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        how = json.loads(parameters["preprocessing"])
        self._resolution: tuple[int, int] = (how["resolution"][0], how["resolution"][1])
        self._how = SimpleNamespace(**{key: value for key, value in how.items() if key != "resolution"})
        self._max_pixels = int(parameters["max_pixels"])
        self._input: str = config["input"][0]["name"]
        self._output: str = config["output"][0]["name"]
        self._preprocessing = _beside("preprocessing")
        Image.MAX_IMAGE_PIXELS = None  # Pillow's limit, of which it only warns: ours is checked below

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failure("cancelled", pb_utils.TritonError.CANCELLED)
        pictures = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy().reshape(-1)
        images = []
        for number, content in enumerate(pictures):
            try:
                images.append(self._image(bytes(content)))
            except UnidentifiedImageError:  # whose message is an address in memory
                return _failure(f"picture {number}: none of {', '.join(_FORMATS)}", pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # Pillow's parsers raise whatever they come across
                reason = " ".join(str(error).split()) or type(error).__name__
                return _failure(f"picture {number}: {reason[:200]}", pb_utils.TritonError.INVALID_ARG)
        tensor = pb_utils.Tensor(self._output, np.stack(images))
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _image(self, content: bytes) -> np.ndarray:
        """Encoded picture → float32 (3, H, W)."""
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            self._check_size(picture.size)
            image: np.ndarray = self._preprocessing.preprocess_image(picture, self._how, self._resolution)
            return image

    def _check_size(self, size: tuple[int, int]) -> None:
        """Refuses a picture that needs too much memory: as it is, or, if it is very thin, after it was enlarged."""
        pixels = self._preprocessing.largest_pixels(size, self._how, self._resolution)
        if pixels > self._max_pixels:
            width, height = size
            raise ValueError(f"{width} x {height} is more than {self._max_pixels} pixels, as it is or enlarged")


def _beside(name: str) -> ModuleType:
    """A module by its file, since another of that name may be installed."""
    spec = importlib.util.spec_from_file_location(f"fastervit_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _failure(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
