"""Where ONNX Runtime spends its time in a graph: its own profile in, shares per operator and per kind of block out."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fastervit_trt.errors import FasterViTError

__all__ = ["ProfileRow", "profile_graph"]

_WARM_UP_RUNS, _RUNS = 3, 10
_BLOCK = re.compile(r"stages\.(\d+)(?:\.blocks\.\d+)?(?:\.(\w+))?[./]")


@dataclass(frozen=True)
class ProfileRow:
    """One operator, or one kind of block, of one model."""

    model: str
    grouping: str  # "operator" or "block"
    name: str
    share_percent: float  # of the time in all operators
    ms_per_run: float
    nodes: int


def profile_graph(model: str, path: Path, images: np.ndarray, threads: int) -> list[ProfileRow]:
    """Rows by operator, then by kind of block, the largest share first, of the flat graph at ``path``."""
    events = _events(path, images, threads)
    blocks = {name: node.name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output}
    by_operator = [(event["args"]["op_name"], event) for event in events]
    by_block = [(_kind(event["name"], event["args"]["op_name"], blocks), event) for event in events]
    return [*_rows(model, "operator", by_operator), *_rows(model, "block", by_block)]


def _events(path: Path, images: np.ndarray, threads: int) -> list[dict[str, Any]]:
    """What every node took in every run after the warm-up."""
    try:
        import onnxruntime
    except ImportError as error:
        raise FasterViTError("ONNX Runtime is not installed: pip install 'fastervit-trt[cpu]'") from error
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: images}
        for _ in range(_WARM_UP_RUNS + _RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    timed = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return timed[len(timed) * _WARM_UP_RUNS // (_WARM_UP_RUNS + _RUNS) :]  # every run has the same events


def _kind(event: str, operator: str, blocks: dict[str, str]) -> str:
    """``stage 2 attn`` of an event; layouts and fusions have names of their own, convolutions their output's."""
    name = event.removesuffix("_kernel_time")
    name = blocks.get(name.removesuffix("_nchwc"), name)
    if found := _BLOCK.search(name):
        stage, part = found.groups()
        return f"stage {stage} {part or 'between its parts'}"
    if "/" in name:
        return name.split("/")[0].split(".")[0]
    return "layout changes" if operator.startswith("Reorder") else "reshapes of fused operators"


def _rows(model: str, grouping: str, named: Iterable[tuple[str, dict[str, Any]]]) -> list[ProfileRow]:
    micros: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for name, event in named:
        micros[name] += event["dur"]
        counts[name] += 1
    total = sum(micros.values())
    return [
        ProfileRow(
            model, grouping, name, round(100 * spent / total, 2), round(spent / _RUNS / 1e3, 3), counts[name] // _RUNS
        )
        for name, spent in sorted(micros.items(), key=lambda item: -item[1])
    ]
