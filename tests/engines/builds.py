"""Builds that tests share: requests, a pretended worker that does what it is told, and what either leaves behind."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from fastervit_trt.engines.build import BuildRequest, BuiltEngine
from fastervit_trt.engines.cache import EngineCache
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from fastervit_trt.export.batch import BatchRange

__all__ = [
    "LIMIT",
    "ORIN",
    "RTX",
    "SOURCES",
    "WORKER",
    "Built",
    "PretendedWorker",
    "builds",
    "left_behind",
    "posix",
    "rtx_request",
    "static",
    "tree",
]

builds = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))
posix = pytest.mark.skipif(os.name != "posix", reason="signals and scripts are POSIX")

RTX = Machine("tensorrt-rtx", "1.7.1.116")
ORIN = Machine("tensorrt", "10.3.0.26", gpu="Orin", capability="8.7", driver="540.4.0")
LIMIT = 10**9
# What of TensorRT's own sources may never reach a user.
SOURCES = re.compile(r"\.(cpp|cu|hpp|h)\b|/_src|::|Error Code|\bline \d")

WORKER = """#!{python} -I
import json, os, signal, sys, time
from pathlib import Path
here, job = Path({folder!r}), json.load(sys.stdin)
plan = json.loads((here / "plan.json").read_text())
step = plan.pop(0) if len(plan) > 1 else plan[0]
(here / "plan.json").write_text(json.dumps(plan))
timing = job["timing_cache"] and Path(job["timing_cache"])
job["timing_known"] = timing.read_text() if timing and timing.exists() else None
with (here / "jobs").open("a") as jobs:
    jobs.write(json.dumps(job) + "\\n")
number = len((here / "jobs").read_text().splitlines())
def answer(kind, content):
    print("\\n" + json.dumps({{kind: content}}), flush=True)
def fail(stage, reason, node="", operator=""):
    answer("failure", {{"stage": stage, "errors": [{{"node": node, "operator": operator, "reason": reason}}]}})
answer("progress", {{"phase": "parsing", "done": 0, "total": 1}})
(Path(job["scratch"]) / "model.onnx").write_text("a flat graph")
Path(job["engine"]).write_text("half an engi")
if step == "memory":
    fail("builder", "Error Code 2: OutOfMemory (Requested size was 16581132288 bytes.)")
elif step == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif step == "refused":
    fail("parser", "no such thing", "head/Gemm_0", "Gemm")
elif step == "workspace":
    fail("builder", "no tactics to implement the operation within workspace limit")
elif step == "dies":
    sys.exit("first line\\nlast words \\xff")
elif step == "hangs":
    time.sleep(60)
else:
    if step == "noisy":
        os.write(1, b"a library says hello\\n[1, 2]\\n{{}}\\n7\\n\\xff\\xfe\\n{{\\"broken\\n no newline")
        os.write(2, b"\\xff\\xfe trouble")
    Path(job["engine"]).write_text("engine %d of %s" % (number, job["options"]))
    if timing:
        timing.write_text("%s timings %d" % (job["timing_known"] or "", number))
    if job["inspection"]:
        Path(job["inspection"]).write_text('{{"Layers": []}}')
    answer("result", {{"version": "10.3.0", "layers": 7, "seconds": 1.5, "peak_rss_mib": 100}})
    if step == "noisy":
        os.write(1, b"bye")
        os.kill(os.getpid(), signal.SIGSEGV)  # as libraries may when they are unloaded
"""


def rtx_request(export: Path, engine: Path, **changes: Any) -> BuildRequest:
    """A build of the fp16 graph in ``export`` by TensorRT-RTX for 8.9, but for what ``changes`` say."""
    request = BuildRequest(
        onnx=export / "model.onnx",
        engine=engine,
        runtime="tensorrt-rtx",
        precision="fp16",
        input_name="images",
        image_shape=(3, 224, 224),
        profiles=(BatchRange(1, 4, 8),),
        compute_capability="8.9",
    )
    return replace(request, **changes)


def static(onnx_path: Path, folder: Path, batch: int) -> Path:
    graph = onnx.load(onnx_path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(graph, folder / "static.onnx")
    return folder / "static.onnx"


@dataclass(frozen=True)
class Built:
    """The real build that tests share."""

    request: BuildRequest
    engine: BuiltEngine
    cache: EngineCache
    progress: list[tuple[str, int, int]]


@dataclass
class PretendedWorker:
    """Stands where the worker's Python would."""

    folder: Path
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()

    def will(self, *steps: str) -> None:
        """What each run does, the last one for ever: ok, noisy, memory, killed, refused, workspace, dies, hangs."""
        (self.folder / "plan.json").write_text(json.dumps(steps))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        path = self.folder / "jobs"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def options(self) -> list[dict[str, Any]]:
        return [job["options"] for job in self.jobs]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_behind(request: BuildRequest, worker: PretendedWorker) -> list[Path]:
    return [*request.engine.parent.iterdir(), *worker.temporary.iterdir()]
