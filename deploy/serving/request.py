"""The body of an inference request in, what it asks for out; nothing in it is believed before it is checked."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from fastervit_trt.deploy.serving.limits import MOST_CLASSES, MOST_JSON_BYTES, MOST_TENSORS
from fastervit_trt.deploy.serving.refusal import RefusedError
from fastervit_trt.deploy.serving.tensors import GivenTensor
from fastervit_trt.models.tasks.heads import LOGITS

__all__ = ["AskedOutput", "InferRequest", "parse_request"]

_MOST_DIMENSIONS = 8
_LONGEST_ID = 4096
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class AskedOutput:
    """An output a client wants: as binary data or in JSON; ``classes`` > 0 for its largest values with their labels."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class InferRequest:
    """One inference.

    Attributes:
        outputs: in the order of the answer.
        timeout_s: seconds the client is ready to wait; None where it says nothing.
    """

    id: str | None
    inputs: tuple[GivenTensor, ...]
    outputs: tuple[AskedOutput, ...]
    timeout_s: float | None


def parse_request(body: bytes, header_length: str | None, available: Collection[str]) -> InferRequest:
    """An inference request as Triton takes it.

    Args:
        header_length: the header Inference-Header-Content-Length, how many bytes of the body are JSON; None for all.
        available: names of the model's outputs, all of which are meant where a request names none.

    Raises:
        RefusedError: 400, and what is wrong; 413 for too much JSON.
    """
    length = _length(header_length, len(body))
    content = _parsed(body[:length])
    parameters = _object(content, "parameters")
    inputs = _inputs(content, memoryview(body)[length:])
    outputs = _outputs(content, available, binary=_flag(parameters, "binary_data_output", "the request"))
    timeout = parameters.get("timeout")  # microseconds, as Triton's clients send it
    if timeout is not None and not (_is_int(timeout) and timeout > 0):
        _refuse(f"parameter 'timeout' is {_shown(timeout)}; it takes a number of microseconds")
    return InferRequest(_id(content), inputs, outputs, None if timeout is None else timeout / 1e6)


def _length(header_length: str | None, size: int) -> int:
    length = size
    if header_length is not None:
        text = header_length.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= size):
            _refuse(
                f"Inference-Header-Content-Length '{header_length[:40]}' is no length within a body of {size} bytes"
            )
        length = int(text)
    if length > MOST_JSON_BYTES:
        raise RefusedError(413, f"{length} bytes of JSON are more than {MOST_JSON_BYTES}; send tensors as binary data")
    return length


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one of the former
        raise RefusedError(400, f"the body is no JSON ({error or 'nested too deep'})") from error
    if not isinstance(content, dict):
        _refuse("the request must be a JSON object with 'inputs'")
    return content


def _inputs(content: dict[str, Any], binary: memoryview) -> tuple[GivenTensor, ...]:
    tensors, position = [], 0
    for item in _objects(content, "inputs", at_least=1):
        size = _binary_size(item)
        if size is not None and size > len(binary) - position:
            _refuse(f"input {_shown(item.get('name'))} says {size} bytes of binary data; {len(binary) - position} came")
        end = position + (size or 0)
        tensors.append(_input(item, None if size is None else binary[position:end]))
        position = end
    if position != len(binary):
        _refuse(
            f"{len(binary) - position} bytes follow the tensors; 'binary_data_size' must count all that follow JSON"
        )
    return tuple(tensors)


def _input(item: dict[str, Any], binary: memoryview | None) -> GivenTensor:
    name, data = _text(item, "name"), item.get("data")
    if (binary is None) == (data is None):
        _refuse(f"input '{name}' needs either 'data' or the parameter 'binary_data_size'")
    if data is not None and not isinstance(data, list):
        _refuse(f"'data' of input '{name}' must be a list")
    return GivenTensor(name, _text(item, "datatype"), _shape(name, item.get("shape")), data, binary)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_size, shape)):
        _refuse(f"'shape' of input '{name}' must be a list of at most {_MOST_DIMENSIONS} sizes")
    return tuple(shape)


def _outputs(content: dict[str, Any], available: Collection[str], *, binary: bool) -> tuple[AskedOutput, ...]:
    asked = [_output(item, available, binary) for item in _objects(content, "outputs")]
    names = [output.name for output in asked]
    if len(set(names)) != len(names):
        _refuse("an output is asked for twice")
    return tuple(asked) or tuple(AskedOutput(name, binary, 0) for name in available)


def _output(item: dict[str, Any], available: Collection[str], binary: bool) -> AskedOutput:
    name, parameters = _text(item, "name"), _object(item, "parameters")
    if name not in available:
        _refuse(f"the model has no output {_shown(name)}; it has {', '.join(available)}")
    _no_shared_memory(parameters, f"output '{name}'")
    classes = parameters.get("classification", 0)
    if not (_is_int(classes) and 0 <= classes <= MOST_CLASSES):
        _refuse(f"parameter 'classification' of output '{name}' is {_shown(classes)}; it takes a number of classes")
    if classes and name != LOGITS:
        _refuse(
            f"output '{name}' holds no {LOGITS} that 'classification' could rank; ask for it without that parameter"
        )
    return AskedOutput(name, _flag(parameters, "binary_data", f"output '{name}'", default=binary), classes)


def _binary_size(item: dict[str, Any]) -> int | None:
    parameters = _object(item, "parameters")
    _no_shared_memory(parameters, f"input {_shown(item.get('name'))}")
    size = parameters.get("binary_data_size")
    if size is not None and not _is_size(size):
        _refuse(f"'binary_data_size' of input {_shown(item.get('name'))} is {_shown(size)}; it takes a number of bytes")
    return None if size is None else int(size)


def _no_shared_memory(parameters: dict[str, Any], who: str) -> None:
    if any(key.startswith("shared_memory") for key in parameters):
        _refuse(f"{who} is in shared memory, which this server does not support; send it in the request")


def _id(content: dict[str, Any]) -> str | None:
    identifier = content.get("id")
    if identifier is not None and not (isinstance(identifier, str) and len(identifier) <= _LONGEST_ID):
        _refuse(f"'id' must be a text of at most {_LONGEST_ID} characters")
    return identifier


def _objects(content: dict[str, Any], key: str, at_least: int = 0) -> list[dict[str, Any]]:
    items = content.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        _refuse(f"'{key}' must be a list of objects")
    if not at_least <= len(items) <= MOST_TENSORS:
        _refuse(f"'{key}' names {len(items)} tensors; {at_least} to {MOST_TENSORS} are taken")
    return items


def _object(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        _refuse(f"'{key}' must be an object")
    return value


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        _refuse(f"a tensor's '{key}' must be a text of at most {_LONGEST_NAME} characters, not {_shown(value)}")
    return value


def _flag(parameters: dict[str, Any], key: str, who: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        _refuse(f"parameter '{key}' of {who} is {_shown(value)}; it takes true or false")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_size(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deep"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number; send NaN and infinity as binary data")


def _refuse(message: str) -> NoReturn:
    raise RefusedError(400, message)
