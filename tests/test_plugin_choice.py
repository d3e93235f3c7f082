"""Which of two engines is kept: decided by calls that really take their time, and far apart."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.engines.build import BuiltEngine, PluginLibrary
from fastervit_trt.engines.options import BuildOptions
from fastervit_trt.engines.runtime.session import Done
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.plugin_choice import PluginTiming, PluginVerdict, judge_plugins

SHAPE = (3, 8, 8)
LIBRARY = PluginLibrary(Path("libfastervit_plugins.so"), "0.1.0", "0" * 64)


class Sleeping:
    """A session that takes ``milliseconds`` per call, and remembers what it was given."""

    emulated, depth, description, outputs = False, 1, "asleep", ("logits",)

    def __init__(self, milliseconds: float, broken: bool = False) -> None:
        self.milliseconds, self.broken, self.closed = milliseconds, broken, False
        self.batch = BatchRange(1, 4, 8)
        self.shapes: list[tuple[int, ...]] = []

    def submit(self, images: np.ndarray) -> Done:
        assert not self.closed
        if self.broken:
            raise RuntimeError("no such kernel on this GPU")
        self.shapes.append(images.shape)
        time.sleep(self.milliseconds / 1e3)
        return Done((images,))

    def run_on_gpu(self, images: object) -> tuple[object, ...]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def engine(name: str, *profiles: BatchRange, plugins: PluginLibrary | None = None) -> BuiltEngine:
    return BuiltEngine(
        path=Path(name),
        runtime="tensorrt",
        version="11.4.0.106",
        compute_capability="8.9",
        gpu="NVIDIA L4",
        driver="580.65",
        profiles=profiles or (BatchRange(1, 4, 8),),
        options=BuildOptions(),
        plugins=plugins,
        layers=100,
        seconds=1.0,
        peak_rss_mib=100,
        from_cache=False,
        retries=(),
        inspection=None,
    )


def judge(opened: dict[tuple[str, int], Sleeping], *profiles: BatchRange) -> PluginVerdict:
    pair = (engine("without", *profiles), engine("with", *profiles, plugins=LIBRARY))
    return judge_plugins(*pair, SHAPE, lambda built, profile: opened[built.path.name, profile], seconds=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize(("without_ms", "with_ms", "kept"), [(20, 2, "with plugins"), (2, 20, "without plugins")])
def test_the_faster_engine_is_kept(without_ms: float, with_ms: float, kept: str) -> None:
    sessions = {("without", 0): Sleeping(without_ms), ("with", 0): Sleeping(with_ms)}
    verdict = judge(sessions)
    assert verdict.plugins_win == (kept == "with plugins")
    record = verdict.record()
    assert record["kept"] == kept
    assert (record["gain"] > 2, record["gain"] < 0.5) == (without_ms > with_ms, without_ms < with_ms)
    (timing,) = record["timings"]
    assert timing["batch"] == 4
    assert (timing["without_ms"] >= without_ms, timing["with_ms"] >= with_ms) == (True, True)
    for side in ("without", "with"):
        assert timing[f"{side}_p20_ms"] <= timing[f"{side}_ms"] <= timing[f"{side}_p80_ms"]
    for session in sessions.values():
        assert session.closed
        assert {*session.shapes} == {(4, *SHAPE)}  # at the batch the profile is optimised for


def test_every_profile_is_timed_at_its_own_batch() -> None:
    """Plugins that are faster at one batch and slower at another are judged by both."""
    profiles = (BatchRange(1, 1, 1), BatchRange(2, 16, 32))
    sessions = {
        ("without", 0): Sleeping(2),
        ("with", 0): Sleeping(4),
        ("without", 1): Sleeping(40),
        ("with", 1): Sleeping(2),
    }
    verdict = judge(sessions, *profiles)
    assert [timing.batch for timing in verdict.timings] == [1, 16]
    assert [timing.gain > 1 for timing in verdict.timings] == [False, True]
    assert verdict.plugins_win
    assert {shape[0] for shape in sessions["with", 1].shapes} == {16}


def timing(without_ms: float, with_ms: float, spread: float = 0) -> PluginTiming:
    """Medians, and the share by which the 20th and the 80th percentile are apart from them."""
    times = [ms * (1 + side * spread) for ms in (without_ms, with_ms) for side in (0, -1, 1)]
    return PluginTiming(8, *times)


@pytest.mark.parametrize(
    ("timings", "gain", "win"),
    [
        ([(1, 1)], 1, False),  # a tie: nothing to carry along
        ([(1.005, 1, 0.01)], 1.005, False),  # within what the calls of one engine differ by
        ([(1.05, 1, 0.01)], 1.05, True),
        ([(1.05, 1, 0.05)], 1.05, False),
        ([(1, 2), (2, 1)], 1, False),  # as much lost as gained
        ([(4, 1), (1, 2)], 2**0.5, True),
    ],
)
def test_plugins_have_to_earn_their_place(timings: list[tuple[float, ...]], gain: float, win: bool) -> None:
    verdict = PluginVerdict(tuple(timing(*pair) for pair in timings))
    assert verdict.gain == pytest.approx(gain)
    assert verdict.plugins_win == win
    assert verdict.record()["kept"] == ("with plugins" if win else "without plugins")


def test_sessions_are_closed_where_one_fails() -> None:
    sessions = {("without", 0): Sleeping(1), ("with", 0): Sleeping(1, broken=True)}
    with pytest.raises(RuntimeError, match="no such kernel"):
        judge(sessions)
    assert all(session.closed for session in sessions.values())
