"""What a sweep is asked for, as data that outlives the process: exports, backends, batches, data, time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.backends.runner import Request
from fastervit_trt.errors import FasterViTError
from fastervit_trt.metering import Data, open_data
from fastervit_trt.models.config import parse_resolution
from fastervit_trt.models.tasks.heads import SegmentationHead, Task

if TYPE_CHECKING:
    from fastervit_trt.models.factory import ModelSpec

__all__ = ["AUTO", "PLAN_FILE", "Options", "Plan", "WantedExport"]

PLAN_FILE = "plan.json"
AUTO = "auto"  # the backend that is thought fastest among those that run an export here


@dataclass(frozen=True)
class WantedExport:
    """An export to be made first: arguments of ``fastervit-export`` beside ``--output``.

    ``engines`` are added to it: backends that need one, with arguments of ``fastervit-engine build`` beside the folder.
    """

    model: str
    precision: str  # as rows have it
    arguments: tuple[str, ...]
    resolution: str = ""  # H or HxW; the model's own where empty
    engines: tuple[tuple[str, tuple[str, ...]], ...] = ()
    task_asked_for: str | None = None  # None: the model's own

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = (self.model, self.task_asked_for, self.precision, self.resolution)
        return "-".join(part for part in parts if part)

    @property
    def spec(self) -> ModelSpec:
        """What ``fastervit-export`` is asked for.

        Raises:
            FasterViTError: an impossible resolution.
        """
        from fastervit_trt.models.factory import ModelSpec  # with PyTorch, which most cells need not

        return ModelSpec(self.model, resolution=self.sides, task=self.task_asked_for)

    @property
    def task(self) -> Task:
        """That it will be judged by.

        Raises:
            FasterViTError: an unknown model or task.
        """
        head = self.spec.head
        if head is None:
            return "classification"
        return "segmentation" if isinstance(head, SegmentationHead) else "detection"

    @property
    def sides(self) -> tuple[int, int] | None:
        """The resolution in pixels.

        Raises:
            FasterViTError: it is none.
        """
        return parse_resolution(self.resolution or None)


@dataclass(frozen=True)
class Options:
    """How every cell is measured."""

    data: str | None = None
    max_unreadable: float = 0.01  # share of the images that may be left out because they cannot be read
    seconds: float = 5.0  # timed per cell, for latency and throughput each
    rounds: int = 10  # slices of that time, in which cells take turns
    attempts: int = 2  # fresh processes until a cell that is not stable is called so
    threads: int = 1  # of CPU backends
    transfers: bool = False
    cold_cache: bool = False
    cuda_graph: bool = True
    device: int = 0
    trust: bool = False
    machine: str = ""
    together: int = 8  # cells that are open at the same time, at most
    silence: float = 900.0  # seconds without a sign of life after which a cell is given up
    examples: int = 0  # pictures of the data that are drawn with what was found in them

    def dataset(self, task: str) -> Data | None:
        """The images that accuracy of ``task`` is taken on; None where it is not.

        Raises:
            FasterViTError: no such data, or data of another task.
        """
        return open_data(task, self.data, self.max_unreadable) if self.data else None

    def request(self, folder: Path, manifest: Manifest, batch: int, streams: int) -> Request:
        """What a backend is asked for, of the export in ``folder``."""
        return Request(
            folder=folder,
            manifest=manifest,
            batch=batch,
            streams=streams,
            threads=self.threads,
            transfers=self.transfers,
            cold_cache=self.cold_cache,
            cuda_graph=self.cuda_graph,
            device=self.device,
            trust=self.trust,
        )


@dataclass(frozen=True)
class Plan:
    """The whole sweep; ``exports`` are folders that are there, ``wanted`` those to be made."""

    exports: tuple[str, ...]
    wanted: tuple[WantedExport, ...]
    backends: tuple[str, ...]
    batches: tuple[int, ...]
    streams: tuple[int, ...]
    options: Options

    def write(self, folder: Path) -> None:
        path = folder / PLAN_FILE
        temporary = path.with_name(f".{PLAN_FILE}")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan of a sweep that was begun in ``folder``.

        Raises:
            FasterViTError: none was, or its file is damaged.
        """
        path = folder / PLAN_FILE
        if not path.is_file():
            raise FasterViTError(f"'{folder}' has no sweep to resume: no {PLAN_FILE}; name exports or --model")
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            wanted = [
                WantedExport(
                    entry["model"],
                    entry["precision"],
                    tuple(entry["arguments"]),
                    entry["resolution"],
                    tuple((backend, tuple(arguments)) for backend, arguments in entry["engines"]),
                    entry.get("task_asked_for"),
                )
                for entry in content["wanted"]
            ]
            known = {field.name for field in fields(Options)}
            options = Options(**{name: value for name, value in content["options"].items() if name in known})
            lists = {name: tuple(content[name]) for name in ("exports", "backends", "batches", "streams")}
            return cls(**lists, wanted=tuple(wanted), options=options)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FasterViTError(f"'{path}' is damaged ({error}); name exports or --model") from error
