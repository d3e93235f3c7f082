"""The installed commands: each needs only the packages of its own work, and says which are missing."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

__all__ = ["bench", "deploy", "engine", "export"]

_PYTORCH = "fastervit-trt[export]"  # has everything that a target can do without


def export() -> NoReturn:
    """``fastervit-export``."""
    _run("export")


def bench() -> NoReturn:
    """``fastervit-bench``."""
    _run("bench")


def engine() -> NoReturn:
    """``fastervit-engine``."""
    _run("engine")


def deploy() -> NoReturn:
    """``fastervit-deploy``."""
    _run("deploy")


def _run(name: str) -> NoReturn:
    try:
        module = importlib.import_module(f"fastervit_trt.cli.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fastervit_trt"):
            raise
        print(
            f"error: fastervit-{name} needs {error.name}, which is not installed: pip install '{_PYTORCH}'",
            file=sys.stderr,
        )
        sys.exit(2)
    module.main()
    raise AssertionError("a command exits")
