"""A record of TensorRT's Python API in, a module with exactly that API out: which call fits which version, without it.

The double refuses what the bindings refuse: names that the version lacks, properties it cannot set, arguments of wrong
number, keyword or type. It computes nothing: calls return what the test says in ``returns``, otherwise the plainest
value of the recorded type. It is stricter than the bindings in two things: ``bool`` and ``str`` take nothing else. And
names that are not in the record are missing, even where the bindings have them (tests/engines/recorded/README.md).
"""

from __future__ import annotations

import inspect
import json
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tests.engines.api_signatures import Signature, parts_of_type

__all__ = ["ApiDouble", "Call", "api_double", "recorded_apis"]

_RECORDS = Path(__file__).parent / "recorded" / "api"
_PLAIN = {"None": None, "int": 0, "float": 0.0, "bool": True, "str": "", "object": None}
_BUFFERS = {"buffer", "Buffer"}
_CAPSULES = {"capsule", "CapsuleType"}
_SEQUENCES = {"list": list, "tuple": tuple, "List": Sequence, "Tuple": Sequence, "Sequence": Sequence}


class Call(NamedTuple):
    """One call, or one property set (``member`` ends in ``=``)."""

    owner: str  # the class; empty for a function of the module
    member: str
    arguments: tuple[Any, ...]  # in the order of the signature, keywords too, without ``self``; ``...`` where left out


def recorded_apis() -> list[str]:
    """Names of all records, ``tensorrt-10.3.0`` … ``tensorrt_rtx-1.7.1.116``, the oldest first."""
    names = [path.stem for path in _RECORDS.glob("*.json")]
    return sorted(names, key=lambda n: (n.partition("-")[0], [int(i) for i in re.findall(r"\d+", n.partition("-")[2])]))


def api_double(version: str) -> ApiDouble:
    """The double of one recorded API.

    Args:
        version: name of a record, or the beginning of a version that only one record has: ``11.4``.
    """
    names = [n for n in recorded_apis() if version == n or f"{n.partition('-')[2]}.".startswith(f"{version}.")]
    assert len(names) == 1, f"'{version}' is {names or 'none'} of {recorded_apis()}"
    return ApiDouble(json.loads((_RECORDS / f"{names[0]}.json").read_text()))


class ApiDouble:
    """A module with the recorded API.

    Attributes:
        calls: everything called and set so far.
        returns: what calls and properties give, by name: ``{"OnnxParser.num_errors": 1}``; a function is called with
            the object and the arguments, an exception is raised.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.calls: list[Call] = []
        self.returns: dict[str, Any] = {}
        self.__name__, self.__version__ = record["module"], record["version"]
        self._types: dict[str, Any] = {"Dims": type("Dims", (tuple,), {})}
        for name, enum in record["enums"].items():
            self._types[name] = _make_enum(name.rpartition(".")[2], enum)
        for name in sorted(record["classes"], key=lambda name: len(record["classes"][name]["bases"])):
            self._types[name] = self._make_class(name, record["classes"][name])
        for name, found in self._types.items():
            if "." not in name:  # the others are members of classes
                setattr(self, name, found)
        for name, texts in record["functions"].items():
            setattr(self, name, self._make_function("", name, texts))

    def arguments_of(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of every call of ``Builder.create_network``, every setting of ``IBuilderConfig.flags=``."""
        return [call.arguments for call in self.calls if f"{call.owner}.{call.member}" == name]

    def _make_class(self, name: str, record: dict[str, Any]) -> type:
        attributes: dict[str, Any] = {"constructible": "__init__" in record["members"], "properties": set()}
        for member, described in record["members"].items():
            if isinstance(described, dict):
                attributes[member] = self._make_property(name, member, described["get"], described["set"])
                attributes["properties"].add(member)
            elif isinstance(described, list):
                method = self._make_function(name, member, described)
                attributes[member] = _initialiser(method) if member == "__init__" else method
            elif described.startswith("class "):
                attributes[member] = self._types[described.removeprefix("class ")]
            else:
                enum, _, value = described.rpartition(".")
                attributes[member] = getattr(self._types[enum], value)
        if name == "IHostMemory":  # a buffer: can be written to a file, handed to deserialize_cuda_engine
            return _Class(name, (_Object, bytes), {**attributes, "nbytes": property(len)})
        return _Class(name, tuple(self._types[base] for base in record["bases"]) or (_Object,), attributes)

    def _make_function(self, owner: str, name: str, texts: list[str]) -> Callable[..., Any]:
        overloads = [Signature.parse(text) for text in texts]
        full = f"{owner}.{name}" if owner else name

        def call(*arguments: Any, **keywords: Any) -> Any:
            for signature in overloads:
                if (bound := self._bind(signature, arguments, keywords)) is not None:
                    self.calls.append(Call(owner, name, bound[1:] if owner else bound))
                    return self._result(full, signature.result, bound)
            given = f"{arguments[1:] if owner else arguments} {keywords or ''}"
            takes = " or ".join(map(str, overloads))
            raise TypeError(f"{full}: incompatible arguments {given}; {self.__name__} {self.__version__} takes {takes}")

        call.arity = len(overloads[0].parameters)  # type: ignore[attr-defined]
        return call

    def _make_property(self, owner: str, name: str, got: str | None, taken: str | None) -> property:
        def read(this: Any) -> Any:
            return this.__dict__[name] if name in this.__dict__ else self._result(f"{owner}.{name}", str(got), (this,))

        def write(this: Any, value: Any) -> None:
            if not self._fits(value, str(taken)) and not (value is None and self._is_class(str(taken))):
                raise TypeError(f"{owner}.{name} takes {taken}, not {value!r}, in {self.__name__} {self.__version__}")
            self.calls.append(Call(owner, f"{name}=", (value,)))
            this.__dict__[name] = value

        return property(read if got else None, write if taken else None)

    def _bind(
        self, signature: Signature, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, ...] | None:
        """The arguments in the order of the signature, ``...`` where left out; None where they do not fit."""
        names = [parameter.name for parameter in signature.parameters]
        given = dict(zip(names, arguments, strict=False))
        if len(arguments) > len(names) or set(keywords) - set(names) or set(keywords) & set(given):
            return None
        given |= keywords
        for parameter in signature.parameters:
            if parameter.name not in given:
                if parameter.default is None:
                    return None
                continue
            value = given[parameter.name]
            if not self._fits(value, parameter.type) and not (value is None and parameter.default == "None"):
                return None
        last = max((i for i, name in enumerate(names) if name in given), default=-1)
        return tuple(given.get(name, ...) for name in names[: last + 1])

    def _fits(self, value: Any, text: str) -> bool:
        outer, inner = parts_of_type(text)
        if outer in ("int", "SupportsInt"):
            return hasattr(value, "__index__")
        if outer in ("float", "SupportsFloat"):
            return hasattr(value, "__index__") or hasattr(value, "__float__")
        if outer in ("bool", "str"):
            return isinstance(value, type(_PLAIN[outer]))
        if outer in _BUFFERS:
            return isinstance(value, bytes | bytearray | memoryview)
        if outer in _CAPSULES:  # a pointer to anything of TensorRT's
            return value is None or isinstance(value, _Object | _Capsule)
        if outer in _SEQUENCES:
            kind = Sequence if inner else _SEQUENCES[outer]
            each = inner * len(value) if len(inner) == 1 and isinstance(value, Sequence) else []
            return isinstance(value, kind) and not isinstance(value, str | bytes) and all(map(self._fits, value, each))
        if outer == "Dims" and isinstance(value, tuple | list):
            return all(hasattr(side, "__index__") for side in value)
        return outer == "object" or isinstance(value, self._type(outer))

    def _result(self, name: str, text: str, arguments: tuple[Any, ...]) -> Any:
        if name not in self.returns:
            return self._plainest(text)
        value = self.returns[name]
        value = value(*arguments) if inspect.isroutine(value) else value
        if isinstance(value, BaseException):
            raise value
        outer, _ = parts_of_type(text)
        if outer in ("IHostMemory", "Dims") and isinstance(value, bytes | tuple):
            return self._new(outer, value)
        may_be_none = outer == "None" or self._is_class(outer)
        assert self._fits(value, text) or (value is None and may_be_none), f"{name} cannot return {value!r}: {text}"
        return value

    def _plainest(self, text: str) -> Any:
        outer, inner = parts_of_type(text)
        if outer in _PLAIN:
            return _PLAIN[outer]
        if outer in _CAPSULES:
            return _Capsule()
        if outer in _SEQUENCES:
            return tuple(map(self._plainest, inner)) if outer in ("tuple", "Tuple") else []
        members = getattr(self._type(outer), "__members__", None)
        return self._new(outer) if members is None else next(iter(members.values()))

    def _new(self, name: str, *content: Any) -> Any:
        found = self._type(name)
        return found.__new__(found, *content)

    def _type(self, name: str) -> Any:
        """The class of that name; one without members where the record only mentions it."""
        return self._types.setdefault(name, _Class(name, (_Object,), {"constructible": False, "properties": set()}))

    def _is_class(self, text: str) -> bool:
        return isinstance(self._types.get(parts_of_type(text)[0]), _Class)


class _Class(type):
    """Refuses to construct what TensorRT alone makes, and subclasses that forget to construct what they are."""

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        if not cls.constructible:  # type: ignore[attr-defined]
            raise TypeError(f"{cls.__name__}: No constructor defined!")
        created = super().__call__(*arguments, **keywords)
        if "initialised" not in created.__dict__:
            raise TypeError(f"{cls.__mro__[1].__name__}.__init__() must be called when overriding __init__")
        return created


class _Object:
    """What all objects of a double are."""

    properties: ClassVar[set[str]] = set()

    def __init_subclass__(cls) -> None:
        """A method that TensorRT will call must take what TensorRT passes."""
        for name, method in vars(cls).items():
            arity = getattr(getattr(cls.__mro__[1], name, None), "arity", None)
            if arity is not None and not hasattr(method, "arity"):
                try:
                    inspect.signature(method).bind(*[None] * arity)
                except TypeError as error:
                    raise TypeError(f"{cls.__name__}.{name} gets {arity - 1} arguments: {error}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        # Subclasses written in Python take attributes of their own, as with pybind11.
        if "properties" in vars(type(self)) and name not in self.properties:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        super().__setattr__(name, value)


class _Capsule:
    """A pointer, as pybind11 hands it to Python."""


def _initialiser(method: Callable[..., Any]) -> Callable[..., None]:
    def initialise(this: Any, *arguments: Any, **keywords: Any) -> None:
        method(this, *arguments, **keywords)
        this.__dict__["initialised"] = True

    return initialise


def _make_enum(name: str, record: dict[str, Any]) -> Any:
    """An enum as pybind11 makes them: no iteration, no ``[]``, equal to itself only, ordered if the record says so."""

    def compare(order: Callable[[int, int], bool]) -> Callable[[Any, Any], bool]:
        def compared(this: Any, other: Any) -> bool:
            if type(this) is not type(other):
                raise TypeError("Expected an enumeration of matching type!")
            return order(this.value, other.value)

        return compared

    enum: Any = type(name, (), {"__int__": lambda this: this.value, "__index__": lambda this: this.value})
    enum.__repr__ = lambda this: f"<{name}.{this.name}: {this.value}>"
    enum.__str__ = lambda this: f"{name}.{this.name}"
    if record["ordered"]:
        enum.__lt__, enum.__le__ = compare(int.__lt__), compare(int.__le__)
        enum.__gt__, enum.__ge__ = compare(int.__gt__), compare(int.__ge__)
    enum.__members__ = {}
    for member, value in sorted(record["values"].items(), key=lambda item: item[1]):
        created = enum()
        created.name, created.value = member, value
        enum.__members__[member] = created
        setattr(enum, member, created)
    by_value = {int(member): member for member in enum.__members__.values()}
    enum.__new__ = lambda cls, value: by_value[operator.index(value)]
    return enum
