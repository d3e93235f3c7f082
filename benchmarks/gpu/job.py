"""Between a GPU run and the process of one of its stages: a job goes in, events come out, one JSON line each.

``{"start": key}`` says what is about to be done, so that whoever waits knows what a dead process was at;
``{"start": null}`` that it is done; ``{"result": …}`` what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from fastervit_trt.benchmarks.gpu.cases import Ceilings
from fastervit_trt.benchmarks.gpu.rows import FAILED, Result
from fastervit_trt.errors import FasterViTError

__all__ = ["Job", "Key", "LostDeviceError", "Report", "first_line"]

Key = tuple[str, str, int | None, str]  # of a Result

_LONGEST_NOTE = 400


class LostDeviceError(Exception):
    """This process can do nothing more on the GPU; another one can."""


@dataclass(frozen=True)
class Job:
    """What the process of a stage is to do."""

    stage: str
    checkout: str  # root of the sources
    build: str  # folder for what is built
    output: str
    models: Sequence[str] = ()
    batches: Sequence[int] = ()
    peers: Sequence[str] | None = None  # None: all but those on request
    seconds: float = 0.3  # timed per peer
    ceilings: Ceilings | None = None
    architecture: str | None = None  # compute capability without the dot; None: that of the GPU
    sanitizer: bool = False
    device: str = "cuda"
    done: Sequence[Key] = field(default_factory=list)

    def dump(self, stream: IO[str]) -> None:
        json.dump(asdict(self), stream)

    @classmethod
    def load(cls, stream: IO[str]) -> Job:
        content: dict[str, Any] = json.load(stream)
        ceilings = content.pop("ceilings")
        done = [tuple(key) for key in content.pop("done")]
        return cls(**content, ceilings=Ceilings(**ceilings) if ceilings else None, done=done)

    @property
    def build_path(self) -> Path:
        return Path(self.build)


class Report:
    """A stage's side of the events.

    Args:
        emit: takes an event.
    """

    def __init__(self, stage: str, emit: Callable[[dict[str, Any]], None], done: Sequence[Key] = ()) -> None:
        self.stage = stage
        self._emit = emit
        self._done = set(done)

    def is_done(self, case: str, peer: str, batch: int | None = None) -> bool:
        return (self.stage, case, batch, peer) in self._done

    def start(self, case: str, peer: str, batch: int | None = None) -> None:
        self._emit({"start": (self.stage, case, batch, peer)})

    def idle(self) -> None:
        self._emit({"start": None})

    def result(self, result: Result) -> None:
        self._emit({"result": asdict(result)})

    def add(self, case: str, peer: str, status: str, note: str = "", **values: Any) -> None:
        """A result with little to it."""
        self.result(Result(stage=self.stage, case=case, peer=peer, status=status, note=note, **values))

    def failed(self, case: str, peer: str, error: Exception, **values: Any) -> None:
        self.add(case, peer, FAILED, first_line(error), **values)


def first_line(error: Exception) -> str:
    """Of its message, with the kind of error where it is not ours; short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, FasterViTError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0] if lines else 'no message'}"[:_LONGEST_NOTE]
