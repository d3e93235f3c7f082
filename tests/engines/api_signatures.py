"""A line pybind11 wrote about a function in, its parameters and their types out."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Parameter", "Signature", "parts_of_type"]


@dataclass(frozen=True)
class Parameter:
    """One parameter; ``default`` as it is written, None where there is none."""

    name: str
    type: str
    default: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.type}" + ("" if self.default is None else f" = {self.default}")


@dataclass(frozen=True)
class Signature:
    """One overload; the first parameter of a method is the object."""

    parameters: tuple[Parameter, ...]
    result: str

    @staticmethod
    def parse(text: str) -> Signature:
        parameters, _, result = text.rpartition(" -> ")
        matches = [re.fullmatch(r"(\w+): (.*?)(?: = (.*))?", part) for part in _split(parameters[1:-1])]
        assert all(matches), text
        return Signature(tuple(Parameter(m[1], m[2], m[3]) for m in matches if m), result)

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.parameters))})"


def parts_of_type(text: str) -> tuple[str, list[str]]:
    """``collections.abc.Sequence[typing.SupportsInt]`` → ``Sequence``, [``typing.SupportsInt``]."""
    outer, _, inner = text.partition("[")
    if "accessor" in outer:  # what get_plugin_registry() is written to return
        outer = "IPluginRegistry"
    # Classes that were bound after the function are written as C++ names them.
    outer = outer.rpartition("::")[2].replace("IParserError", "ParserError")
    return outer.rpartition(".")[2] if "typing" in outer or "collections" in outer else outer, _split(inner[:-1])


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text.strip() else []
