"""Build options: what is refused and in which words, what manifests keep, what is lowered when memory runs out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fastervit_trt.engines.api import RuntimeName
from fastervit_trt.engines.options import BuildOptions, parse_profiles
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

EVERYTHING = BuildOptions(
    workspace_mib=512,
    shared_memory_kib=48,
    level=4,
    max_tactics=5,
    tiling="fast",
    hardware_compatibility="same-capability",
    version_compatible=True,
    strip_weights=True,
)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workspace_mib": 0}, "--workspace is MiB, at least 1"),
        ({"workspace_mib": -5}, "--workspace is MiB, at least 1"),
        ({"shared_memory_kib": 0}, "--shared-memory is KiB, at least 1"),
        ({"level": -1}, "--level goes from 0 (fast build) to 5 (fast engine)"),
        ({"level": 6}, "--level goes from 0 (fast build) to 5 (fast engine)"),
        ({"max_tactics": 0}, "--max-tactics is at least 1"),
        ({"tiling": "best"}, "--tiling is one of none, fast, moderate, full"),
        ({"hardware_compatibility": "hopper"}, "--hardware-compatibility is one of none, ampere+, same-capability"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(FasterViTError) as refused:
        BuildOptions(**wrong)
    assert str(refused.value) == message


def test_the_ends_of_the_ranges_are_taken() -> None:
    for level in range(6):
        BuildOptions(workspace_mib=1, shared_memory_kib=1, max_tactics=1, level=level)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"level": 0}, "--level"),
        ({"max_tactics": 1}, "--max-tactics"),
        ({"tiling": "none"}, "--tiling"),
        ({"hardware_compatibility": "ampere+"}, "--hardware-compatibility"),
        ({"hardware_compatibility": "same-capability"}, "--hardware-compatibility"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"strip_weights": True}, "--strip-weights"),
    ],
)
def test_rtx_refuses_options_without_effect_by_name(options: dict[str, Any], option: str) -> None:
    with pytest.raises(FasterViTError, match=rf"^TensorRT-RTX has no {option.replace('+', '.')}\b.*use TensorRT$"):
        BuildOptions(**options).check("tensorrt-rtx", "1.7.1.116")


def test_rtx_takes_limits() -> None:
    BuildOptions(workspace_mib=64, shared_memory_kib=48).check("tensorrt-rtx", "1.4.0.76")
    BuildOptions().check("tensorrt-rtx", "1.4.0.76")


@pytest.mark.parametrize(
    ("options", "version", "release"),
    [
        ({"max_tactics": 4}, "10.3.0.26", "10.4"),
        ({"tiling": "full"}, "10.7.0.23", "10.8"),
        ({"hardware_compatibility": "same-capability"}, "10.8.0.43", "10.9"),
    ],
)
def test_what_a_release_lacks_is_refused_with_the_one_that_has_it(
    options: dict[str, Any], version: str, release: str
) -> None:
    with pytest.raises(FasterViTError, match=rf"^TensorRT {version} has no --.*; TensorRT {release} and later have it"):
        BuildOptions(**options).check("tensorrt", version)
    BuildOptions(**options).check("tensorrt", f"{release}.0.1")


def test_what_is_old_is_taken_by_every_release() -> None:
    old = BuildOptions(
        workspace_mib=1,
        shared_memory_kib=48,
        level=5,
        hardware_compatibility="ampere+",
        version_compatible=True,
        strip_weights=True,
    )
    for version in ("10.3.0", "10.16.1.11", "11.4.0.106"):
        old.check("tensorrt", version)
    EVERYTHING.check("tensorrt", "11.4.0.106")


@pytest.mark.parametrize(
    "options", [BuildOptions(), EVERYTHING, BuildOptions(level=0), BuildOptions(tiling="none", strip_weights=True)]
)
def test_a_record_gives_the_options_back(options: BuildOptions) -> None:
    record = json.loads(json.dumps(options.record()))
    assert BuildOptions.from_record(record) == options


def test_a_record_keeps_only_what_was_asked() -> None:
    assert BuildOptions().record() == {}
    assert BuildOptions(level=0, workspace_mib=64).record() == {"level": 0, "workspace_mib": 64}
    assert len(EVERYTHING.record()) == 8


def test_options_read_as_a_list() -> None:
    assert str(BuildOptions()) == "no limits"
    assert str(BuildOptions(workspace_mib=512, level=1)) == "--workspace 512 --level 1"


def test_sizes_are_binary() -> None:
    assert EVERYTHING.bytes_of("workspace_mib") == 512 * 1024 * 1024
    assert EVERYTHING.bytes_of("shared_memory_kib") == 48 * 1024
    assert BuildOptions().bytes_of("workspace_mib") is None


# --- less memory ---


def needs(options: BuildOptions) -> tuple[int, int]:
    """What only ever falls; left to TensorRT is more than 4 GiB and level 3."""
    return options.workspace_mib or 4097, 3 if options.level is None else options.level


def lowered(before: BuildOptions, after: BuildOptions) -> bool:
    pairs = list(zip(needs(after), needs(before), strict=True))
    return all(now <= then for now, then in pairs) and any(now < then for now, then in pairs)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("workspace", [None, 1, 2, 3, 31, 32, 4096, 100_000])
@pytest.mark.parametrize("level", [None, 0, 1, 2, 3, 5])
def test_every_step_needs_less_than_the_one_before(
    runtime: RuntimeName, workspace: int | None, level: int | None
) -> None:
    asked = BuildOptions(workspace_mib=workspace, level=level, shared_memory_kib=48)
    steps = asked.with_less_memory(runtime)
    assert len(steps) <= 3
    assert all(lowered(before, after) for before, after in zip([asked, *steps], steps, strict=False))
    assert {step.shared_memory_kib for step in steps} <= {48}
    if runtime == "tensorrt-rtx":
        assert {step.level for step in steps} <= {level}


def test_the_steps_are_half_an_eighth_and_a_thirty_second() -> None:
    def tried(steps: Sequence[BuildOptions]) -> list[tuple[int | None, int | None]]:
        return [(step.workspace_mib, step.level) for step in steps]

    assert tried(BuildOptions().with_less_memory("tensorrt")) == [(2048, 2), (512, 1), (128, 0)]
    assert tried(BuildOptions().with_less_memory("tensorrt-rtx")) == [(2048, None), (512, None), (128, None)]
    assert tried(BuildOptions(workspace_mib=64, level=1).with_less_memory("tensorrt")) == [
        (32, 1),
        (8, 1),
        (2, 0),
    ]


def test_where_all_is_lowest_nothing_is_tried() -> None:
    assert BuildOptions(workspace_mib=1).with_less_memory("tensorrt-rtx") == []
    assert BuildOptions(workspace_mib=1, level=0).with_less_memory("tensorrt") == []


def test_the_rest_of_what_was_asked_stays() -> None:
    for step in EVERYTHING.with_less_memory("tensorrt"):
        changed = {name for name, value in step.record().items() if EVERYTHING.record()[name] != value}
        assert changed <= {"workspace_mib", "level"}


# --- profiles ---


@pytest.mark.parametrize(
    ("text", "profiles"),
    [
        ("8", [(8, 8, 8)]),
        ("1:8:32", [(1, 8, 32)]),
        ("1,2:16:64", [(1, 1, 1), (2, 16, 64)]),
        (" 1 , 2:4:4 ", [(1, 1, 1), (2, 4, 4)]),
    ],
)
def test_profiles_are_read(text: str, profiles: list[tuple[int, int, int]]) -> None:
    assert parse_profiles(text) == tuple(BatchRange(*profile) for profile in profiles)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "batch '' is neither"),
        ("1,", "batch '' is neither"),
        ("a", "batch 'a' is neither"),
        ("0", "batch '0' is neither"),
        ("8:4:16", "batch '8:4:16' is neither"),
        ("1:2", "batch '1:2' is neither"),
        ("4,4:4:4", "batch '4,4:4:4' names a profile twice"),
    ],
)
def test_what_is_no_profile_is_refused(text: str, message: str) -> None:
    with pytest.raises(FasterViTError, match=message):
        parse_profiles(text)
