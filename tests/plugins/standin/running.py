"""fastervit-runner as its users run it, on the stand-ins: files in; exit code, what it said, TensorRT's calls out."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.plugins.standin.build import StandIn

__all__ = ["IMAGE", "SANITIZERS", "Ran", "Runner", "pictures"]

IMAGE = (3, 4, 4)
# A sanitizer that finds something, a leak too, ends with another exit code than the program has.
SANITIZERS = {"ASAN_OPTIONS": "exitcode=99:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    calls: list[str]  # of TensorRT, those that matter

    @property
    def error(self) -> str:
        """The one line that is all it said."""
        assert self.out == ""
        assert re.fullmatch(r"error: .*\n", self.err), self.err
        return self.err.removeprefix("error: ").rstrip("\n")


@dataclass(frozen=True)
class Runner:
    """``run(engine, images, *options, VARIABLE="…")``; both files lie in the folder it runs in."""

    stand_in: StandIn
    folder: Path

    def __call__(
        self, engine: str | None, images: np.ndarray | bytes | None, *options: object, **variables: str
    ) -> Ran:
        if engine is not None:
            (self.folder / "engine").write_text(engine)
        if isinstance(images, np.ndarray):
            np.save(self.folder / "images.npy", images)
        elif images is not None:
            (self.folder / "images.npy").write_bytes(images)
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        found = {"LD_LIBRARY_PATH": str(self.stand_in.folder), "FASTERVIT_STANDIN_LOG": str(log)}
        environment = {**os.environ, **SANITIZERS, **found, **variables}
        command = [self.stand_in.runner, "engine", "images.npy", *map(str, options)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, check=False)
        out, err = done.stdout.decode(), done.stderr.decode()  # with the line ends that there are
        assert done.returncode in (0, 1, 2), err
        return Ran(done.returncode, out, err, log.read_text().splitlines() if log.exists() else [])


def pictures(count: int, shape: tuple[int, ...] = IMAGE) -> np.ndarray:
    """Whole sixteenths, so that the stand-in's sums are exact; the first pixel of each is its number."""
    images = np.random.default_rng(count).integers(-8, 8, (count, *shape)).astype(np.float32) / 16
    images[:, 0, 0, 0] = np.arange(count)
    return images
