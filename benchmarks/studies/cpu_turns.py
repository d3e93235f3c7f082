"""Ways to run one model in, the time of each out: opened, held against PyTorch float32, then timed in turns.

Only ratios taken within a round are to be compared: the speed of a machine drifts by more between minutes than the
ways differ. None is timed that computes something else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastervit_trt.accuracy import signal_to_noise_db
from fastervit_trt.benchmarks.studies.cpu_runners import MissingPackageError, Runner
from fastervit_trt.benchmarks.studies.gemm_peak import park
from fastervit_trt.benchmarks.timing import Timer
from fastervit_trt.console import track
from fastervit_trt.errors import FasterViTError

__all__ = ["PERCENTILES", "TOLERANCE", "PathResult", "load_average", "no_float32", "open_path", "ratio", "take_turns"]

PERCENTILES = (50, 20, 80)
# Of the largest logit. Float32 sums in another order differ by 1e-6, bfloat16 by 7e-3.
TOLERANCE = 1e-3


@dataclass
class PathResult:
    """One way to run the model: a timer if it may be timed, else the reason why not."""

    name: str
    status: str  # "ok", "failed" or "skipped"
    note: str = ""
    error: float | None = None  # of the logits, relative to the largest of the reference
    sqnr_db: float | None = None  # of the logits; None where they are not finite
    timer: Timer | None = None
    rounds: list[float] = field(default_factory=list)  # median seconds of each round
    fastest: list[float] = field(default_factory=list)  # least seconds of each round, as the floor is taken


def open_path(
    name: str, prepare: Callable[[], Runner], reference: np.ndarray, refuse: Callable[[PathResult], str]
) -> PathResult:
    """The path, ready to be timed if it runs and is not refused.

    Args:
        reference: logits of PyTorch float32 on the images that the runner runs on.
        refuse: what is wrong with the logits by their error and SQNR; empty where nothing is.
    """
    try:
        runner = prepare()
        logits = runner()
        if logits.shape != reference.shape:
            raise FasterViTError(f"it yields {logits.shape}, PyTorch {reference.shape}")
    except MissingPackageError as missing:
        return PathResult(name, "skipped", str(missing))
    except FasterViTError as failure:
        return PathResult(name, "failed", str(failure))
    path = PathResult(name, "ok", error=float(np.abs(logits - reference).max() / np.abs(reference).max()))
    if np.isfinite(logits).all():
        path.sqnr_db = signal_to_noise_db(reference, logits)
    path.note = refuse(path)
    if path.note:
        path.status = "failed"
    else:
        path.timer = Timer(runner, len(reference))
    return path


def no_float32(path: PathResult) -> str:
    """What is wrong with logits that ought to be float32's; empty where nothing is."""
    if path.error is not None and path.error <= TOLERANCE:  # NaN is not
        return ""
    return f"its logits are not PyTorch's float32: off by {path.error:.1e} of the largest"


def take_turns(
    paths: Sequence[PathResult],
    seconds: float,
    rounds: int,
    description: str,
    after_round: Callable[[], object] = lambda: None,
) -> None:
    """Time every path that has a timer for ``seconds``, in rounds of a slice each."""
    timed = [(path, path.timer) for path in paths if path.timer is not None]
    for _, timer in timed:
        timer.warm_up()
    for _ in track(range(rounds), description):
        for path, timer in timed:
            park()
            first = len(timer.samples)
            path.rounds.append(timer.slice(seconds / rounds))
            path.fastest.append(min(timer.samples[first:]))
        after_round()


def ratio(over: Sequence[float], under: Sequence[float]) -> list[float | None]:
    """Median, p20 and p80 over the rounds of one time divided by another."""
    if not over or not under:
        return [None, None, None]
    ratios = np.asarray(over) / np.asarray(under)
    return [float(value) for value in np.percentile(ratios, PERCENTILES)]


def load_average() -> float | None:
    """Of the last minute, where the system keeps one."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
