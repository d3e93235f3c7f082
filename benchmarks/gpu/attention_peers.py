"""Every other way to compute window attention on packed QKV: (Wn·N, 3·D) and a bias (1, h, N, N) in, (Wn·N, D) out.

All read q, k and v where they lie in QKV, but for ``sdpa copies``; the bias of SDPA is laid out as its kernels like it
(rows at multiples of 16 bytes), which spares them a copy of it per call.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.compare import Peer, RefusedError, Way, Work
from fastervit_trt.benchmarks.gpu.timing import clock_for
from fastervit_trt.benchmarks.gpu.ways import COMPILED
from fastervit_trt.plugins import reference

__all__ = ["ATTENTION_PEERS", "sdpa_window_attention"]

_ALIGNED = 8  # elements of 16 bytes
_REFUSALS = ("No available kernel", "No viable backend")
_BACKENDS = {
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


def sdpa_window_attention(qkv_X3D: Tensor, bias_1hNN: Tensor, *, copies: bool = False) -> Tensor:
    """By whichever of PyTorch's backends are enabled."""
    q, k, v = _split(qkv_X3D, bias_1hNN)
    if copies:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_1hNN, scale=1.0)
    return _joined(context)


def _split(qkv_X3D: Tensor, bias_1hNN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views (Wn, h, N, d) of q, k and v."""
    heads, tokens = bias_1hNN.shape[1:3]
    q, k, v = qkv_X3D.unflatten(1, (3, heads, -1)).unflatten(0, (-1, tokens)).permute(2, 0, 3, 1, 4).unbind()
    return q, k, v


def _joined(context_WhNd: Tensor) -> Tensor:
    return context_WhNd.transpose(1, 2).flatten(2).flatten(0, 1)


def _sdpa(backend: SDPBackend | None, *, copies: bool) -> Callable[[Work], Way]:
    def opened(work: Work) -> Way:
        bias_1hNN = _aligned_rows(work.sets[0][1])

        def call(qkv_X3D: Tensor, _: Tensor) -> Tensor:
            if backend is None:
                return sdpa_window_attention(qkv_X3D, bias_1hNN, copies=copies)
            with sdpa_kernel(backend):
                return sdpa_window_attention(qkv_X3D, bias_1hNN, copies=copies)

        with warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            try:
                call(*work.sets[0])
            except RuntimeError as error:
                if not any(words in str(error) for words in _REFUSALS):
                    raise
                why = dict.fromkeys(str(reason.message).split(" (Triggered")[0] for reason in reasons)
                raise RefusedError("; ".join(why) or str(error)) from error
        return Way(call, work.sets)

    return opened


def _aligned_rows(bias_1hNN: Tensor) -> Tensor:
    """The same numbers, each row at a multiple of 16 bytes."""
    tokens = bias_1hNN.shape[3]
    return F.pad(bias_1hNN, (0, -tokens % _ALIGNED))[..., :tokens]


def _flex(*, decoding: bool) -> Callable[[Work], Way]:
    """Short queries go to its kernel for decoding unless told otherwise."""
    options = None if decoding else {"FORCE_USE_FLEX_ATTENTION": True}

    def attention(qkv_X3D: Tensor, bias_1hNN: Tensor) -> Tensor:
        q, k, v = _split(qkv_X3D, bias_1hNN)

        def add_bias(score: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + bias_1hNN[0, head, query, key]

        context = flex_attention(q, k, v, score_mod=add_bias, scale=1.0, kernel_options=options)  # type: ignore[arg-type]
        assert isinstance(context, Tensor)
        return _joined(context)

    return lambda work: Way(gpu_ways.compiled(attention), work.sets)


def _triton(work: Work) -> Way:
    """The fastest launch of those worth trying."""
    if importlib.util.find_spec("triton") is None:
        raise RefusedError("Triton is not installed")
    from fastervit_trt.benchmarks.gpu.triton_attention import MAX_TOKENS, launches, triton_window_attention

    qkv_X3D, bias_1hNN = work.sets[0]
    heads, tokens = bias_1hNN.shape[1:3]
    if tokens > MAX_TOKENS:
        raise RefusedError(f"windows of {tokens} tokens; up to {MAX_TOKENS} stay on chip")
    clock = clock_for(work.device)
    calls = {
        launch: partial(triton_window_attention, launch=launch)
        for launch in launches(tokens, qkv_X3D.shape[1] // 3 // heads)
    }
    laps = {launch: clock.lap(call, work.sets, capture=True) for launch, call in calls.items()}
    best = min(laps, key=lambda launch: min(clock.samples(laps[launch], 5, 2)))
    return Way(calls[best], work.sets, setting=str(best))


ATTENTION_PEERS = [
    *(
        Peer(name, "scaled_dot_product_attention with bias", _sdpa(backend, copies=False))
        for name, backend in _BACKENDS.items()
    ),
    Peer("sdpa copies", "q, k, v copied, the backend PyTorch chooses", _sdpa(None, copies=True)),
    Peer("triton", "Flash Window Attention (arXiv 2501.06480)", _triton),
    Peer("eager", "the definition in PyTorch", gpu_ways.as_is(reference.window_attention)),
    Peer("compile", COMPILED, gpu_ways.as_compiled(reference.window_attention), alone=True),
    Peer("flex", f"FlexAttention with bias; {COMPILED}", _flex(decoding=True), alone=True),
    Peer("flex prefill", f"FlexAttention, not its decoding kernel; {COMPILED}", _flex(decoding=False), alone=True),
]
