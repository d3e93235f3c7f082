"""Which GPUs a library holds code for: of real fatbins, and of damaged ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.fatbin import Architectures, read_architectures
from fastervit_trt.plugins.nvcc import find_nvcc
from tests.deploy.targets.machines import container

KERNEL = "__global__ void k(float* x) { x[0] = 1; }\n"


@pytest.mark.parametrize(
    ("code", "ptx", "capability", "serves"),
    [
        ({80}, set(), "8.6", True),
        ({86}, set(), "8.0", False),
        ({80}, set(), "9.0", False),
        ({120}, set(), "12.1", True),
        ({80, 86}, set(), "8.7", False),  # Tegra runs code for Tegra only
        ({87}, set(), "8.9", False),  # and nothing else runs that
        ({87}, set(), "8.7", True),
        (set(), {80}, "11.0", True),
        (set(), {120}, "11.0", False),
    ],
)
def test_which_gpus_run_which_code(code: set[int], ptx: set[int], capability: str, serves: bool) -> None:
    assert Architectures(frozenset(code), frozenset(ptx)).serve(capability) == serves


def test_architectures_of_what_nvcc_writes(tmp_path: Path) -> None:
    try:
        nvcc = find_nvcc()
    except FasterViTError as error:
        pytest.skip(str(error))
    (tmp_path / "kernel.cu").write_text(KERNEL)
    codes = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=[sm_90,compute_90]"]
    command = [nvcc.path, "-fatbin", *codes, tmp_path / "kernel.cu", "-o", tmp_path / "kernel.fatbin"]
    subprocess.run(command, check=True, capture_output=True)
    written = (tmp_path / "kernel.fatbin").read_bytes()
    (tmp_path / "library").write_bytes(b"\x7fELF" + bytes(60) + written + bytes(8) + container((2, 80), (2, 120)))
    assert read_architectures(tmp_path / "kernel.fatbin") == Architectures(frozenset({80, 90}), frozenset({90}))
    assert read_architectures(tmp_path / "library") == Architectures(frozenset({80}), frozenset({90}))


def test_damaged_libraries_hold_nothing(tmp_path: Path) -> None:
    whole = container((2, 80), (1, 90))
    for content in (b"", whole[:20], whole[:4] * 9, whole[:16] + bytes(len(whole) - 16), whole[:-1]):
        (tmp_path / "library").write_bytes(content)
        assert read_architectures(tmp_path / "library") == Architectures(frozenset(), frozenset())
