"""Which release has what: the numbers in messages against the recorded API of each release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from fastervit_trt.engines import api
from fastervit_trt.engines.api import (
    FEATURES,
    MODULES,
    RuntimeName,
    TensorRtApi,
    check_target,
    unavailable_reason,
    unsuitable_reason,
    version_tuple,
)
from fastervit_trt.engines.rtx import RtxTarget
from fastervit_trt.errors import FasterViTError
from tests.engines.api_double import ApiDouble, api_double, recorded_apis

TENSORRT = [name for name in recorded_apis() if name.startswith("tensorrt-")]
RTX = [name for name in recorded_apis() if name.startswith("tensorrt_rtx-")]

# What a feature is in the API.
CALLS: dict[str, Callable[[Any], bool]] = {
    "hardware_compatibility": lambda trt: hasattr(trt.HardwareCompatibilityLevel, "AMPERE_PLUS"),
    "same_capability": lambda trt: hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"),
    "version_compatible": lambda trt: hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"),
    "level": lambda trt: hasattr(trt.IBuilderConfig, "builder_optimization_level"),
    "max_tactics": lambda trt: hasattr(trt.IBuilderConfig, "max_num_tactics"),
    "tiling": lambda trt: hasattr(trt.IBuilderConfig, "tiling_optimization_level"),
    "strip_weights": lambda trt: hasattr(trt.BuilderFlag, "STRIP_PLAN") and hasattr(trt.BuilderFlag, "REFIT_IDENTICAL"),
    "plugins": lambda trt: hasattr(trt.IPluginRegistry, "load_library"),
    "timing_cache": lambda trt: hasattr(trt.IBuilderConfig, "create_timing_cache"),
}
# Read from the bindings of the releases between those that are recorded: 10.4, 10.7, 10.8 and 10.9.
FIRST = {"max_tactics": (10, 4), "tiling": (10, 8), "same_capability": (10, 9)}


def short(trt: ApiDouble) -> tuple[int, ...]:
    return version_tuple(trt.__version__)[:2]


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_since_the_release_whose_api_has_it(name: str) -> None:
    doubles = [api_double(release) for release in TENSORRT]
    having = [short(trt) for trt in doubles if CALLS[name](trt)]
    lacking = [short(trt) for trt in doubles if not CALLS[name](trt)]
    since = FEATURES[name].since
    assert since <= min(having)
    assert all(version < since for version in lacking)
    assert max(lacking, default=(0, 0)) < min(having)  # what came stayed
    assert since == FIRST.get(name, (10, 3))


@pytest.mark.parametrize("release", TENSORRT)
@pytest.mark.parametrize("name", FEATURES)
def test_what_a_release_lacks_is_refused_and_nothing_else(name: str, release: str) -> None:
    trt, feature = api_double(release), FEATURES[name]
    if CALLS[name](trt):
        feature.check("tensorrt", trt.__version__)
        return
    with pytest.raises(FasterViTError) as refused:
        feature.check("tensorrt", trt.__version__)
    major, minor = FIRST[name]
    assert str(refused.value) == (
        f"TensorRT {trt.__version__} has no {feature.option}; TensorRT {major}.{minor} and later have it"
    )


@pytest.mark.parametrize("name", FEATURES)
def test_rtx_refuses_what_it_takes_without_effect(name: str) -> None:
    with pytest.raises(FasterViTError) as refused:
        FEATURES[name].check("tensorrt-rtx", "1.7.1.116")
    message = str(refused.value)
    assert message.startswith(f"TensorRT-RTX has no {FEATURES[name].option}: {FEATURES[name].rtx}; ")
    assert message.endswith("leave it out or use TensorRT")


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
@pytest.mark.parametrize("release", RTX)
def test_rtx_refuses_gpus_that_its_release_does_not_know(release: str, capability: str) -> None:
    assert str(RtxTarget.parse(capability)) == capability
    trt = api_double(release)
    if hasattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"):
        check_target(trt.__version__, capability)
        return
    assert (short(trt), capability) == ((1, 4), "12.1")
    with pytest.raises(FasterViTError) as refused:
        check_target(trt.__version__, capability)
    # 1.5 and 1.6, which are not recorded, have it: read from their bindings.
    assert str(refused.value) == ("TensorRT-RTX 1.4.0.76 has no compute capability 12.1; 1.5 and later have it")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("10.16.1.11", (10, 16, 1, 11)), ("11.0.0.post1", (11, 0, 0)), ("10.3", (10, 3)), ("", ()), ("unknown", ())],
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(text) == numbers


@pytest.mark.parametrize(
    ("runtime", "version", "reason"),
    [
        ("tensorrt", "10.2.0.19", "TensorRT 10.2.0.19 is too old; 10.3 or later is needed: pip install"),
        ("tensorrt", "8.6.1.post1", "TensorRT 8.6.1.post1 is too old; 10.3 or later is needed: pip install"),
        ("tensorrt-rtx", "1.3.0.35", "TensorRT-RTX 1.3.0.35 is too old; 1.4 or later is needed: pip install"),
        ("tensorrt", None, "TensorRT is not installed: pip install 'fastervit-trt[gpu]'"),
        ("tensorrt-rtx", None, "TensorRT-RTX is not installed (PyPI has tensorrt-rtx for x86-64 Linux and Windows)"),
    ],
)
def test_what_is_missing_or_too_old_is_told_with_the_command(
    runtime: RuntimeName, version: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = unsuitable_reason(runtime, version)
    assert said is not None and said.startswith(reason) and "pip install 'fastervit-trt[" in said and "\n" not in said
    monkeypatch.setattr(api, "installed_version", lambda name: version if name == runtime else "99")
    assert unavailable_reason(runtime) == said


@pytest.mark.parametrize("release", recorded_apis())
def test_every_recorded_release_is_new_enough(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, version = release.partition("-")
    (runtime,) = [name for name in get_args(RuntimeName) if MODULES[name] == module]
    monkeypatch.setattr(api, "installed_version", lambda name: version if name == runtime else None)
    assert unavailable_reason(runtime) is None


def test_the_oldest_release_is_the_oldest_recorded() -> None:
    for releases, runtime, older in ((TENSORRT, "tensorrt", "10.2"), (RTX, "tensorrt-rtx", "1.3")):
        assert unsuitable_reason(runtime, releases[0].partition("-")[2]) is None  # type: ignore[arg-type]
        assert unsuitable_reason(runtime, older) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("release", recorded_apis())
def test_functions_are_taken_since_parsers_prefer_plugins(release: str) -> None:
    trt = api_double(release)
    takes = TensorRtApi(trt, "tensorrt" if trt.__name__ == "tensorrt" else "tensorrt-rtx").takes_functions
    # The release that lets plugins come first is the one with the flag that lets them override everything.
    assert takes == hasattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE")


@pytest.mark.parametrize(("version", "takes"), [("10.14.1.48", False), ("10.15.0", True)])
def test_the_release_before_that_takes_none(version: str, takes: bool) -> None:
    trt = api_double("10.13")
    trt.__version__ = version  # not recorded; that 10.15 changed the order is in its notes
    assert TensorRtApi(trt, "tensorrt").takes_functions is takes


def test_the_place_of_an_error_is_named_from_the_outside_in() -> None:
    trt = api_double("11.4")
    error = trt.ParserError.__new__(trt.ParserError)  # type: ignore[attr-defined]
    place = TensorRtApi(trt, "tensorrt").place_of
    trt.returns["ParserError.node_name"] = "Softmax_0"
    assert place(error) == "Softmax_0"
    trt.returns["ParserError.local_function_stack"] = ["outer/Call_0 (Call)", "inner/Call_1 (Call)"]
    assert place(error) == "outer/Call_0/inner/Call_1/Softmax_0"
