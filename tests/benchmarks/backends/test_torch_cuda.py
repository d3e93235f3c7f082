"""The model in PyTorch on a real GPU: the same logits in whatever way it is timed. ``pytest -m gpu``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from fastervit_trt.benchmarks.backends import BACKENDS
from fastervit_trt.benchmarks.backends.runner import Request
from fastervit_trt.benchmarks.backends.torch_cuda import CudaRunner
from fastervit_trt.errors import FasterViTError
from tests.benchmarks.backends.conftest import Digits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("backend", ["torch", "torch-compile", "torch-fused"])
@pytest.mark.parametrize("options", [{}, {"transfers": True}, {"cold_cache": True}, {"streams": 2}])
def test_every_way_is_captured_and_timed(
    ask: Callable[..., Request], digits: Digits, backend: str, options: dict[str, Any]
) -> None:
    request = ask("fp16", **options)
    if (reason := BACKENDS[backend].why_not(request)) is not None:
        pytest.skip(reason)
    with closing(BACKENDS[backend].open(request)) as runner:
        assert isinstance(runner, CudaRunner)
        assert digits.error(runner.outputs(digits.images)[0]) <= digits.allowed["fp16"]
        runner.prepare(digits.images[:4])
        assert "no CUDA graph" not in runner.note
        for lap in (runner.latency, runner.throughput):
            samples = lap(5)
            assert len(samples) == 5
            assert min(samples) > 0
        torch.cuda.synchronize()
        for lane in runner._lanes:  # streams that ran at once have not disturbed each other
            assert lane.captured
            (logits,) = lane._outputs(None)
            assert np.abs(logits.cpu().numpy() - digits.reference[:4]).max() <= digits.allowed["fp16"]
            if lane._results is not None:
                assert torch.equal(lane._results[0], logits.cpu())


def test_a_cache_is_emptied_for_one_stream_only(ask: Callable[..., Request]) -> None:
    with pytest.raises(FasterViTError, match="--streams 1 with --cold-cache"):
        BACKENDS["torch"].open(ask("fp16", streams=2, cold_cache=True))
