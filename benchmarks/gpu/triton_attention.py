"""Window attention of the Flash Window Attention kind (arXiv 2501.06480) in Triton, a peer of this project's kernels.

    context = softmax(q kᵀ + bias) v          in every window and head

The paper's idea, written here anew: a window is short, so one program holds all of its scores on chip and takes one
pass of softmax, without the running maximum and the rescaling of FlashAttention; what is walked over is the head dim,
in chunks: scores add up chunk by chunk of q and k, the context comes out chunk by chunk of v. Packed QKV is read where
it lies, context is written as the projection reads it. Letters as in ``plugins.reference``.
"""
# A kernel is in Triton's language, and Triton is not everywhere.
# mypy: ignore-errors

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["MAX_TOKENS", "Launch", "launches", "triton_window_attention"]

MAX_TOKENS = 128  # scores of more rows leave the registers
_LEAST = 16  # rows and columns of a product


@dataclass(frozen=True)
class Launch:
    """How a program is made: chunk of the head dim, warps, and stages of loads."""

    chunk: int
    warps: int
    stages: int = 1

    def __str__(self) -> str:
        return f"chunk {self.chunk}, {self.warps} warps, {self.stages} stages"


def launches(tokens: int, head_dim: int) -> list[Launch]:
    """What is worth trying: chunks that are not mostly padding, and warps from few rows each to many."""
    chunks = [chunk for chunk in (16, 32, 64) if chunk == _LEAST or chunk < 2 * head_dim]
    warps = (1, 2, 4) if tokens <= 32 else (2, 4, 8)
    return [Launch(chunk, count) for chunk in chunks for count in warps]


def triton_window_attention(qkv_X3D: torch.Tensor, bias_1hNN: torch.Tensor, launch: Launch) -> torch.Tensor:
    """(Wn·N, 3·D) → (Wn·N, D); both tensors contiguous and of one dtype."""
    heads, tokens = bias_1hNN.shape[1:3]
    rows, packed = qkv_X3D.shape
    context_XD = qkv_X3D.new_empty(rows, packed // 3)
    _kernel[(rows // tokens * heads,)](
        context_XD,
        qkv_X3D,
        bias_1hNN,
        tokens,
        HEADS=heads,
        HEAD_DIM=packed // 3 // heads,
        ROWS=max(triton.next_power_of_2(tokens), _LEAST),
        CHUNK=launch.chunk,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return context_XD


@triton.jit
def _kernel(
    context,
    qkv,
    bias,
    tokens,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # Heads of a window are neighbours, as their q, k and v are in memory.
    window = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    D: tl.constexpr = HEADS * HEAD_DIM
    row, column = tl.arange(0, ROWS), tl.arange(0, CHUNK)
    there = row < tokens
    q = qkv + (window * tokens + row)[:, None] * (3 * D) + head * HEAD_DIM + column[None, :]

    scores = tl.zeros([ROWS, ROWS], tl.float32)
    for start in tl.static_range(0, HEAD_DIM, CHUNK):
        inside = there[:, None] & (start + column < HEAD_DIM)[None, :]
        q_NC = tl.load(q + start, mask=inside, other=0.0)
        k_NC = tl.load(q + start + D, mask=inside, other=0.0)
        scores = tl.dot(q_NC, tl.trans(k_NC), scores)

    pair = there[:, None] & there[None, :]
    offset = head * tokens * tokens + row[:, None] * tokens + row[None, :]
    scores += tl.load(bias + offset, mask=pair, other=0.0).to(tl.float32)
    scores = tl.where(there[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = (weights / tl.sum(weights, 1)[:, None]).to(qkv.dtype.element_ty)

    out = context + (window * tokens + row)[:, None] * D + head * HEAD_DIM + column[None, :]
    for start in tl.static_range(0, HEAD_DIM, CHUNK):
        inside = there[:, None] & (start + column < HEAD_DIM)[None, :]
        v_NC = tl.load(q + start + 2 * D, mask=inside, other=0.0)
        tl.store(out + start, tl.dot(weights, v_NC).to(qkv.dtype.element_ty), mask=inside)
