"""What ``--runtime`` means on machines of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastervit_trt import engine_choice
from fastervit_trt.engine_choice import EngineChoice, choose_engines, parse_capabilities, parse_plugin_choice
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.precision import Bf16, Fp8, Fp16

L4 = Machine("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", "580.65")
T4 = replace(L4, gpu="Tesla T4", capability="7.5")
Be = Callable[..., None]
BARE = Machine("tensorrt", None)
NO_TENSORRT, NO_RTX = "TensorRT is not installed: …", "TensorRT-RTX is not installed: …"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Be:
    """``on(machine, "tensorrt", …)``: this machine is that one, with these runtimes installed."""

    def be(machine: Machine, *installed: str) -> None:
        missing = {"tensorrt": NO_TENSORRT, "tensorrt-rtx": NO_RTX}
        monkeypatch.setattr(engine_choice, "unavailable_reason", lambda r: None if r in installed else missing[r])
        monkeypatch.setattr(engine_choice.Machine, "detect", lambda runtime: replace(machine, runtime=runtime))

    return be


def built(choice: EngineChoice) -> list[tuple[str, str | None]]:
    return [(request.runtime, request.compute_capability) for request in choice.requests]


AHEAD = [("tensorrt-rtx", "8.6"), ("tensorrt-rtx", "8.9")]
HERE = [("tensorrt", None)]


@pytest.mark.parametrize(
    ("runtime", "machine", "installed", "expected", "skipped"),
    [
        ("auto", L4, ("tensorrt", "tensorrt-rtx"), HERE, None),
        ("auto", L4, ("tensorrt-rtx",), AHEAD, None),
        ("auto", BARE, ("tensorrt", "tensorrt-rtx"), AHEAD, None),  # TensorRT without a GPU builds nothing
        ("auto", BARE, ("tensorrt",), [], NO_RTX),
        ("auto", L4, (), [], NO_RTX),
        ("tensorrt", L4, ("tensorrt", "tensorrt-rtx"), HERE, None),
        ("rtx", L4, ("tensorrt", "tensorrt-rtx"), AHEAD, None),
        ("none", L4, ("tensorrt", "tensorrt-rtx"), [], "not asked for"),
    ],
)
def test_what_is_built_where(
    on: Be, runtime: str, machine: Machine, installed: tuple[str, ...], expected: object, skipped: str | None
) -> None:
    on(machine, *installed)
    choice = choose_engines(runtime, ["8.6", "8.9", "8.6"])
    assert built(choice) == expected
    assert choice.skipped == skipped


@pytest.mark.parametrize(("runtime", "expected"), [("auto", []), ("rtx", []), ("tensorrt", HERE)])
def test_no_capability_means_no_engine_ahead_of_time(on: Be, runtime: str, expected: object) -> None:
    on(L4, "tensorrt", "tensorrt-rtx")
    assert built(choose_engines(runtime, [])) == expected


def test_what_is_asked_for_by_name_and_missing_is_an_error(on: Be) -> None:
    on(L4, "tensorrt-rtx")
    with pytest.raises(FasterViTError, match=r"^TensorRT is not installed"):
        choose_engines("tensorrt", ["8.9"])
    on(BARE, "tensorrt", "tensorrt-rtx")
    with pytest.raises(FasterViTError, match=r"^TensorRT builds on the GPU .* none was found here; build with"):
        choose_engines("tensorrt", ["8.9"])
    on(L4, "tensorrt")
    with pytest.raises(FasterViTError, match=r"^TensorRT-RTX is not installed"):
        choose_engines("rtx", ["8.9"])


@pytest.mark.parametrize("runtime", ["trt", "", "RTX", "tensorrt-rtx"])
def test_other_runtimes_are_refused(runtime: str) -> None:
    with pytest.raises(FasterViTError, match=f"^runtime '{runtime}' is none of auto, tensorrt, rtx and none$"):
        choose_engines(runtime, ["8.9"])


def test_requests_carry_what_was_asked_for(on: Be) -> None:
    on(BARE, "tensorrt-rtx")
    options, profiles = BuildOptions(workspace_mib=64), (BatchRange(1, 1, 1), BatchRange(2, 8, 32))
    choice = choose_engines("rtx", ["8.9"], "off", options=options, profiles=profiles, use_cache=False)
    (request,) = choice.requests
    assert (request.options, request.profiles, request.plugins, request.use_cache) == (options, profiles, "off", False)
    (request,) = choose_engines("rtx", ["8.9"]).requests
    assert (request.options, request.profiles, request.plugins, request.use_cache) == (BuildOptions(), (), "auto", True)


def test_plugins_and_rtx_do_not_go_together(on: Be) -> None:
    on(BARE, "tensorrt-rtx")
    with pytest.raises(FasterViTError, match=r"^TensorRT-RTX knows no plugins; leave out --plugins on, or build with "):
        choose_engines("rtx", ["8.9"], "on")
    assert choose_engines("rtx", ["8.9"], "off").requests


def test_a_gpu_is_asked_whether_it_has_the_precision(on: Be) -> None:
    on(T4, "tensorrt")
    choice = choose_engines("tensorrt", [])
    choice.check_precision(Fp16())
    with pytest.raises(FasterViTError, match=r"^compute capability 7\.5 has no bf16"):
        choice.check_precision(Bf16())
    on(BARE, "tensorrt-rtx")
    with pytest.raises(FasterViTError, match=r"^compute capability 8\.6 has no fp8"):
        choose_engines("rtx", ["8.9", "8.6"]).check_precision(Fp8())
    choose_engines("rtx", ["8.9"]).check_precision(Fp8())


def test_capabilities_are_a_list_or_none() -> None:
    assert parse_capabilities("8.6, sm89,120") == ["8.6", "8.9", "12.0"]
    assert parse_capabilities(" None ") == []
    with pytest.raises(FasterViTError, match=r"no compute capability '9\.0'"):
        parse_capabilities("8.9,9.0")


def test_plugins_are_auto_on_or_off() -> None:
    assert [parse_plugin_choice(text) for text in ("auto", "on", "off")] == ["auto", "on", "off"]
    with pytest.raises(FasterViTError, match=r"^--plugins 'yes' is none of auto, on and off$"):
        parse_plugin_choice("yes")
