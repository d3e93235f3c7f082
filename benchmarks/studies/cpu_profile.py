"""Where ONNX Runtime spends its time in a graph: its own profile in, shares per operator and per kind of block out."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from fastervit_trt.errors import FasterViTError

__all__ = ["NodeTime", "ProfileRow", "node_times", "profile_graph", "shares"]

Key = TypeVar("Key", bound=Hashable)

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


@dataclass(frozen=True)
class NodeTime:
    """One run of one node of the graph that ONNX Runtime made of the one it was given."""

    name: str  # in the graph given, where it has the node or its output
    operator: str
    reads: str  # the type of its first input: "float", "uint8"
    micros: float

    @property
    def block(self) -> str:
        """The kind of block: ``stage 2 attn``; what layouts and fusions add has names of its own."""
        if found := _BLOCK.search(self.name):
            stage, part = found.groups()
            return f"stage {stage} {part or 'between its parts'}"
        if "/" in self.name:
            return self.name.split("/")[0].split(".")[0]
        return "layout changes" if self.operator.startswith("Reorder") else "reshapes of fused operators"


def profile_graph(model: str, path: Path, images: np.ndarray, threads: int) -> list[ProfileRow]:
    """Rows by operator, then by kind of block, the largest share first, of the flat graph at ``path``."""
    times = node_times(path, images, threads)
    groupings: dict[str, Callable[[NodeTime], str]] = {"operator": lambda t: t.operator, "block": lambda t: t.block}
    return [
        ProfileRow(model, grouping, name, *share)
        for grouping, key in groupings.items()
        for name, share in shares(times, key)
    ]


def shares(times: Sequence[NodeTime], key: Callable[[NodeTime], Key]) -> list[tuple[Key, tuple[float, float, int]]]:
    """Share in percent, milliseconds per run and nodes of those of one key, the largest share first."""
    micros: dict[Key, float] = defaultdict(float)
    counts: dict[Key, int] = defaultdict(int)
    for node in times:
        micros[key(node)] += node.micros
        counts[key(node)] += 1
    total = sum(micros.values())
    return [
        (name, (round(100 * spent / total, 2), round(spent / _RUNS / 1e3, 3), counts[name] // _RUNS))
        for name, spent in sorted(micros.items(), key=lambda item: -item[1])
    ]


def node_times(path: Path, images: np.ndarray, threads: int) -> list[NodeTime]:
    """What every node took in every run after the warm-up."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    by_output = {output: node.name for node in nodes for output in node.output}  # names of convolutions in ORT's layout
    times = []
    for event in _events(path, images, threads):
        name, arguments = event["name"].removesuffix("_kernel_time"), event["args"]
        reads = next((kind for shape in arguments["input_type_shape"] for kind in shape), "")
        name = by_output.get(name.removesuffix("_nchwc"), name)
        times.append(NodeTime(name, arguments["op_name"], reads, event["dur"]))
    return times


def _events(path: Path, images: np.ndarray, threads: int) -> list[dict[str, Any]]:
    """ONNX Runtime's own records of nodes, those of all runs after the warm-up."""
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
