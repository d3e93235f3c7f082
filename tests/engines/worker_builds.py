"""The worker's builds, driven against the recorded API of a TensorRT release: what each was asked, said and left."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import onnx

from fastervit_trt.engines.api import RuntimeName
from fastervit_trt.engines.worker import Job, build
from tests.engines.api_double import ApiDouble, recorded_apis

__all__ = [
    "ENGINE",
    "INSPECTION",
    "LARGE",
    "RELEASES",
    "SMALL",
    "TENSORRT",
    "TIMINGS",
    "WITHOUT_FUNCTIONS",
    "Build",
    "runtime_of",
]

RELEASES = recorded_apis()
TENSORRT = [name for name in RELEASES if not name.startswith("tensorrt_rtx")]
WITHOUT_FUNCTIONS = [name for name in TENSORRT if re.match(r"tensorrt-10\.(3|7|10|13)\.", name)]
SMALL, LARGE = [[1, 3, 224, 224], [2, 3, 224, 224], [4, 3, 224, 224]], [[8, 3, 224, 224]] * 3
ENGINE, TIMINGS, INSPECTION = b"an engine", b"measured timings", '{"Layers": []}'


def runtime_of(trt: ApiDouble) -> RuntimeName:
    return "tensorrt" if trt.__name__ == "tensorrt" else "tensorrt-rtx"


@dataclass
class Build:
    """One build driven against a double: what it was asked, what it said, what it left."""

    trt: ApiDouble
    job: Job
    progress: list[dict[str, Any]] = field(default_factory=list)
    parsed: list[str] = field(default_factory=list)
    graph: onnx.ModelProto | None = None  # that the parser got, with its weights
    result: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Build:
        returns = {
            "Builder.build_serialized_network": self._build,
            "OnnxParser.parse_from_file": self._parse,
            "INetworkDefinition.num_layers": 7,
            "ITimingCache.serialize": TIMINGS,
            "EngineInspector.get_engine_information": INSPECTION,
        }
        self.trt.returns = {**returns, **self.trt.returns}
        self.result = build(self.trt, self.job, lambda kind, content: self.progress.append({kind: content}))
        return self

    def _build(self, builder: Any, network: Any, config: Any) -> bytes:
        monitor = config.progress_monitor
        monitor.phase_start("Building", "", 3)
        monitor.phase_start("Optimizing", "Building", 2)
        assert monitor.step_complete("Optimizing", 0) is True  # False would cancel the build
        monitor.step_complete("Optimizing", 1)
        monitor.phase_finish("Optimizing")
        monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        return ENGINE

    def _parse(self, parser: Any, path: str) -> bool:
        self.parsed.append(path)
        onnx.checker.check_model(path)
        self.graph = onnx.load(path)
        return True

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return self.trt.arguments_of(name)

    def order(self, *names: str) -> bool:
        """Whether the first calls of ``names`` came in this order."""
        called = [f"{call.owner}.{call.member}".lstrip(".") for call in self.trt.calls]
        places = [called.index(name) for name in names]
        return places == sorted(places)
