"""Shared pieces: golden weights, commands run as a user would, one small export per precision for the whole run."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from fastervit_trt.cli import bench, deploy, engine, export

if TYPE_CHECKING:
    from tests.engines.graphs import Graphs

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Of fastervit-bench where times do not matter: few slices, no second process for what is unstable.
QUICK_BENCH = ("--seconds", 0.1, "--rounds", 2, "--attempts", 1)

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # one of several processes that share the tests; None: all run here
# They take file by file; what is long must not be left for the end, when nothing remains to be done beside it.
LONGEST_FIRST = ("tests/plugins/test_resources.py", "tests/test_readme.py")

if WORKER is not None:
    torch.set_num_threads(1)  # the other cores have tests of their own


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the longest files come first."""
    if WORKER is not None:
        order = {file: place for place, file in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this run, filled by ``make``: by the first process that asks, and the others wait.

    Nobody may change what is in there; whoever adds to it takes turns with the others.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own if WORKER is None else own.parent
    folder, made = shared / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@dataclass(frozen=True)
class Finished:
    """What a command left behind: exit code and both outputs."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line a failing command ends with, in place of a traceback."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run ``fastervit-export``, ``fastervit-engine``, ``fastervit-bench`` or ``fastervit-deploy`` with arguments."""
    modules = {"export": export, "engine": engine, "bench": bench, "deploy": deploy}
    mains = {f"fastervit-{name}": module.main for name, module in modules.items()}

    def run(name: str, *arguments: object) -> Finished:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            mains[name]([str(a) for a in arguments])
        out, err = capfd.readouterr()
        code = stop.value.code
        return Finished(code if isinstance(code, int) else 1, out, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err))

    return run


@pytest.fixture(autouse=True)
def _gradients_left_on() -> Iterator[None]:
    """A test, or the code it calls, that switches gradients off for good is at fault itself, not the tests after it."""
    yield
    left_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert left_on, "gradients were switched off and not on again"


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Within, PyTorch runs on one thread: where tensors are small, several would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread."""
    with on_one_thread():
        yield


@pytest.fixture(scope="module")
def module_on_one_thread() -> Iterator[None]:
    """PyTorch on one thread for all tests of a file."""
    with on_one_thread():
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache and keys of the run, not of the user. Keys are of all processes: so are the engines they sign."""
    keys = made_once(tmp_path_factory, "user", lambda folder: None) / "keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FASTERVIT_TRT_KEYS", str(keys))
        yield


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``exports / "fp32"``, "fp16" and "bf16": the smallest digits model, dynamic batch 1:4:8, engine for 8.9."""

    def make(root: Path) -> None:
        for precision in ("fp32", "fp16", "bf16"):
            with pytest.raises(SystemExit) as stop:
                export.main(
                    f"--model faster_vit_digits_s --pretrained --precision {precision} --batch 1:4:8 "
                    f"--output {root / precision}".split()
                )
            assert stop.value.code == 0

    return made_once(tmp_path_factory, "exports", make)


@pytest.fixture(scope="session")
def graphs(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Graphs of the same model in every precision and form, and TensorRT-RTX's plans of them; made when asked for."""
    from tests.engines.graphs import Graphs  # which needs this module

    return Graphs(exports, made_once(tmp_path_factory, "graphs", lambda folder: None))


@torch.no_grad()
def fill_from_names(model: nn.Module) -> nn.Module:
    """Weights rebuilt from parameter names, by the rule of tests/golden/README.md."""
    statistics = [(n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for name, tensor in [*model.named_parameters(), *statistics]:
        rng, shape = np.random.default_rng(zlib.crc32(name.encode())), tuple(tensor.shape)
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            value = 0.1 * rng.standard_normal(shape)
        elif name.split(".")[-1].startswith("gamma"):
            value = rng.uniform(0.2, 1.0, shape)
        elif tensor.ndim == 1 and name.endswith("weight"):
            value = 1 + 0.1 * rng.standard_normal(shape)
        elif tensor.ndim == 1:
            value = 0.02 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        tensor.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))
    return model.eval()
