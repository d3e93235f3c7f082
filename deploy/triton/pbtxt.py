"""Fields of a protobuf message in, the message in protobuf's text format out; what Triton reads as ``config.pbtxt``.

The format: https://protobuf.dev/reference/protobuf/textformat-spec. Written here rather than with protobuf's library,
which a target then does not need; tests read it back with that library and Triton's own message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Fields", "Symbol", "entries", "pbtxt"]

Fields = Mapping[str, Any]  # name → scalar, Symbol, message (Fields), or a list of these; None and [] are left out

_INDENT = "  "
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Symbol(str):
    """A value of an enumeration, which is written without quotes: ``Symbol("KIND_GPU")``."""


def pbtxt(fields: Fields) -> str:
    """The message as text, fields in the order given.

    Raises:
        TypeError: a value that a message cannot hold.
    """
    return "".join(f"{line}\n" for line in _lines(fields))


def entries(mapping: Mapping[str, Any]) -> list[Fields]:
    """A map field, which the text format writes as a list of messages with a key and a value."""
    return [{"key": key, "value": value} for key, value in mapping.items()]


def _lines(fields: Fields, indent: str = "") -> list[str]:
    lines: list[str] = []
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            lines += _block(name, value, indent)
        elif isinstance(value, (list, tuple)):
            lines += _repeated(name, value, indent)
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return lines


def _block(name: str, fields: Fields, indent: str) -> list[str]:
    inner = _lines(fields, indent + _INDENT)
    return [f"{indent}{name} {{", *inner, f"{indent}}}"] if inner else [f"{indent}{name} {{ }}"]


def _repeated(name: str, values: Sequence[Any], indent: str) -> list[str]:
    if not values:
        return []
    if isinstance(values[0], Mapping):
        return [line for value in values for line in _block(name, value, indent)]
    return [f"{indent}{name}: [ {', '.join(_scalar(value) for value in values)} ]"]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Symbol):
        return str.__str__(value)
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value))}"'
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"{value!r} is no value of a protobuf message")


def _escaped(character: str) -> str:
    """Printable ASCII as it is, the rest as the octal bytes of its UTF-8."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii() and character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode())
