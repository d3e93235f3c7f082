"""The compiled kernels as tests use them: on this machine's CPU, emulated, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.kernels import Kernels
from fastervit_trt.plugins.library import find_library
from tests.plugins.emulator import build
from tests.plugins.plugin_driver import unavailable
from tests.plugins.standin.build import StandIn, runner_with_stand_ins
from tests.plugins.standin.running import Runner

ORDERS = {"ascending": 0, "descending": -1, "shuffled": 7}  # of threads, as the emulator numbers them


class KernelLibrary(NamedTuple):
    """Kernels, and where their tensors live."""

    kernels: Kernels
    device: torch.device

    def guarded(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that kernels can use. Emulated ones fail when they access a byte around it."""
        if self.device.type == "cpu":
            return guarded(ctypes.CDLL(str(self.kernels.path)), tensor)
        return tensor.to(self.device, copy=True)

    def in_every_order(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``compute`` yields, the same to the bit in whichever order threads and blocks run."""
        if self.device.type != "cpu":
            return compute()  # the GPU chooses
        emulator = ctypes.CDLL(str(self.kernels.path))
        results = {}
        try:
            for name, order in ORDERS.items():
                emulator.fastervit_emulator_order(order)
                results[name] = compute().clone()
        finally:
            emulator.fastervit_emulator_order(ORDERS["ascending"])
        first, *others = (x.view(torch.uint8) for x in results.values())  # bits: NaN equals NaN
        assert all(torch.equal(first, other) for other in others), f"results depend on the order: {results}"
        return results["ascending"]


class EmulatedKernels(Kernels):
    """Workspaces lie in guarded memory and start as NaN."""

    def _launch(
        self, operator: str, out: torch.Tensor, tensors: Mapping[str, torch.Tensor | None], scalars: Mapping[str, Any]
    ) -> torch.Tensor:
        workspace = tensors.get("workspace")
        if workspace is not None:
            library = ctypes.CDLL(str(self.path))
            tensors = {**tensors, "workspace": guarded(library, torch.full_like(workspace, 0xFF))}
        return super()._launch(operator, out, tensors, scalars)


def guarded(emulator: ctypes.CDLL, tensor: torch.Tensor) -> torch.Tensor:
    """A copy, of the same layout, in memory whose accesses ``emulator`` checks to the byte."""
    tensor = tensor.detach().clone()  # dense
    size = tensor.untyped_storage().nbytes()
    if size == 0:
        return tensor
    emulator.fastervit_emulator_allocate.restype = ctypes.c_void_p
    address = emulator.fastervit_emulator_allocate(ctypes.c_size_t(size))
    assert address is not None, "too many guarded tensors at once"
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, emulator.fastervit_emulator_release, ctypes.c_void_p(address))
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@pytest.fixture(scope="session", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_library(request: pytest.FixtureRequest) -> KernelLibrary:
    """All kernels, compiled for the CPU and (marker ``gpu``) for the GPU."""
    if request.param == "emulated":
        if reason := build.unavailable():
            pytest.skip(reason)
        return KernelLibrary(EmulatedKernels(build.emulated_library()), torch.device("cpu"))
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    try:
        return KernelLibrary(Kernels(find_library("kernels")), torch.device("cuda"))
    except FasterViTError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def stand_in() -> StandIn:
    """fastervit-runner, and TensorRT and CUDA that need no GPU."""
    if reason := unavailable():
        pytest.skip(reason)
    return runner_with_stand_ins()


@pytest.fixture
def run(stand_in: StandIn, tmp_path: Path) -> Runner:
    """fastervit-runner in the test's own folder."""
    return Runner(stand_in, tmp_path)
