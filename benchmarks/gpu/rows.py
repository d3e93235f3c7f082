"""What a GPU stage found, as rows with their whole context; kept in a folder that is whole after every row."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastervit_trt.benchmarks.rows import ROWS_NAME, write_rows
from fastervit_trt.errors import FasterViTError

__all__ = ["FAILED", "OK", "SKIPPED", "STOPPED", "WRONG", "Context", "GpuRow", "Result", "RowFolder", "read_rows"]

OK = "ok"
WRONG = "wrong"  # its result is off by more than allowed; never timed
FAILED = "failed"  # it raised, or its process died
STOPPED = "stopped"  # its time was up
SKIPPED = "skipped"  # cannot run here, or does not serve the case

_SETTLED = (OK, WRONG, SKIPPED)  # what a later run need not do again


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way to do one thing: a time and what it is worth, or the reason why there is none.

    Times are of the GPU between events, per call, in CUDA graphs where ``captured``; p20 and p80 of times are over
    samples, of ratios over rounds.
    """

    stage: str
    case: str  # empty: the stage as a whole
    peer: str
    status: str
    note: str = ""
    setting: str = ""
    model: str = ""
    batch: int | None = None
    shape: str = ""
    dtype: str = ""
    value: float | None = None  # of what is no comparison, in ``unit``
    unit: str = ""
    error: float | None = None  # |out - exact| / |exact|, of all elements, exact in float64 (models: float32)
    allowed_error: float | None = None  # twice that of the same maths in the same dtype in PyTorch, and one rounding
    time_us: float | None = None
    time_p20_us: float | None = None
    time_p80_us: float | None = None
    time_over_ours: float | None = None
    time_over_ours_p20: float | None = None
    time_over_ours_p80: float | None = None
    latency_us: float | None = None  # host clock around one call and its end, median
    throughput_img_per_s: float | None = None  # at the median call
    bytes: int | None = None  # that it must move
    flop: int | None = None  # of its matrix products
    floor_us: float | None = None  # the longer of bytes and operations at their measured ceilings
    share_of_floor: float | None = None  # floor / time
    share_of_copy: float | None = None  # bytes / time, of the measured copy bandwidth
    captured: bool | None = None
    input_sets: int | None = None  # that calls take in turn, so that the cache does not hold them
    footprint_mb: float | None = None  # of these, results included
    rounds: int | None = None
    samples: int | None = None
    sm_clock_mhz: float | None = None  # while it was timed, as the rest
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""

    @property
    def key(self) -> tuple[str, str, int | None, str]:
        return self.stage, self.case, self.batch, self.peer


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a run is on: the same for all of its rows."""

    gpu: str
    compute_capability: str
    driver: str
    cuda: str
    torch: str
    triton: str
    nvcc: str
    python: str
    os: str
    cpu: str
    fastervit_trt: str
    commit: str
    sources_sha256: str  # of kernels and Python: what ran, also where there is no repository
    command: str


@dataclass(frozen=True, kw_only=True)
class GpuRow(Context, Result):
    """A result with its context."""

    timestamp_utc: str

    @classmethod
    def of(cls, result: Result, context: Context, timestamp_utc: str) -> GpuRow:
        return cls(**asdict(result), **asdict(context), timestamp_utc=timestamp_utc)


@dataclass
class RowFolder:
    """``rows.csv`` and ``rows.json``, replaced as one by one rows come: whoever ends the run, what was there stays."""

    path: Path
    rows: list[GpuRow] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, *, resume: bool = False, overwrite: bool = False) -> RowFolder:
        """A folder to write to.

        Args:
            resume: with the rows that are there, but for those of peers that failed or were stopped.

        Raises:
            FasterViTError: there are rows, and it was not said what becomes of them; or they are not ours.
        """
        file = path / ROWS_NAME
        if file.exists() and not (resume or overwrite):
            raise FasterViTError(
                f"'{file}' has rows of an earlier run; pass --resume or --overwrite, or another --output"
            )
        path.mkdir(parents=True, exist_ok=True)
        before = read_rows(file) if resume and file.exists() else []
        return cls(path, [row for row in before if row.case and row.status in _SETTLED])

    @property
    def settled(self) -> set[tuple[str, str, int | None, str]]:
        """Keys of what need not be done."""
        return {row.key for row in self.rows if row.status in _SETTLED}

    def add(self, rows: Iterable[GpuRow]) -> None:
        """Append, in place of rows of the same key."""
        new = list(rows)
        keys = {row.key for row in new}
        self.rows = [row for row in self.rows if row.key not in keys] + new
        with tempfile.TemporaryDirectory(prefix=".rows.", dir=self.path) as scratch:
            for file in write_rows(self.rows, Path(scratch)):
                file.replace(self.path / file.name)


def read_rows(file: Path) -> list[GpuRow]:
    """The rows of a ``rows.json``.

    Raises:
        FasterViTError: it is not one of these.
    """
    names = {f.name for f in fields(GpuRow)}
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text())
        return [GpuRow(**{key: value for key, value in entry.items() if key in names}) for entry in entries]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FasterViTError(f"'{file}' holds no rows of a GPU run ({error}); choose another --output") from error
