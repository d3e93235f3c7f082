from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastervit_trt.export.rounding import RoundedArithmetic

DTYPES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_results_are_float32_arithmetic_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    with RoundedArithmetic(dtype):
        product, activated, normalised = x @ w, F.gelu(x), F.layer_norm(x, (64,))
    assert torch.equal(product, (x.float() @ w.float()).to(dtype))
    assert torch.equal(activated, F.gelu(x.float()).to(dtype))
    assert torch.equal(normalised, F.layer_norm(x.float(), (64,)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_every_step_rounds(dtype: torch.dtype) -> None:
    one = torch.ones(1, dtype=dtype)
    tiny = torch.full((1,), torch.finfo(dtype).eps / 4, dtype=dtype)
    with RoundedArithmetic(dtype):
        total = one
        for _ in range(64):
            total = total + tiny  # lost each time; in float32 they would add up
    assert torch.equal(total, one)


@torch.inference_mode()
def test_moves_conversions_and_other_types_are_left_alone() -> None:
    x = torch.randn(4, 6).half()
    with RoundedArithmetic(torch.float16):
        parts = x.reshape(4, 2, 3).transpose(1, 2).split(1, dim=2)
        wide, index, full = x.float(), torch.arange(3) + 1, torch.ones(2) * 1.0001
    assert torch.equal(torch.cat(parts, dim=2), x.reshape(4, 2, 3).transpose(1, 2))
    assert {part.dtype for part in parts} == {torch.float16}
    assert (wide.dtype, index.dtype, full.dtype) == (torch.float32, torch.int64, torch.float32)
    assert full[0] == torch.tensor(1.0001)


@torch.inference_mode()
def test_overflow_of_the_type_is_seen() -> None:
    with RoundedArithmetic(torch.float16):
        assert torch.isinf(torch.full((1,), 60000.0, dtype=torch.float16) * 2)


def test_copies_in_place_are_rounded_where_they_are_written() -> None:
    """By which streams are rounded: a copy that is lost would make the simulation's own error, and the budget, huge."""
    x = torch.zeros(3, dtype=torch.float16)
    with RoundedArithmetic(torch.float16):
        x.copy_(torch.tensor([1.0, 1 + 2.0**-11, 3.0]))
    assert x.tolist() == [1.0, 1.0, 3.0]
