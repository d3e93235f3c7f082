"""Wheels of TensorRT's Python bindings in, one JSON record of their API each out; needs neither TensorRT nor a GPU.

The bindings are one extension module that wants TensorRT's libraries. Here it gets empty ones, with nothing but the
entry points it asks for by name: enough to import it and to read what every class offers, though not to call it.

    python tests/engines/recorded/record_api.py WHEEL… [--output tests/engines/recorded/api]
    python tests/engines/recorded/record_api.py --installed tensorrt_rtx
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["main", "record_of_module", "record_of_wheel", "text_of_record"]

API = Path(__file__).parent / "api"

# What building, auditing and running engines touches; the layers of a network are left to the ONNX parser.
_CLASSES = (
    "Builder EngineInspector IBuilderConfig ICudaEngine IErrorRecorder IExecutionContext IHostMemory ILayer ILogger "
    "INetworkDefinition IOptimizationProfile IOutputAllocator IPluginRegistry IProgressMonitor IRuntimeCache "
    "IRuntimeConfig ISerializationConfig IStreamWriter ITensor ITimingCache Logger OnnxParser OnnxParserRefitter "
    "ParserError Refitter Runtime"
).split()
_ENUMS = (
    "BuilderFlag ComputeCapability CudaGraphStrategy DataType EngineCapability ExecutionContextAllocationStrategy "
    "HardwareCompatibilityLevel LayerInformationFormat MemoryPoolType NetworkDefinitionCreationFlag OnnxParserFlag "
    "PreviewFeature ProfilingVerbosity RuntimePlatform SerializationFlag TacticSource TensorIOMode "
    "TilingOptimizationLevel"
).split()
_ONLY = {"INetworkDefinition": "num_layers get_layer num_inputs get_input num_outputs get_output flags name".split()}
_SPECIAL = ("__init__", "__getitem__", "__len__")


def record_of_module(module: ModuleType) -> dict[str, Any]:
    """What ``module`` offers, see tests/engines/recorded/README.md."""
    classes = {name: _class(module, name) for name in _CLASSES if hasattr(module, name)}
    named = set(re.findall(r"\w+", json.dumps(classes))) & set(dir(module))
    enums = sorted(name for name in {*_ENUMS, *named} if _is_enum(getattr(module, name, None)))
    owners = [getattr(module, name) for name in classes]
    nested = {value.__qualname__: value for owner in owners for value in vars(owner).values() if _is_enum(value)}
    return {
        "module": module.__name__.removesuffix("_bindings"),
        "version": module.__version__,
        "classes": classes,
        "enums": {name: _enum(enum) for name, enum in {**{n: getattr(module, n) for n in enums}, **nested}.items()},
        "functions": {
            name: _signatures(name, value.__doc__)
            for name, value in vars(module).items()
            if inspect.isbuiltin(value) and value.__doc__ and value.__doc__.startswith(f"{name}(")
        },
    }


def record_of_wheel(wheel: Path) -> dict[str, Any]:
    """The record of the bindings in ``wheel``, imported in a process of their own."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        (extension,) = Path(folder).glob("tensorrt*_bindings/tensorrt*.so")
        libraries = Path(folder) / "empty-libraries"
        _write_empty_libraries(extension, libraries)
        program = (
            f"import sys; sys.path[:0] = {[folder, str(Path(__file__).parent)]!r}\n"
            "import json, record_api, importlib\n"
            f"module = importlib.import_module({extension.parent.name!r})\n"
            "print(json.dumps(record_api.record_of_module(module)))"
        )
        # Without site-packages: libraries installed there must not be found in place of the empty ones.
        command = [sys.executable, "-S", "-I", "-c", program]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(finished.stdout)
    return record


def text_of_record(record: dict[str, Any]) -> str:
    """The record as JSON, sorted, one member a line: a new version shows as few changed lines."""
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Record the wheels, or the installed module, named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--installed", metavar="MODULE", action="append", default=[])
    parser.add_argument("--output", type=Path, default=API)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    records = [record_of_wheel(wheel) for wheel in options.wheels]
    records += [record_of_module(importlib.import_module(name)) for name in options.installed]
    for record in records:
        path = options.output / f"{record['module']}-{record['version']}.json"
        path.write_text(text_of_record(record))
        print(path)


def _class(module: ModuleType, name: str) -> dict[str, Any]:
    found: Any = getattr(module, name)
    members = {}
    for member in dir(found):
        if (member.startswith("_") and member not in _SPECIAL) or member not in _ONLY.get(name, [member, *_SPECIAL]):
            continue
        value = inspect.getattr_static(found, member)
        if (described := _member(member, value)) is not None:
            members[member] = described
    bases = [base.__name__ for base in found.__mro__[1:] if base.__module__ == found.__module__]
    return {"bases": bases, "members": members}


def _member(name: str, value: Any) -> Any:
    """A property as its two types, a method as its signatures, an enum's value as its name; None: Python's own."""
    if isinstance(value, property):
        return {"get": _type_got(value), "set": _type_set(value)}
    if _is_enum(type(value)):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, type):
        return f"class {value.__qualname__}"
    function = value.__func__ if isinstance(value, staticmethod) else value
    if inspect.isfunction(function):
        return [str(inspect.signature(function))]
    document = getattr(function, "__doc__", None) or ""
    return _signatures(name, document) if document.startswith(f"{name}(") else None


def _type_got(value: property) -> str | None:
    """The type read; None where it can only be written."""
    if value.fget is None:
        return None
    return _plain((value.fget.__doc__ or "").strip().rpartition(" -> ")[2]) or "object"


def _type_set(value: property) -> str | None:
    """The type taken; None where it can only be read."""
    if value.fset is None:
        return None
    match = re.search(r"arg1: (.*)\) -> ", value.fset.__doc__ or "")
    return _plain(match[1]) if match else "object"


def _signatures(name: str, document: str) -> list[str]:
    """What pybind11 wrote on the first line, or on numbered lines where there are overloads."""
    lines = [line.strip() for line in document.splitlines()]
    if "Overloaded function." in lines:
        found = [m[1] for line in lines if (m := re.match(rf"\d+\. {name}(\(.*)", line))]
    else:
        found = [lines[0].removeprefix(name)]
    return [_plain(signature) for signature in found]


def _plain(signature: str) -> str:
    return re.sub(r"\btensorrt\w*\.(tensorrt\w*\.)?", "", signature)


def _is_enum(value: object) -> bool:
    return isinstance(value, type) and isinstance(getattr(value, "__members__", None), dict)


def _enum(enum: Any) -> dict[str, Any]:
    ordered = "__lt__" in vars(enum)
    return {"ordered": ordered, "values": {name: int(value) for name, value in enum.__members__.items()}}


def _write_empty_libraries(extension: Path, folder: Path) -> None:
    """Libraries by the names ``extension`` wants, all with the functions it wants, which return nothing."""
    folder.mkdir()
    source = folder / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in _wanted_functions(extension)))
    for library in _wanted_libraries(extension):
        target = ["-o", str(folder / library), f"-Wl,-soname,{library}"]
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", *target, str(source)], check=True)


def _wanted_functions(extension: Path) -> Iterator[str]:
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(extension)], capture_output=True, text=True, check=True
    )
    for line in symbols.stdout.splitlines():
        if re.fullmatch(r"create\w+_INTERNAL|get\w+|init\w+", symbol := line.split()[-1]):
            yield symbol


def _wanted_libraries(extension: Path) -> Iterator[str]:
    dynamic = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
        if re.match(r"libnv|libtensorrt", name):
            yield name


if __name__ == "__main__":
    main()
