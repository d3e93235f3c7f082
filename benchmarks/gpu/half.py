"""Stage ``half``: the attention half of a block, LayerNorm to residual, on windows and on the carriers of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.attention_peers import sdpa_window_attention
from fastervit_trt.benchmarks.gpu.cases import AttentionCase, Case
from fastervit_trt.benchmarks.gpu.compare import BASELINE, Peer, RefusedError, Way, Work, run_comparison
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.ways import COMPILED
from fastervit_trt.plugins import operators, reference  # noqa: F401  registers torch.ops.fastervit

__all__ = ["PEERS", "prepare", "run"]

_EPS = 1e-5
_SCORES = 1.5  # standard deviation of q kᵀ

Half = Callable[..., Tensor]
_WINDOW_HALF: Half = reference.fused_window_attention
_CARRIER_HALF: Half = reference.carrier_attention


def prepare(case: Case, device: str) -> Work:
    """Tokens (Wn, N, C) in several draws and one set of weights, in the order of the reference's arguments."""
    assert isinstance(case, AttentionCase)
    on_carriers = case.part == "carriers"
    channels, rows = case.channels, case.tokens_per_window if on_carriers else case.rows
    windows = case.windows * case.rows // case.carriers_per_window if on_carriers else case.windows
    weights = _weights(case, device)
    sets = [
        (gpu_ways.random_tensor((windows, rows, channels), 100 + seed, device), *weights)
        for seed in range(gpu_ways.number_of_sets(case.bytes, device))
    ]
    half = _on_carriers(case) if on_carriers else _on_windows
    return Work(case, device, sets, lambda *tensors: _exact(case, half, *tensors), half, context=half)


def run(job: Job, report: Report) -> None:
    """Every case of the job by every peer."""
    run_comparison(job, report, PEERS, prepare)


def _weights(case: AttentionCase, device: str) -> tuple[Tensor, ...]:
    """As of the reference: table of the carriers first, then LayerNorm, QKV, bias and projection. q is scaled."""
    channels = case.channels

    def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
        return gpu_ways.random_tensor(shape, seed, device, scale)

    qkv_weight_3DC = draw(1, 3 * channels, channels, scale=channels**-0.5)
    qkv_weight_3DC[:channels] *= _SCORES / case.head_dim**0.5
    return (
        draw(2, 1, case.rows, channels),
        1 + draw(3, channels, scale=0.1),
        draw(4, channels, scale=0.1),
        qkv_weight_3DC,
        draw(5, 3 * channels, scale=0.1),
        draw(6, 1, case.heads, case.rows, case.rows),
        draw(7, channels, channels, scale=channels**-0.5),
        draw(8, channels, scale=0.1),
    )


def _on_windows(tok_WnNC: Tensor, table_1GC: Tensor, *weights: Tensor) -> Tensor:
    return _WINDOW_HALF(tok_WnNC.flatten(0, 1), *weights, _EPS)


def _on_carriers(case: AttentionCase) -> Half:
    def half(tok_WnNC: Tensor, *weights: Tensor) -> Tensor:
        return _CARRIER_HALF(tok_WnNC, *weights, case.carriers_per_window, _EPS)

    return half


def _exact(case: AttentionCase, half: Half, tok_WnNC: Tensor, *weights: Tensor) -> Tensor:
    wide = [weight.double() for weight in weights]
    together = case.rows // case.carriers_per_window if case.part == "carriers" else 1  # windows of one image
    return gpu_ways.chunked(lambda tok: half(tok.double(), *wide), tok_WnNC, together)


def _rows(case: AttentionCase, tok_WnNC: Tensor, table_1GC: Tensor) -> Tensor:
    """What attention works on: (Wn·N, C), of carriers (B·G, C) with their table added."""
    if case.part == "window":
        return tok_WnNC.flatten(0, 1)
    ct_BGC = tok_WnNC[:, : case.carriers_per_window].reshape(-1, *table_1GC.shape[1:]) + table_1GC
    return ct_BGC.flatten(0, 1)


def _with_core(case: AttentionCase, core: Half) -> Half:
    """PyTorch's layers around an attention core."""

    def half(
        tok_WnNC: Tensor,
        table: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
    ) -> Tensor:
        x_XC = _rows(case, tok_WnNC, table)
        normed = F.layer_norm(x_XC, (x_XC.shape[1],), norm_weight, norm_bias, _EPS)
        context = core(F.linear(normed, qkv_weight, qkv_bias), bias)
        return x_XC + F.linear(context, proj_weight, proj_bias)

    return half


def _case(work: Work) -> AttentionCase:
    assert isinstance(work.case, AttentionCase)
    return work.case


def _kernel(tactic: str) -> Callable[[Work], Way]:
    """The whole half in this project's kernels."""

    def opened(work: Work) -> Way:
        case = _case(work)
        kernel: Half = gpu_ways.kernels().carrier_attention
        _refuse_odd_heads(case)

        def call(tok_WnNC: Tensor, table_1GC: Tensor, *weights: Tensor) -> Tensor:
            if case.part == "carriers":
                return kernel(tok_WnNC, table_1GC, *weights, case.carriers_per_window, _EPS, tactic)
            return kernel(tok_WnNC, None, *weights, case.rows, _EPS, tactic)

        return Way(call, work.sets)

    return opened


def _core_in_layers(work: Work) -> Way:
    _refuse_odd_heads(_case(work))
    return Way(_with_core(_case(work), gpu_ways.kernels().window_attention), work.sets)


def _core_in_compiled_layers(work: Work) -> Way:
    _refuse_odd_heads(_case(work))
    gpu_ways.kernels()  # fails here, not in a fallback
    return Way(gpu_ways.compiled(_with_core(_case(work), torch.ops.fastervit.window_attention)), work.sets)


def _sdpa(work: Work) -> Way:
    return Way(gpu_ways.compiled(_with_core(_case(work), sdpa_window_attention)), work.sets)


def _refuse_odd_heads(case: AttentionCase) -> None:
    if case.padded_head_dim != case.head_dim:
        raise RefusedError(f"head dim {case.head_dim}; the deploy form pads it to {case.padded_head_dim}")


PEERS = [
    Peer(BASELINE, "this project's kernels, as chosen by themselves", _kernel("automatic")),
    Peer("ours fused", "one kernel", _kernel("fused")),
    Peer("ours staged", "three kernels: LayerNorm and QKV, attention, projection", _kernel("staged")),
    Peer("ours in layers", "the attention core between PyTorch's layers", _core_in_layers),
    Peer("eager", "the definition in PyTorch", lambda work: Way(work.context, work.sets)),
    Peer("ours in compiled layers", f"the attention core; {COMPILED}", _core_in_compiled_layers, alone=True),
    Peer("compile", COMPILED, lambda work: Way(gpu_ways.compiled(work.context), work.sets), alone=True),
    Peer("compile sdpa", f"SDPA with bias; {COMPILED}", _sdpa, alone=True),
]
