"""WindowAttention's kernels against the reference: every tile size, dtype and tactic, sizes that bite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastervit_trt.plugins import reference
from fastervit_trt.plugins.kernels import UnsupportedError
from tests.plugins.conftest import KernelLibrary
from tests.plugins.judgement import assert_as_good_as, poisoned

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
HALVES = [torch.float16, torch.bfloat16]

# (tokens, heads, head dim, windows). The emulated GPU has two multiprocessors: a handful of windows already makes the
# blocks walk over several.
RESIDENT = [
    (53, 2, 32, 9),  # FasterViT-0 stage 3
    (49, 2, 32, 3),
    (16, 2, 32, 23),  # its carriers
    (53, 1, 40, 2),
    (49, 1, 56, 2),  # FasterViT-4, padded
    (53, 3, 64, 2),
    (49, 1, 80, 3),
    (1, 1, 8, 5),  # one of everything, less than a tile
    (17, 3, 24, 7),
    (33, 2, 72, 3),
    (64, 1, 16, 1),
    (65, 1, 48, 4),
    (80, 1, 80, 2),
    (25, 2, 80, 4),
    (36, 1, 64, 3),
]
STREAMED = [(144, 2, 56, 2), (53, 1, 32, 3), (64, 1, 40, 1), (65, 2, 80, 1), (196, 1, 48, 1), (1, 1, 8, 2)]
LARGE = [  # of the published models; seconds on a GPU, minutes in emulation
    ("resident", (53, 8, 32, 512)),
    ("resident", (49, 32, 56, 64)),
    ("resident", (53, 16, 80, 32)),
    ("streamed", (216, 8, 32, 8)),  # carriers of 576 x 960
    ("streamed", (576, 16, 56, 2)),
    ("streamed", (2304, 16, 56, 1)),
]
PLAIN = [(53, 2, 32, 3), (49, 2, 49, 2), (16, 1, 33, 5), (1, 1, 1, 1), (144, 1, 20, 1)]


def operands(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    tokens, heads, head_dim, windows = sizes
    generator = torch.Generator().manual_seed(hash(sizes) % 2**31)
    qkv = torch.randn(windows * tokens, 3 * heads * head_dim, generator=generator)
    qkv[:, : heads * head_dim] *= 1.5 / head_dim**0.5  # scores of a few units: neither uniform weights nor a single one
    bias = torch.randn(1, heads, tokens, tokens, generator=generator)
    return qkv.to(dtype), bias.to(dtype)


def run(
    library: KernelLibrary, qkv: Tensor, bias: Tensor, tactic: str, qkv_scale: float = 1.0, context_scale: float = 1.0
) -> Tensor:
    """Over a poisoned result, in guarded memory."""
    out = library.guarded(poisoned((qkv.shape[0], qkv.shape[1] // 3), qkv.dtype))
    qkv, bias = library.guarded(qkv), library.guarded(bias)
    return library.kernels.window_attention(qkv, bias, tactic, qkv_scale, context_scale, out=out).cpu()


def check(library: KernelLibrary, tactic: str, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    judge(library, tactic, *operands(sizes, dtype))


def judge(library: KernelLibrary, tactic: str, qkv: Tensor, bias: Tensor) -> None:
    exact = reference.window_attention(qkv.double(), bias.double())
    assert_as_good_as(run(library, qkv, bias, tactic), reference.window_attention(qkv, bias), exact)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("sizes", RESIDENT, ids=str)
def test_resident(kernel_library: KernelLibrary, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(kernel_library, "resident", sizes, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("sizes", STREAMED, ids=str)
def test_streamed(kernel_library: KernelLibrary, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(kernel_library, "streamed", sizes, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sizes", PLAIN, ids=str)
def test_plain(kernel_library: KernelLibrary, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(kernel_library, "plain", sizes, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("tactic", "sizes"), LARGE, ids=str)
def test_large(
    kernel_library: KernelLibrary, tactic: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    if kernel_library.device.type == "cpu":
        pytest.skip("for a GPU: emulation takes minutes")
    check(kernel_library, tactic, sizes, dtype)


@pytest.mark.parametrize("tactic", ["resident", "plain"])
@pytest.mark.parametrize("sizes", [s for s in RESIDENT if s[0] in (1, 16, 17, 33, 53, 49, 80)], ids=str)
def test_int8(kernel_library: KernelLibrary, sizes: tuple[int, int, int, int], tactic: str) -> None:
    """Judged before the last rounding, which may fall either way: half a step, plus twice fp16's error."""
    qkv, bias = operands(sizes, torch.float32)
    qkv_scale = qkv.abs().max().item() / 127
    quantised = (qkv / qkv_scale).round().to(torch.int8)
    bias = bias.half()
    real = quantised.double() * qkv_scale
    exact = reference.window_attention(real, bias.double())
    context_scale = exact.abs().max().item() / 120
    result = run(kernel_library, quantised, bias, tactic, qkv_scale, context_scale)
    fp16 = reference.window_attention(real.half(), bias).double()
    error = (result.double() - exact / context_scale).abs().max()
    assert error <= 0.5 + 2 * (fp16 - exact).abs().max() / context_scale


def test_int8_saturates(kernel_library: KernelLibrary) -> None:
    qkv, bias = operands((53, 2, 32, 2), torch.float32)
    quantised = (qkv * 40).round().clamp(-127, 127).to(torch.int8)
    result = run(kernel_library, quantised, bias.half(), "resident", qkv_scale=1 / 40, context_scale=1e-3)
    exact = reference.window_attention(quantised.double() / 40, bias.half().double()) / 1e-3
    assert (exact.abs() > 200).sum() > 100
    assert (result[exact > 200] == 127).all()
    assert (result[exact < -200] == -128).all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.int8], ids=str)
@pytest.mark.parametrize(("tactic", "sizes"), [("resident", (53, 2, 40, 9)), ("streamed", (100, 1, 40, 3))], ids=str)
def test_windows_do_not_touch_each_other(
    kernel_library: KernelLibrary, tactic: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Infinities in one window (or the largest integers) stay there, although blocks reuse their memory."""
    if (tactic, dtype) == ("streamed", torch.int8):
        pytest.skip("no such kernel")
    tokens, _, _, windows = sizes
    qkv, bias = operands(sizes, torch.float32)
    integer = dtype == torch.int8
    qkv = (qkv * 20).round().clamp(-127, 127).to(dtype) if integer else qkv.to(dtype)
    bias = bias.to(torch.float16 if integer else dtype)
    clean = run(kernel_library, qkv, bias, tactic, 0.05, 0.05)
    dirty = qkv.clone()
    dirty[:tokens] = -128 if integer else torch.inf
    result = run(kernel_library, dirty, bias, tactic, 0.05, 0.05)
    assert torch.equal(result[tokens:], clean[tokens:])
    assert windows > 1
    assert not torch.equal(result[:tokens], clean[:tokens])


@pytest.mark.parametrize("tactic", ["resident", "streamed", "plain"])
def test_masked_keys(kernel_library: KernelLibrary, tactic: str) -> None:
    """A bias of -inf leaves keys out, also all 64 of a first tile."""
    sizes = (53, 1, 32, 2) if tactic == "resident" else (130, 1, 32, 2)
    qkv, bias = operands(sizes, torch.float16)
    bias[:, :, ::2, : sizes[0] // 2 + 1] = -torch.inf
    judge(kernel_library, tactic, qkv, bias)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("tactic", "sizes"), [("resident", (53, 1, 32, 2)), ("streamed", (130, 1, 32, 1))], ids=str)
def test_large_scores(
    kernel_library: KernelLibrary, tactic: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Scores of hundreds: exponentials would overflow without the row's maximum."""
    qkv, bias = operands(sizes, dtype)
    qkv[:, :32] *= 100
    judge(kernel_library, tactic, qkv, bias)


def test_automatic_takes_a_kernel_that_serves(kernel_library: KernelLibrary) -> None:
    for dtype, sizes in [
        (torch.float32, (20, 1, 7, 2)),
        (torch.float16, (81, 1, 32, 1)),
        (torch.bfloat16, (80, 1, 8, 1)),
    ]:
        check(kernel_library, "automatic", sizes, dtype)


def test_no_windows(kernel_library: KernelLibrary) -> None:
    qkv, bias = operands((53, 1, 32, 0), torch.float16)
    assert run(kernel_library, qkv, bias, "automatic").shape == (0, 32)


@pytest.mark.parametrize(
    ("tactic", "dtype", "sizes", "reason"),
    [
        ("automatic", torch.float16, (53, 2, 49, 1), "head dim 49 in fp16; served are multiples of 8 up to 80"),
        ("automatic", torch.bfloat16, (53, 1, 88, 1), "head dim 88 in bf16"),
        ("automatic", torch.int8, (81, 1, 32, 1), "windows of 81 tokens in int8; the resident kernel serves up to 80"),
        ("resident", torch.float16, (81, 1, 32, 1), "windows of 81 tokens in fp16"),
        ("resident", torch.float32, (53, 1, 32, 1), "the resident kernel serves fp16, bf16 and int8, not fp32"),
        ("streamed", torch.int8, (53, 1, 32, 1), "the streamed kernel serves fp16 and bf16, not int8"),
        ("fused", torch.float16, (53, 1, 32, 1), "WindowAttention has no fused kernel; plain, resident and streamed"),
    ],
)
def test_refusals(
    kernel_library: KernelLibrary, tactic: str, dtype: torch.dtype, sizes: tuple[int, int, int, int], reason: str
) -> None:
    qkv, bias = operands(sizes, torch.float32)
    bias_dtype = torch.float16 if dtype == torch.int8 else dtype
    with pytest.raises(UnsupportedError, match="WindowAttention") as error:
        run(kernel_library, qkv.to(dtype), bias.to(bias_dtype), tactic)
    assert reason in str(error.value)
