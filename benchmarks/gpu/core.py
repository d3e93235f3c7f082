"""Stage ``core``: attention on packed QKV, this project's kernels and every other way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.attention_peers import ATTENTION_PEERS
from fastervit_trt.benchmarks.gpu.cases import AttentionCase, Case
from fastervit_trt.benchmarks.gpu.compare import BASELINE, Peer, Way, Work, run_comparison
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.plugins import reference

__all__ = ["PEERS", "attention_operands", "prepare", "run"]

_SCORES = 1.5  # standard deviation of q kᵀ: weights neither uniform nor of a single key
_INT8_LARGEST = 127


def prepare(case: Case, device: str) -> Work:
    """QKV in several draws, and one bias."""
    assert isinstance(case, AttentionCase)
    bias_1hNN = gpu_ways.random_tensor((1, case.heads, case.rows, case.rows), 1, device)
    sets = [
        (attention_operands(case, seed, device), bias_1hNN)
        for seed in range(gpu_ways.number_of_sets(case.bytes, device))
    ]
    return Work(case, device, sets, _exact, reference.window_attention)


def attention_operands(case: AttentionCase, seed: int, device: str) -> Tensor:
    """Packed QKV (Wn·N, 3·D), q scaled."""
    qkv_X3D = gpu_ways.random_tensor((case.windows * case.rows, 3 * case.channels), seed, device)
    qkv_X3D[:, : case.channels] *= _SCORES / case.head_dim**0.5
    return qkv_X3D


def run(job: Job, report: Report) -> None:
    """Every case of the job by every peer."""
    run_comparison(job, report, PEERS, prepare)


def _exact(qkv_X3D: Tensor, bias_1hNN: Tensor) -> Tensor:
    bias = bias_1hNN.double()
    return gpu_ways.chunked(lambda x: reference.window_attention(x.double(), bias), qkv_X3D, bias.shape[2])


def _ours(tactic: str) -> Callable[[Work], Way]:
    """Heads padded to what the kernels serve, as ``--pad-head-dims`` does in the weights."""

    def opened(work: Work) -> Way:
        case = work.case
        assert isinstance(case, AttentionCase)
        kernels = gpu_ways.kernels()

        def call(qkv_X3D: Tensor, bias_1hNN: Tensor) -> Tensor:
            return kernels.window_attention(qkv_X3D, bias_1hNN, tactic)

        if case.padded_head_dim == case.head_dim:
            return Way(call, work.sets)
        sets = [(_padded(qkv, case), bias) for qkv, bias in work.sets]
        setting = f"heads padded to {case.padded_head_dim}"
        return Way(call, sets, lambda context: _cropped(context, case), setting=setting)

    return opened


def _int8(work: Work) -> Way:
    """The same numbers as integers, one scale for QKV and one for the context."""
    case = work.case
    assert isinstance(case, AttentionCase)
    kernels = gpu_ways.kernels()
    qkv_scale = max(qkv.abs().max().item() for qkv, _ in work.sets) / _INT8_LARGEST
    sets = [((qkv.float() / qkv_scale).round().to(torch.int8), bias) for qkv, bias in work.sets]

    def exact(qkv_X3D: Tensor, bias_1hNN: Tensor) -> Tensor:
        bias = bias_1hNN.double()
        return gpu_ways.chunked(lambda x: reference.window_attention(x.double() * qkv_scale, bias), qkv_X3D, case.rows)

    expected = torch.cat([exact(*sets[i]) for i in (0, -1)])  # the draws that are judged
    context_scale = expected.abs().max().item() / _INT8_LARGEST
    step = context_scale / 12**0.5  # of a rounding, root mean square
    padded = [(_padded(qkv, case), bias) for qkv, bias in sets]
    return Way(
        lambda qkv, bias: kernels.window_attention(qkv, bias, "automatic", qkv_scale, context_scale),
        padded,
        lambda context: _cropped(context, case).double() * context_scale,
        bytes=4 * case.windows * case.rows * case.channels + 2 * case.heads * case.rows**2,
        dtype="int8",
        exact=lambda qkv, bias: exact(_cropped(qkv, case, 3), bias),
        rounding=step / expected.square().mean().sqrt().item(),
    )


def _padded(qkv_X3D: Tensor, case: AttentionCase) -> Tensor:
    extra = case.padded_head_dim - case.head_dim
    return F.pad(qkv_X3D.unflatten(1, (-1, case.head_dim)), (0, extra)).flatten(1) if extra else qkv_X3D


def _cropped(x: Tensor, case: AttentionCase, parts: int = 1) -> Tensor:
    return x.unflatten(1, (parts * case.heads, case.padded_head_dim))[..., : case.head_dim].flatten(1)


PEERS = [
    Peer(BASELINE, "this project's kernel, as chosen by itself", _ours("automatic")),
    Peer("ours resident", "this project's kernel: windows in shared memory", _ours("resident")),
    Peer("ours streamed", "this project's kernel: keys tile by tile", _ours("streamed")),
    Peer("ours int8", "this project's kernel on int8 QKV", _int8),
    *ATTENTION_PEERS,
]
