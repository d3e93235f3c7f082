"""A stand-in for the module that Triton's Python backend gives a step, and the backend's way of loading one.

https://github.com/triton-inference-server/python_backend: model.py is imported, ``initialize`` gets the configuration
as JSON, ``execute`` a list of requests, and answers with a response for each.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf import json_format
from PIL import Image

from tests.deploy.triton.load_rules import read_config


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, INVALID_ARG, CANCELLED = range(4)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        assert self._error is not None
        return self._error


class Request:
    """BYTES tensors arrive as arrays of objects."""

    def __init__(self, name: str, pictures: list[bytes], *, batched: bool = True, cancelled: bool = False) -> None:
        array = np.array([*pictures, None], dtype=np.object_)[:-1]
        self._tensor, self._cancelled = Tensor(name, array.reshape(-1, 1) if batched else array), cancelled

    def is_cancelled(self) -> bool:
        return self._cancelled

    def tensor(self, name: str) -> Tensor | None:
        return self._tensor if self._tensor.name() == name else None


@contextmanager
def python_step(folder: Path) -> Iterator[Any]:
    """The step of a repository, loaded as the backend does it and initialised with its config.pbtxt."""
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError, utils.InferenceResponse = Tensor, TritonError, InferenceResponse
    utils.get_input_tensor_by_name = lambda request, name: request.tensor(name)
    config = json_format.MessageToDict(read_config(folder / "config.pbtxt"), preserving_proto_field_name=True)
    sys.modules[utils.__name__] = utils
    largest = Image.MAX_IMAGE_PIXELS  # which a step sets for its process
    try:
        spec = importlib.util.spec_from_file_location("step_under_test", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        step = module.TritonPythonModel()
        step.initialize({"model_config": json.dumps(config)})
        yield step
    finally:
        Image.MAX_IMAGE_PIXELS = largest
        del sys.modules[utils.__name__]
