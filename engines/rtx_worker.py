"""Build one TensorRT-RTX engine ahead of time, in a process of its own: TensorRT may abort, the caller must not.

Run as ``python -m fastervit_trt.engines.rtx_worker`` with a job as JSON on standard input; answers are JSON lines on
standard output: ``{"progress": …}`` while it builds, then one ``{"result": …}`` or ``{"failure": …}``. Needs no GPU.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from fastervit_trt.host import peak_rss_mib

__all__ = ["main"]


def _answer(kind: str, content: dict[str, Any]) -> None:
    print(json.dumps({kind: content}), flush=True)


def main() -> None:
    """Read the job, build, write the plan to ``job["plan"]``."""
    job = json.load(sys.stdin)
    import tensorrt_rtx as trt

    start = time.perf_counter()
    logger = _CollectingLogger(trt)
    builder = trt.Builder(logger.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.logger)
    _answer("progress", {"phase": "parsing", "done": 0, "total": 1})
    if not parser.parse_from_file(job["onnx"]):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        parsed = [{"node": _place(e), "operator": e.node_operator(), "reason": e.desc()} for e in errors]
        _answer("failure", {"stage": "parser", "errors": parsed})
        return

    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, job["compute_capability"]), 0)
    config.progress_monitor = _progress_monitor(trt)
    if job["profile"] is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(job["input"], *job["profile"])
        config.add_optimization_profile(profile)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        _answer("failure", {"stage": "builder", "errors": [{"node": "", "operator": "", "reason": logger.text()}]})
        return
    try:
        Path(job["plan"]).write_bytes(plan)
    except OSError as error:
        reason = f"{error.strerror} while writing {Path(job['plan']).name}"
        _answer("failure", {"stage": "builder", "errors": [{"node": "", "operator": "", "reason": reason}]})
        return
    _answer(
        "result",
        {
            "tensorrt_rtx": trt.__version__,
            "layers": network.num_layers,
            "seconds": round(time.perf_counter() - start, 2),
            "peak_rss_mib": peak_rss_mib(),
        },
    )


def _place(error: Any) -> str:
    """The node's name; within a function that of the call, which names the block, and the node's."""
    calls = [call.split(" ")[0] for call in error.local_function_stack()]
    return "/".join([*calls, error.node_name()])


class _CollectingLogger:
    """Keeps error messages; drops the one about an absent driver, which an ahead-of-time build does not need."""

    def __init__(self, trt: Any) -> None:
        messages: list[str] = []
        self.messages = messages

        class Collect(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR and "Cuda Runtime" not in message:
                    messages.append(message)

        self.logger = Collect()

    def text(self) -> str:
        return "; ".join(self.messages[-3:]) or "no reason given"


def _progress_monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            _answer("progress", {"phase": phase, "done": step + 1, "total": self.totals.get(phase, 0)})
            return True

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

    return Monitor()


if __name__ == "__main__":
    main()
