"""What a build may use, on boards that share their memory with the GPU and on cards that do not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fastervit_trt.deploy.install.memory import FreeMemory, plan_memory
from fastervit_trt.errors import FasterViTError
from tests.conftest import ROOT
from tests.deploy.targets.machines import nvidia_smi

MB = 10**6
ORIN_NANO = FreeMemory(host=5600, swap=3800, device=5600)


def test_the_estimate_of_the_host_is_what_builds_have_taken() -> None:
    with (ROOT / "benchmarks/results/export-scale-fp16.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"].endswith("_224") and "21k" not in row["model"]]
    assert len(rows) == 7
    for row in rows:
        plan = plan_memory(
            int(float(row["onnx_mb"]) * MB), FreeMemory(10**6, 0), "device", workspace_mib=None, on_gpu=False
        )
        assert plan.needed_host == pytest.approx(int(row["engine_peak_rss_mib"]), rel=0.08), row["model"]
        assert (plan.needed_device, plan.workspace) == (0, None)


def test_a_shared_memory_is_spent_once() -> None:
    plan = plan_memory(58 * MB, ORIN_NANO, "unified", workspace_mib=512, on_gpu=True)
    assert plan.workspace == 512
    assert plan.hint is None
    crowded = FreeMemory(host=1500, swap=4000, device=1500)
    plan = plan_memory(58 * MB, crowded, "unified", workspace_mib=1024, on_gpu=True)
    assert plan.workspace is not None
    assert 64 <= plan.workspace < (1500 - plan.needed_device)  # what the device needs is taken off first
    assert plan.hint is not None
    assert "swapon" in plan.hint


def test_a_card_has_memory_of_its_own() -> None:
    free = FreeMemory(host=2000, swap=0, device=20_000)
    assert plan_memory(58 * MB, free, "device", workspace_mib=4096, on_gpu=True).workspace == 4096
    full = FreeMemory(host=2000, swap=0, device=1500)
    plan = plan_memory(58 * MB, full, "device", workspace_mib=4096, on_gpu=True)
    assert plan.workspace is not None
    assert plan.workspace < 1500 - plan.needed_device
    with pytest.raises(FasterViTError, match=r"about \d+ MiB on the GPU and 300 MiB are free there; end what else"):
        plan_memory(58 * MB, FreeMemory(2000, 0, 300), "device", workspace_mib=None, on_gpu=True)


def test_without_knowing_the_card_the_limit_asked_for_stands() -> None:
    free = FreeMemory(host=2000, swap=0, device=None)
    assert plan_memory(58 * MB, free, "device", workspace_mib=4096, on_gpu=True).workspace == 4096


def test_too_little_to_begin_says_how_much_swap_to_add() -> None:
    free = FreeMemory(host=2000, swap=0, device=2000)
    with pytest.raises(
        FasterViTError, match=r"2000 MiB of memory and 0 MiB of swap are free; .*fallocate -l (\d+)G"
    ) as e:
        plan_memory(2664 * MB, free, "unified", workspace_mib=512, on_gpu=True)
    gigabytes = int(str(e.value).split("fallocate -l ")[1].split("G")[0])
    swap = FreeMemory(host=2000, swap=1024 * gigabytes, device=2000)
    with pytest.raises(FasterViTError, match="on the GPU"):  # now the host's part fits; the GPU's cannot be swapped out
        plan_memory(2664 * MB, swap, "unified", workspace_mib=512, on_gpu=True)


@pytest.mark.parametrize(("said", "device"), [("21987", 21987), ("[N/A]", None), ("", None)])
def test_what_the_driver_says_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, device: int | None
) -> None:
    nvidia_smi(tmp_path, {"memory.free": said} if said else {})
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert FreeMemory.detect().device == device


def test_this_machine_has_some() -> None:
    free = FreeMemory.detect()
    assert 0 < free.host < 10**8
    assert free.swap >= 0
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert free.host <= total_kib // 1024
