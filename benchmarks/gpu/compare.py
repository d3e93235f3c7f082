"""Several ways to compute one thing in, a row for each out: judged first, then timed in turns if it computes it."""

from __future__ import annotations

import gc
import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu.cases import Case, Ceilings
from fastervit_trt.benchmarks.gpu.job import Job, LostDeviceError, Report, first_line
from fastervit_trt.benchmarks.gpu.judge import Judge, Judgement
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED, WRONG, Result
from fastervit_trt.benchmarks.gpu.state import GpuState
from fastervit_trt.benchmarks.gpu.timing import Clock, Lap, Timings, clock_for, latency_seconds, take_turns
from fastervit_trt.benchmarks.gpu.worklist import cases_of
from fastervit_trt.plugins.kernels import UnsupportedError

__all__ = ["BASELINE", "Comparison", "Peer", "RefusedError", "Way", "Work", "judged", "run_comparison", "schedule"]

BASELINE = "ours"  # what ratios are to
_TIMING = "timing"  # in events: all peers of a case
_PERCENTILES = (50, 20, 80)
_NOT_COMPUTED = "its result is off by {:.2g} of the exact one, {:.2g} is allowed"


class RefusedError(Exception):
    """A peer does not serve the case: no failure of it, nor of ours."""


def judged(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a result is judged by: of several tensors the last, and NaN where another is not finite."""
    if isinstance(result, Tensor):
        return result
    *others, last = result
    sound = torch.stack([other.isfinite().all() for other in others]).all()
    return torch.where(sound, last, torch.nan)


@dataclass(frozen=True)
class Work:
    """One case with its inputs."""

    case: Case
    device: str
    sets: Sequence[tuple[Tensor, ...]]  # inputs that calls take in turn
    exact: Callable[..., Tensor]  # the result for one of the sets, as exactly as can be had
    same: Callable[..., Tensor]  # the reference's, in the dtype of the inputs
    images: int | None = None  # of a call, where throughput is asked for
    latency: bool = False
    context: Any = None  # whatever else the peers of a stage need


@dataclass(frozen=True)
class Way:
    """A peer ready for one case."""

    call: Callable[..., Tensor | tuple[Tensor, ...]]
    sets: Sequence[tuple[Any, ...]]  # the work's, laid out as this peer wants them
    view: Callable[[Any], Tensor] = judged  # of what comes out; back to the reference's layout
    captured: bool = True
    bytes: int | None = None  # that it must move, where these are not the case's
    dtype: str = "fp16"
    exact: Callable[..., Tensor] | None = None  # where it solves the task on inputs rounded further,
    rounding: float | None = None  # and rounds its result otherwise than its dtype says
    setting: str = ""  # what was chosen for the case


@dataclass(frozen=True)
class Peer:
    """One way to do what a stage measures."""

    name: str
    setting: str
    open: Callable[[Work], Way]
    alone: bool = False  # takes long to open: timed with the baseline only, so that its row comes at once
    on_request: bool = False  # takes long, and tells little that others do not


@dataclass(frozen=True)
class _Contestant:
    peer: Peer
    way: Way
    judgement: Judgement
    lap: Lap


@torch.no_grad()
def run_comparison(job: Job, report: Report, peers: Sequence[Peer], prepare: Callable[[Case, str], Work]) -> None:
    """Every case of the job's stage by every peer that is wanted and has no row yet.

    Args:
        prepare: makes the work of a case on a device.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # of float32 references
    # Operators without a kernel fall back on PyTorch code, which is not what is measured here.
    warnings.filterwarnings("error", message=".*as PyTorch code on CUDA.*")
    clock = clock_for(job.device)
    wanted = [peer for peer in peers if (not peer.on_request if job.peers is None else peer.name in job.peers)]
    cases = cases_of(job.stage, job.models, job.batches)
    for case in cases:
        if reason := case.why_not:
            report.add(case.name, "", SKIPPED, reason, model=case.model, batch=case.batch, shape=case.shape)
    for case, turn in schedule([case for case in cases if case.why_not is None], wanted):
        missing = [peer for peer in turn if not report.is_done(case.name, peer.name, case.batch)]
        if not missing or report.is_done(case.name, _TIMING, case.batch):
            continue
        report.start(case.name, _TIMING, case.batch)
        try:
            Comparison(prepare(case, job.device), report, clock, job.seconds, job.ceilings).run(peers, missing)
        except LostDeviceError:
            raise
        except Exception as error:
            traceback.print_exc()
            report.failed(case.name, _TIMING, error, model=case.model, batch=case.batch, shape=case.shape)
            _check_alive(clock)
        report.idle()
        release(job.device)


def schedule(cases: Sequence[Case], peers: Sequence[Peer]) -> Iterator[tuple[Case, Sequence[Peer]]]:
    """The most important cases by all peers; then the others, first by those that are quick to open."""
    first = [case for case in cases if (case.model, case.batch) == (cases[0].model, cases[0].batch)]
    quick = [peer for peer in peers if not peer.alone]
    slow = [peer for peer in peers if peer.alone]
    yield from ((case, peers) for case in first)
    yield from ((case, some) for some in (quick, slow) for case in cases if case not in first)


class Comparison:
    """All peers on one case."""

    def __init__(self, work: Work, report: Report, clock: Clock, seconds: float, ceilings: Ceilings | None) -> None:
        self.work, self.report, self.clock, self.seconds, self.ceilings = work, report, clock, seconds, ceilings
        self._judge = Judge(work.sets, work.exact, work.same)

    def run(self, peers: Sequence[Peer], missing: Sequence[Peer]) -> None:
        """Rows of the ``missing`` of ``peers``, each timed in turns with the baseline."""
        baseline = [peer for peer in peers if peer.name == BASELINE]
        unreported = set(missing)
        together = [peer for peer in missing if not peer.alone and peer not in baseline]
        groups = [together] if together or unreported & set(baseline) else []
        groups += [[peer] for peer in missing if peer.alone]
        for group in groups:
            found = [self._open(peer, peer in unreported) for peer in [*baseline, *group]]
            contestants = [contestant for contestant in found if contestant is not None]
            if any(contestant.peer in unreported for contestant in contestants):
                self._time(contestants, unreported)
            unreported -= {*baseline, *group}
            del found, contestants
            release(self.work.device)

    def _open(self, peer: Peer, unreported: bool) -> _Contestant | None:
        """Ready to be timed; None, and a row, if it does not run or computes something else."""
        case = self.work.case
        self.report.start(case.name, peer.name, case.batch)
        try:
            way = peer.open(self.work)
            judgement = self._judge(way.call, way.sets, way.view, way.exact, way.rounding)
            if judgement.right:
                return _Contestant(peer, way, judgement, self.clock.lap(way.call, way.sets, capture=way.captured))
            result = self._result(peer, WRONG, _NOT_COMPUTED.format(judgement.error, judgement.allowed), judgement)
        except (RefusedError, UnsupportedError) as refusal:
            result = self._result(peer, SKIPPED, str(refusal))
        except Exception as error:  # whatever a compiler, a library or the GPU raises
            traceback.print_exc()
            result = self._result(peer, FAILED, first_line(error))
        if unreported:
            self.report.result(result)
        _check_alive(self.clock)
        _free_memory(self.work.device)
        return None

    def _time(self, contestants: Sequence[_Contestant], unreported: set[Peer]) -> None:
        self.report.start(self.work.case.name, _TIMING, self.work.case.batch)
        timings, state = take_turns({c.peer.name: c.lap for c in contestants}, self.seconds, self.clock)
        ours = timings.get(BASELINE)
        for contestant in contestants:
            if contestant.peer in unreported:
                self.report.result(self._timed(contestant, timings[contestant.peer.name], ours, state))

    def _timed(self, contestant: _Contestant, timings: Timings, ours: Timings | None, state: GpuState) -> Result:
        work, way, lap = self.work, contestant.way, contestant.lap
        time_us = [float(x) * 1e6 for x in np.percentile(timings.samples, _PERCENTILES)]
        ratio = [None] * 3 if ours is None else _percentiles(np.divide(timings.medians, ours.medians))
        size = work.case.bytes if way.bytes is None else way.bytes
        ceilings = self.ceilings
        floor = ceilings.floor_us(size, work.case.flop) if ceilings else None
        return self._result(
            contestant.peer,
            OK,
            "",
            contestant.judgement,
            setting="; ".join(text for text in (contestant.peer.setting, way.setting) if text),
            dtype=way.dtype,
            time_us=time_us[0],
            time_p20_us=time_us[1],
            time_p80_us=time_us[2],
            time_over_ours=ratio[0],
            time_over_ours_p20=ratio[1],
            time_over_ours_p80=ratio[2],
            latency_us=latency_seconds(lap, self.seconds / 2, self.clock) * 1e6 if work.latency else None,
            throughput_img_per_s=work.images / time_us[0] * 1e6 if work.images else None,
            bytes=size,
            flop=work.case.flop,
            floor_us=floor,
            share_of_floor=floor / time_us[0] if floor else None,
            share_of_copy=size / time_us[0] / 1e3 / ceilings.copy_gb_per_s if ceilings else None,
            captured=lap.captured,
            input_sets=lap.calls,
            footprint_mb=lap.calls * size / 1e6,
            rounds=len(timings.rounds),
            samples=len(timings.samples),
            sm_clock_mhz=state.sm_clock_mhz,
            memory_clock_mhz=state.memory_clock_mhz,
            power_w=state.power_w,
            temperature_c=state.temperature_c,
            throttle=state.throttle,
        )

    def _result(self, peer: Peer, status: str, note: str, judgement: Judgement | None = None, **values: Any) -> Result:
        case = self.work.case
        return Result(
            stage=self.report.stage,
            case=case.name,
            peer=peer.name,
            status=status,
            note=note,
            model=case.model,
            batch=case.batch,
            shape=case.shape,
            error=judgement.error if judgement and math.isfinite(judgement.error) else None,
            allowed_error=judgement.allowed if judgement else None,
            **{"setting": peer.setting, **values},
        )


def release(device: str) -> None:
    """Give back what the last peers held: graphs, compiled code, memory."""
    torch.compiler.reset()
    _free_memory(device)


def _free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _percentiles(values: Any) -> list[float | None]:
    return [float(x) for x in np.percentile(values, _PERCENTILES)]


def _check_alive(clock: Clock) -> None:
    """After an error.

    Raises:
        LostDeviceError: every later call would fail, too.
    """
    try:
        clock.synchronize()
    except Exception as error:
        raise LostDeviceError(first_line(error)) from error
