"""One stage of a GPU run, in a process of its own: a dead CUDA context, a crash or a hang must not reach the others.

Run as ``python -m fastervit_trt.benchmarks.gpu.worker`` with a job on standard input; events on standard output
(:mod:`job`), everything else on standard error. Stage ``core`` is the function ``run`` of :mod:`core`, etc.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

from fastervit_trt.benchmarks.gpu.job import Job, LostDeviceError, Report

__all__ = ["LOST_DEVICE", "main"]

LOST_DEVICE = 75  # exit code: begin again with what is left


def main() -> None:
    """Read the job, do it."""
    # Libraries and compilers print to standard output, also from native code.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job.load(sys.stdin)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    report = Report(job.stage, emit, job.done)
    try:
        importlib.import_module(f"fastervit_trt.benchmarks.gpu.{job.stage}").run(job, report)
    except LostDeviceError:
        traceback.print_exc()
        events.flush()
        os._exit(LOST_DEVICE)  # at an orderly exit CUDA would raise once more
    except Exception as error:  # whatever it is, it becomes a row, and the other stages go on
        traceback.print_exc()
        report.failed("", "", error)


if __name__ == "__main__":
    main()
