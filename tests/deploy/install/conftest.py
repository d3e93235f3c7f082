"""Bundles to install, and machines to install them on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.deploy.bundle.pack import PackRequest, pack
from fastervit_trt.deploy.install.install import Installed, InstallRequest, install
from fastervit_trt.deploy.install.memory import FreeMemory
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.table import get_target

PLENTY = FreeMemory(host=32_000, swap=0, device=32_000)
SECONDS = 0.1
Install = Callable[..., Installed]


@pytest.fixture(scope="session")
def packed(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``packed("fp32", "cpu")``: an archive of the smallest export, made once; not to be changed."""
    root = tmp_path_factory.mktemp("packed")

    def make(precision: str, target: str) -> Path:
        path = root / f"{precision}-{target}.tar.zst"
        if not path.exists():  # with sources, also where somebody has built the library
            chosen = get_target(target)
            pack(PackRequest(exports / precision, chosen, path, plugins="sources" if chosen.plugins else "auto"))
        return path

    return make


@pytest.fixture
def installed(tmp_path: Path) -> Install:
    """Install an archive or folder on this machine, or on ``here``."""

    def run(bundle: Path, here: Here | None = None, free: FreeMemory = PLENTY, **options: Any) -> Installed:
        request = InstallRequest(bundle, tmp_path / "deployed", seconds=SECONDS)
        return install(replace(request, **options), here or Here.detect(), free, lambda text: nullcontext())

    return run
