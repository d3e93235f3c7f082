"""How peers are judged and timed, on a small case on the CPU: sums of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu import compare as gpu_compare
from fastervit_trt.benchmarks.gpu.cases import Case, Ceilings, ModelCase
from fastervit_trt.benchmarks.gpu.compare import (
    Comparison,
    Peer,
    RefusedError,
    Way,
    Work,
    judged,
    run_comparison,
    schedule,
)
from fastervit_trt.benchmarks.gpu.job import Job, LostDeviceError, Report
from fastervit_trt.benchmarks.gpu.judge import Judge, relative_error, rounding
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED, WRONG, Result
from fastervit_trt.benchmarks.gpu.timing import HostClock, Lap, input_sets, latency_seconds, take_turns

CASE = ModelCase("faster_vit_digits_s", 4, (32, 32))


def rows(x: Tensor) -> Tensor:
    return x.sum(dim=1)


def work_of(case: Case = CASE, device: str = "cpu") -> Work:
    generator = torch.Generator().manual_seed(0)
    sets = [(torch.randn(4, 64, generator=generator).half(),) for _ in range(3)]
    return Work(case, device, sets, lambda x: rows(x.double()), rows, images=4, latency=True)


def peer(name: str, call: Callable[..., Tensor] = rows, **options: Any) -> Peer:
    return Peer(name, f"as {name}", lambda work: Way(call, work.sets), **options)


def fails(error: Exception) -> Callable[..., Any]:
    def raises(*_: Any) -> Any:
        raise error

    return raises


class Recorder:
    """A report that keeps everything."""

    def __init__(self, done: Sequence[tuple[str, str, int | None, str]] = ()) -> None:
        self.events: list[dict[str, Any]] = []
        self.report = Report("models", self.events.append, done)

    @property
    def results(self) -> dict[str, Result]:
        found = [Result(**event["result"]) for event in self.events if "result" in event]
        assert len({result.peer for result in found}) == len(found), "a peer has two rows"
        return {result.peer: result for result in found}

    @property
    def started(self) -> list[str | None]:
        return [event["start"] and event["start"][3] for event in self.events if "start" in event]


def compare(peers: Sequence[Peer], missing: Sequence[Peer] | None = None) -> Recorder:
    recorder = Recorder()
    comparison = Comparison(work_of(), recorder.report, HostClock(), 0.01, Ceilings(1, 0.001))
    comparison.run(peers, peers if missing is None else missing)
    return recorder


def test_peers_that_compute_the_same_are_timed_against_ours() -> None:
    results = compare([peer("ours"), peer("slow", lambda x: [rows(x) for _ in range(60)][-1])]).results
    assert {result.status for result in results.values()} == {OK}
    ours, slow = results["ours"], results["slow"]
    assert ours.time_over_ours == 1
    assert slow.time_over_ours is not None
    assert slow.time_over_ours > 5
    assert ours.bytes == CASE.bytes
    assert ours.time_us is not None
    assert ours.floor_us == pytest.approx(max(CASE.bytes / 1e3, CASE.flop / 1e3))
    assert ours.share_of_floor == pytest.approx(ours.floor_us / ours.time_us)  # type: ignore[operator]
    assert ours.share_of_copy == pytest.approx(CASE.bytes / ours.time_us / 1e3)
    assert ours.throughput_img_per_s == pytest.approx(4 / ours.time_us * 1e6)
    assert ours.latency_us is not None
    assert (ours.input_sets, ours.rounds, ours.captured) == (3, 5, False)
    assert ours.time_p20_us <= ours.time_us <= ours.time_p80_us  # type: ignore[operator]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: rows(x) * 1.01,
        lambda x: rows(x).fill_(torch.nan),
        lambda x: rows(x)[:2],
        lambda x: torch.cat([rows(x)[:3], rows(x)[3:] * torch.nan]),
        lambda x: rows(x.flip(0)),
    ],
    ids=["off", "nan", "shape", "one of four", "order"],
)
def test_what_is_wrong_is_not_timed(call: Callable[..., Tensor]) -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return call(x)

    result = compare([peer("ours"), peer("wrong", counted)]).results["wrong"]
    assert result.status == WRONG
    assert result.time_us is None
    assert result.note.startswith("its result is off by")
    assert len(calls) == 2  # judged on two draws


def test_the_last_draw_is_judged_too() -> None:
    (first,), *_ = work_of().sets
    assert compare([peer("cached", lambda x: rows(first))]).results["cached"].status == WRONG


def test_refusals_and_failures_are_told_apart_and_stop_nobody() -> None:
    peers = [
        Peer("refuses", "", fails(RefusedError("no masks"))),
        Peer("cannot open", "", fails(ValueError("first line\nsecond line"))),
        peer("cannot run", fails(RuntimeError("out of memory"))),
        peer("ours"),
    ]
    results = compare(peers).results
    assert {name: (result.status, result.note) for name, result in results.items() if name != "ours"} == {
        "refuses": (SKIPPED, "no masks"),
        "cannot open": (FAILED, "ValueError: first line"),
        "cannot run": (FAILED, "RuntimeError: out of memory"),
    }
    assert results["ours"].status == OK


def test_without_ours_others_are_timed_all_the_same() -> None:
    results = compare([peer("ours", fails(RuntimeError("no kernels"))), peer("eager")]).results
    assert results["ours"].status == FAILED
    assert results["eager"].time_us is not None
    assert results["eager"].time_over_ours is None


def test_who_takes_long_to_open_comes_after_the_rows_of_the_others() -> None:
    recorder = compare([peer("ours"), peer("compile", alone=True), peer("eager")])
    order = [event["result"]["peer"] for event in recorder.events if "result" in event]
    assert order == ["ours", "eager", "compile"]
    assert recorder.started.index("timing") < recorder.started.index("compile")


def test_ours_takes_its_turns_but_has_no_second_row_when_a_run_is_resumed() -> None:
    peers = [peer("ours"), peer("eager"), peer("compile", alone=True)]
    results = compare(peers, missing=peers[2:]).results
    assert set(results) == {"compile"}
    assert results["compile"].time_over_ours is not None


def test_nothing_is_timed_for_a_peer_that_did_not_open() -> None:
    peers = [peer("ours"), peer("compile", fails(RuntimeError("no compiler")), alone=True)]
    recorder = compare(peers, missing=peers[1:])
    assert recorder.started == ["ours", "compile"]
    assert recorder.results["compile"].status == FAILED


def test_a_lost_device_ends_the_process_after_the_row_of_who_lost_it() -> None:
    class Lost(HostClock):
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    recorder = Recorder()
    comparison = Comparison(work_of(), recorder.report, Lost(), 0.01, None)
    peers = [peer("bad", fails(RuntimeError("CUDA error"))), peer("next")]
    with pytest.raises(LostDeviceError, match="illegal memory access"):
        comparison.run(peers, peers)
    assert {name: result.status for name, result in recorder.results.items()} == {"bad": FAILED}


JOB = Job(
    stage="models", checkout=".", build=".", output=".", models=[CASE.model], batches=[4], seconds=0.005, device="cpu"
)


def test_cases_that_cannot_be_made_are_rows() -> None:
    recorder = Recorder()
    run_comparison(JOB, recorder.report, [peer("ours")], fails(torch.OutOfMemoryError("no room")))
    assert recorder.results["timing"].note == "OutOfMemoryError: no room"
    assert recorder.started == ["timing", None]


def test_cases_that_this_installation_cannot_make_say_so_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(CASE, batch=2)
    monkeypatch.setattr(gpu_compare, "cases_of", lambda *_: [CASE, other])
    monkeypatch.setattr(ModelCase, "why_not", property(lambda case: "no library" if case.batch == 4 else None))
    recorder = Recorder()
    run_comparison(JOB, recorder.report, [peer("ours"), peer("compile", alone=True)], work_of)
    results = [Result(**event["result"]) for event in recorder.events if "result" in event]
    said = [(result.case, result.batch, result.peer, result.status, result.note) for result in results]
    assert said[0] == (CASE.name, 4, "", SKIPPED, "no library")
    assert [(batch, name, status) for _, batch, name, status, _ in said[1:]] == [(2, "ours", OK), (2, "compile", OK)]


def test_of_several_tensors_the_last_is_judged_and_the_others_must_be_finite() -> None:
    last = torch.tensor([1.0, 2.0]).half()
    assert torch.equal(judged(last), last)
    found = judged((torch.ones(3), torch.zeros(2, 2), last))
    assert torch.equal(found, last)
    assert found.dtype == torch.float16
    assert judged((torch.ones(3), torch.tensor([0.0, torch.inf]), last)).isnan().all()


def test_important_cases_come_first_by_everyone_then_all_by_those_that_are_quick() -> None:
    quick, slow = peer("quick"), peer("slow", alone=True)
    cases = [ModelCase(model, batch, (32, 32)) for model, batch in (("a", 128), ("a", 128), ("a", 1), ("b", 128))]
    order = [(c.model, c.batch, [p.name for p in peers]) for c, peers in schedule(cases, [quick, slow])]
    assert order == [
        *[("a", 128, ["quick", "slow"])] * 2,
        ("a", 1, ["quick"]),
        ("b", 128, ["quick"]),
        ("a", 1, ["slow"]),
        ("b", 128, ["slow"]),
    ]


def test_some_peers_run_on_request_only() -> None:
    peers = [peer("ours"), peer("planes", on_request=True)]
    for asked, found in ((None, {"ours"}), (["planes"], {"planes"})):
        recorder = Recorder()
        run_comparison(replace(JOB, peers=asked), recorder.report, peers, work_of)
        assert set(recorder.results) == found


@pytest.mark.parametrize("done", [("ours",), ("ours", "eager"), ("timing",)])
def test_what_has_a_row_is_left_out(done: tuple[str, ...]) -> None:
    recorder = Recorder([("models", CASE.model, 4, name) for name in done])
    run_comparison(JOB, recorder.report, [peer("ours"), peer("eager")], work_of)
    assert set(recorder.results) == ({"eager"} if done == ("ours",) else set())


def test_only_the_peers_asked_for() -> None:
    recorder = Recorder()
    run_comparison(
        replace(JOB, peers=["eager"]), recorder.report, [peer("ours"), peer("eager"), peer("compile")], work_of
    )
    assert set(recorder.results) == {"eager"}
    assert recorder.results["eager"].time_over_ours is not None


def test_errors_grow_from_the_reference_not_from_hope() -> None:
    """Twice fp16's own error and a rounding: three times its error is too much."""
    work = work_of()
    judge = Judge(work.sets, work.exact, work.same)
    exact = {id(x): work.exact(x) for (x,) in work.sets}
    for factor, right in ((1.9, True), (4, False)):
        judgement = judge(
            lambda x, f=factor: exact[id(x)] + f * (work.same(x).double() - exact[id(x)]),
            work.sets,
            lambda y: y,
            a_rounding=rounding(torch.float16),
        )
        assert judgement.right is right, judgement


def test_relative_error() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]).double()) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), torch.ones(3)) == torch.inf


def test_memory_of_results_is_poisoned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[tuple[int, int]] = []
    new_full = torch.Tensor.new_full

    def record(self: Tensor, size: tuple[int], value: int, **options: Any) -> Tensor:
        filled.append((size[0], value))
        return new_full(self, size, value, **options)

    monkeypatch.setattr(torch.Tensor, "new_full", record)
    compare([peer("ours")])
    assert (4 * 2, 0xFF) in filled
    assert torch.tensor([0xFF] * 2, dtype=torch.uint8).view(torch.float16).isnan().all()


def test_inputs_rotate_through_twice_the_cache() -> None:
    assert input_sets(bytes_per_call=30, cache_bytes=100) * 30 > 200
    assert input_sets(bytes_per_call=1 << 30, cache_bytes=1 << 20) == 2
    assert input_sets(bytes_per_call=1, cache_bytes=1 << 30) == 64


def test_turns_are_taken_in_rounds() -> None:
    order: list[str] = []
    laps = {name: Lap(lambda name=name: order.append(name), 2, captured=False) for name in "ab"}  # type: ignore[misc]
    timings, _ = take_turns(laps, 0.002, HostClock(), rounds=3)
    changes = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert changes == list("ab" * 4)  # warmed up once each, then three rounds
    assert len(timings["a"].rounds) == len(timings["a"].medians) == 3
    assert latency_seconds(laps["a"], 0, HostClock()) > 0


def test_samples_are_seconds_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("fastervit_trt.benchmarks.gpu.timing.time.perf_counter", lambda: 1.0 * next(ticks))
    assert HostClock().samples(Lap(lambda: None, 4, captured=False), count=2, repeats=5) == [1 / 20, 1 / 20]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_calls_are_captured() -> None:
    work = work_of()
    sets = [tuple(x.cuda() for x in tensors) for tensors in work.sets]
    recorder = Recorder()
    on_gpu = Work(CASE, "cuda", sets, work.exact, work.same, latency=True)
    Comparison(on_gpu, recorder.report, gpu_compare.clock_for("cuda"), 0.05, None).run(*[[peer("ours")]] * 2)
    assert recorder.results["ours"].status == OK, recorder.results
    assert recorder.results["ours"].captured
