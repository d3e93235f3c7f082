"""The table of targets against everything else that knows about GPUs: precisions, builders, plugins, drivers' names."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from fastervit_trt.deploy.targets import TARGETS, Fact, Target, VersionRange, get_target
from fastervit_trt.engines.api import TensorRtApi, check_target, unsuitable_reason
from fastervit_trt.engines.rtx import RtxTarget, check_precision
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import PRECISIONS
from fastervit_trt.plugins.fatbin import Architectures
from tests.conftest import ROOT

ROWS = list(TARGETS.values())
GPU_ROWS = [row for row in ROWS if row.capability is not None]
each = pytest.mark.parametrize("row", ROWS, ids=str)
each_gpu = pytest.mark.parametrize("row", GPU_ROWS, ids=str)


def test_the_targets_of_the_issue_are_there_in_its_order() -> None:
    datacenter = "a100 a10 a30 l4 l40s h100 h200 b200".split()
    others = "rtx-30 rtx-40 rtx-50 dgx-spark jetson-orin-jp6 jetson-orin-jp7 jetson-thor cpu".split()
    assert list(TARGETS) == [*datacenter, *others]
    # https://developer.nvidia.com/cuda-gpus
    said = "8.0 8.6 8.0 8.9 8.9 9.0 9.0 10.0 8.6 8.9 12.0 12.1 8.7 8.7 11.0".split()
    assert [row.capability for row in GPU_ROWS] == said


@each_gpu
def test_precisions_are_those_that_the_hardware_has(row: Target) -> None:
    def has(name: str) -> bool:
        try:
            check_precision(str(row.capability), PRECISIONS[name])
        except FasterViTError:
            return False
        return True

    assert set(row.precisions) == {name for name in PRECISIONS if has(name)}


@each
def test_versions_are_some_that_engines_are_built_with(row: Target) -> None:
    if row.runtime == "onnxruntime":
        assert f"onnxruntime>={row.versions.minimum}" in (ROOT / "pyproject.toml").read_text()
        return
    assert unsuitable_reason(row.runtime, row.versions.minimum) is None
    if row.runtime == "tensorrt-rtx":
        RtxTarget.parse(str(row.capability))
        check_target(row.versions.minimum, str(row.capability))


@each
def test_a_flat_graph_is_for_those_whose_releases_take_no_functions(row: Target) -> None:
    if row.runtime != "tensorrt":
        assert not row.flat
        return
    newest = SimpleNamespace(__version__=row.versions.below)  # the first that is not in, so the last that is, or less
    assert row.flat == (not TensorRtApi(newest, "tensorrt").takes_functions)


@each_gpu
def test_plugins_are_compiled_for_every_target_that_takes_them(row: Target) -> None:
    text = (ROOT / "plugins" / "cmake" / "CudaArchitectures.cmake").read_text()
    found = re.search(r'FASTERVIT_TRT_CUDA_ARCHITECTURES "([\d;]+)"', text)
    assert found is not None
    compiled = [int(number) for number in found[1].split(";")]
    assert row.plugins == (row.runtime == "tensorrt")
    if row.plugins:
        assert Architectures(frozenset(compiled), frozenset()).serve(str(row.capability))
    if row.l4t is not None:
        assert int(str(row.capability).replace(".", "")) in compiled


@each
def test_a_row_holds_together(row: Target) -> None:
    profile = BatchRange.parse(row.batch)
    assert profile.minimum == 1 and profile.dynamic
    assert row.platforms and all(re.fullmatch(r"(linux|windows|darwin)-(x86_64|aarch64)", p) for p in row.platforms)
    assert bool(row.gpus) == (row.capability is not None) == (row.memory != "host")
    assert bool(row.jetpack) == (row.l4t is not None)
    if row.workspace_mib is not None:
        assert row.memory_gib is not None
        assert row.workspace_mib <= row.memory_gib * 1024 // 8
    assert row.name.replace("-", "").isalnum() and row.title


@each
def test_every_fact_says_where_it_is_from(row: Target) -> None:
    assert len({fact.text for fact in row.facts}) == len(row.facts) >= 5
    for fact in row.facts:
        assert re.match(r"https://\S+$|(experiment|measured|rule): \S", fact.source), fact
    if row.capability is not None:
        assert any(row.capability in fact.text and "developer.nvidia.com" in fact.source for fact in row.facts)


@each
def test_a_row_survives_a_manifest(row: Target) -> None:
    assert Target.from_record(json.loads(json.dumps(row.record()))) == row


def test_a_damaged_record_is_one_line() -> None:
    whole = json.loads(json.dumps(get_target("jetson-thor").record()))
    for damage in ({"versions": "10.3"}, {"facts": [{"text": "alone"}]}, {"new": 1}):
        with pytest.raises(FasterViTError, match=r"record of a target is damaged.*pack the export again"):
            Target.from_record({**whole, **damage})
    with pytest.raises(FasterViTError, match="damaged"):
        Target.from_record({key: value for key, value in whole.items() if key != "l4t"})


def test_an_unknown_target_lists_those_there_are() -> None:
    with pytest.raises(FasterViTError, match=r"unknown target 'orin'; choose one of a100, .*jetson-orin-jp6.* local"):
        get_target("orin")


@pytest.mark.parametrize(
    ("version", "inside"),
    [
        ("10.15.1.29", False),
        ("10.16", True),
        ("10.16.2.10", True),
        ("11.0.0.114", False),
        ("11.4.0.106", False),
        ("11.4.1", True),
        ("11.5.0", True),
        ("12.0", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_a_range_has_an_end_and_gaps(version: str, inside: bool) -> None:
    assert (version in VersionRange("10.16", "12", (("11.0", "11.4.1"),))) == inside


def test_a_range_in_words() -> None:
    assert str(VersionRange("1.4")) == "1.4 and later"
    assert str(VersionRange("10.3", "10.8")) == "10.3 to before 10.8"
    assert str(VersionRange("10.16", "12", (("11.0", "11.4.1"),))).endswith("12, but not 11.0 to before 11.4.1")
    assert VersionRange("10.3", "12").requirement == ">=10.3,<12"
    assert "99" in VersionRange("1.4")
    assert None not in VersionRange("1.4")


# As nvidia-smi lists them.
@pytest.mark.parametrize(
    ("gpu", "names"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA A30", "a30"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 3090", "rtx-30"),
        ("NVIDIA RTX A1000 Laptop GPU", "rtx-30"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx-40"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-40"),
        ("NVIDIA GeForce RTX 5090", "rtx-50"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-50"),
        ("NVIDIA GB10", "dgx-spark"),
        ("NVIDIA Thor", "jetson-thor"),
        ("Orin", "jetson-orin-jp6 jetson-orin-jp7"),
        ("Orin (nvgpu)", "jetson-orin-jp6 jetson-orin-jp7"),
        ("Tesla T4", ""),
        ("NVIDIA L20", ""),
        ("NVIDIA GB200", ""),
        ("NVIDIA GeForce RTX 2080 Ti", ""),
    ],
)
def test_a_driver_s_name_is_one_target_s(gpu: str, names: str) -> None:
    assert [row.name for row in ROWS if row.names(gpu)] == names.split()


def test_what_is_not_known_is_said() -> None:
    unsure = {row.name for row in ROWS for fact in row.facts if "not confirmed" in fact.text}
    assert unsure == {"b200", "dgx-spark", "jetson-orin-jp7", "jetson-thor"}
    assert all(isinstance(fact, Fact) for row in ROWS for fact in row.facts)
