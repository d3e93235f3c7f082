"""What changes an engine, written down so that two builds can tell whether they would make the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastervit_trt.artifacts import sha256_file
from fastervit_trt.engines.machine import platform_name
from fastervit_trt.errors import FasterViTError

__all__ = ["BUILDER_SCHEMA", "CacheKey", "graph_sha256"]

BUILDER_SCHEMA = 1  # raise it when our builder makes other calls for the same description


@dataclass(frozen=True)
class CacheKey:
    """Everything that changes the engine: two builds with equal keys may share one."""

    onnx_sha256: str  # of the graph with its external data: graph_sha256
    runtime: str  # "tensorrt" or "tensorrt-rtx"
    version: str
    target: str  # compute capability, "8.9"
    gpu: str | None  # its name, where kernels are timed on one
    driver: str | None
    precision: str
    profiles: tuple[tuple[int, int, int], ...]
    options: tuple[tuple[str, Any], ...] | Mapping[str, Any]  # whatever JSON can write; their order does not matter
    plugins: tuple[str, str] | None  # version and sha256 of the library
    builder_schema: int = BUILDER_SCHEMA
    platform: str = field(default_factory=platform_name)  # a home folder may be shared by machines

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items(), key=lambda option: option[0])))

    @property
    def json(self) -> str:
        """The same text for equal keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the key's JSON."""
        return hashlib.sha256(self.json.encode()).hexdigest()


def graph_sha256(onnx_path: Path) -> str:
    """Hash of a graph and of the files its weights lie in; that of the file itself where it holds them all.

    Raises:
        FasterViTError: a file of weights is missing.
    """
    import onnx_ir as ir

    tensors = (value.const_value for graph in ir.load(onnx_path).graphs() for value in graph.initializers.values())
    digest: str = sha256_file(onnx_path)
    for name in sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}):
        path = onnx_path.parent / name
        if not path.is_file():
            raise FasterViTError(f"'{path}', which holds weights of '{onnx_path}', is missing; export the model again")
        digest = hashlib.sha256(f"{digest} {name} {sha256_file(path)}".encode()).hexdigest()
    return digest
