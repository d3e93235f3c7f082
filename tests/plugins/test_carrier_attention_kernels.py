"""CarrierAttention's kernels, also as FusedWindowAttention, against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastervit_trt.plugins import reference
from fastervit_trt.plugins.kernels import UnsupportedError
from tests.plugins.conftest import KernelLibrary
from tests.plugins.judgement import assert_as_good_as, poisoned

HALVES = [torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Sizes:
    """R carriers and ``tokens`` rows of a window, windows of an image."""

    images: int
    windows: int
    carriers: int
    tokens: int
    channels: int
    heads: int
    head_dim: int

    @property
    def of_image(self) -> int:
        return self.windows * self.carriers

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


FUSED = [
    Sizes(2, 4, 4, 53, 64, 2, 32),  # FasterViT-0 at 224, fewer channels
    Sizes(1, 4, 4, 53, 96, 9, 32),  # one head more than there are warps
    Sizes(3, 1, 1, 10, 16, 2, 8),  # one carrier an image
    Sizes(1, 5, 4, 20, 80, 2, 40),  # 20 carriers: two row tiles, the second mostly padding
    Sizes(1, 4, 9, 58, 112, 2, 56),  # 36 carriers, head dim padded from 49
    Sizes(1, 16, 4, 53, 64, 3, 64),  # 64 carriers
    Sizes(1, 2, 4, 53, 160, 2, 80),
]
STAGED = [
    Sizes(5, 4, 4, 53, 64, 2, 32),  # 80 rows: more than a tile
    Sizes(1, 20, 4, 53, 40, 1, 40),  # 80 carriers an image, channels in no multiple of 16
    Sizes(1, 24, 4, 53, 72, 3, 24),  # 96 carriers: streamed attention
    Sizes(2, 1, 1, 10, 8, 1, 8),
]
LARGE = [  # of the published models; seconds on a GPU, minutes in emulation
    ("fused", Sizes(128, 4, 4, 53, 256, 8, 32)),
    ("staged", Sizes(32, 4, 4, 53, 784, 16, 56)),
    ("staged", Sizes(8, 54, 4, 53, 256, 8, 32)),  # 216 carriers at 576 x 960
]
PLAIN = [Sizes(2, 4, 4, 53, 20, 2, 7), Sizes(1, 2, 1, 5, 33, 3, 11)]


def operands(sizes: Sizes, dtype: torch.dtype, carriers: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sizes.dim + sizes.channels)
    rows = sizes.of_image if carriers else sizes.tokens
    c, d = sizes.channels, sizes.dim

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)

    qkv_weight = torch.randn(3 * d, c, generator=generator) / c**0.5
    qkv_weight[:d] *= 1.5 / sizes.head_dim**0.5
    return [
        normal(sizes.images * sizes.windows, sizes.tokens, c, shift=0.5),
        normal(1, rows, c, scale=0.3),
        normal(c, scale=0.2, shift=1.0),
        normal(c, scale=0.2),
        qkv_weight.to(dtype),
        normal(3 * d, scale=0.2),
        normal(1, sizes.heads, rows, rows),
        normal(c, d, scale=d**-0.5),
        normal(c, scale=0.2),
    ]


def run(library: KernelLibrary, tensors: list[Tensor | None], carriers: int, tactic: str) -> Tensor:
    """Over a poisoned result, in guarded memory."""
    tok = tensors[0]
    assert tok is not None
    out = library.guarded(poisoned((tok.shape[0] * carriers, tok.shape[2]), tok.dtype))
    arguments = [x if x is None else library.guarded(x) for x in tensors]
    return library.kernels.carrier_attention(*arguments, carriers, 1e-5, tactic, out=out).cpu()  # type: ignore[arg-type]


def check(library: KernelLibrary, tactic: str, sizes: Sizes, dtype: torch.dtype) -> None:
    tensors = operands(sizes, dtype)
    tensors[0][:, sizes.carriers :] = torch.nan  # tokens are none of this operator's business
    judge(library, tactic, tensors, sizes)


def judge(library: KernelLibrary, tactic: str, tensors: list[Tensor], sizes: Sizes) -> None:
    exact = reference.carrier_attention(*[x.double() for x in tensors], sizes.carriers, 1e-5)
    same_dtype = reference.carrier_attention(*tensors, sizes.carriers, 1e-5)
    assert_as_good_as(run(library, [*tensors], sizes.carriers, tactic), same_dtype, exact)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("sizes", FUSED, ids=str)
def test_fused(kernel_library: KernelLibrary, sizes: Sizes, dtype: torch.dtype) -> None:
    check(kernel_library, "fused", sizes, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("sizes", STAGED, ids=str)
def test_staged(kernel_library: KernelLibrary, sizes: Sizes, dtype: torch.dtype) -> None:
    check(kernel_library, "staged", sizes, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("tactic", "sizes"), LARGE, ids=str)
def test_large(kernel_library: KernelLibrary, tactic: str, sizes: Sizes, dtype: torch.dtype) -> None:
    if kernel_library.device.type == "cpu":
        pytest.skip("for a GPU: emulation takes minutes")
    check(kernel_library, tactic, sizes, dtype)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", PLAIN, ids=str)
def test_plain(kernel_library: KernelLibrary, sizes: Sizes, dtype: torch.dtype) -> None:
    check(kernel_library, "plain", sizes, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tactic", ["fused", "staged"])
def test_windows_by_themselves(kernel_library: KernelLibrary, tactic: str, dtype: torch.dtype) -> None:
    """All rows of a window are its carriers, and there is no table: FusedWindowAttention."""
    sizes = Sizes(3, 1, 4, 53, 64, 2, 32)
    x, _, *weights = operands(sizes, dtype, carriers=False)
    result = run(kernel_library, [x, None, *weights], 53, tactic)
    exact, same_dtype = (
        reference.fused_window_attention(*[y.to(kind) for y in (x.flatten(0, 1), *weights)], 1e-5)
        for kind in (torch.float64, dtype)
    )
    assert_as_good_as(result, same_dtype, exact)


@pytest.mark.parametrize("tactic", ["fused", "staged", "plain"])
def test_far_from_zero(kernel_library: KernelLibrary, tactic: str) -> None:
    """LayerNorm of rows whose mean is a hundred times their deviation."""
    sizes = Sizes(1, 4, 4, 20, 64, 2, 32)
    tensors = operands(sizes, torch.bfloat16)
    tensors[0] = (tensors[0].float() / 4 + 25).to(torch.bfloat16)
    judge(kernel_library, tactic, tensors, sizes)


@pytest.mark.parametrize("tactic", ["fused", "staged"])
def test_images_do_not_touch_each_other(kernel_library: KernelLibrary, tactic: str) -> None:
    sizes = Sizes(3, 5, 4, 20, 64, 2, 32)
    tensors = operands(sizes, torch.float16)
    clean = run(kernel_library, [*tensors], sizes.carriers, tactic)
    tensors[0][: sizes.windows] = torch.inf
    result = run(kernel_library, [*tensors], sizes.carriers, tactic)
    assert torch.equal(result[sizes.of_image :], clean[sizes.of_image :])
    assert result[: sizes.of_image].isnan().all()


def test_automatic(kernel_library: KernelLibrary) -> None:
    check(kernel_library, "automatic", FUSED[0], torch.float16)
    check(kernel_library, "automatic", STAGED[1], torch.bfloat16)
    check(kernel_library, "automatic", PLAIN[0], torch.float32)


@pytest.mark.parametrize(
    ("tactic", "dtype", "sizes", "reason"),
    [
        ("automatic", torch.float16, Sizes(1, 4, 4, 53, 98, 2, 48), "98 channels in fp16; served are multiples of 8"),
        ("automatic", torch.bfloat16, Sizes(1, 4, 4, 53, 64, 2, 49), "head dim 49 in bf16; served are multiples of 8"),
        ("fused", torch.float16, Sizes(1, 20, 4, 53, 64, 2, 32), "80 carriers; the fused kernel serves up to 64"),
        (
            "fused",
            torch.float16,
            Sizes(1, 4, 4, 53, 40, 1, 40),
            "40 channels, 40 in all heads; the fused kernel",
        ),
        ("fused", torch.float16, Sizes(1, 16, 4, 53, 1568, 28, 56), "bytes of shared memory for these sizes"),
        ("fused", torch.float32, Sizes(1, 4, 4, 53, 64, 2, 32), "the fused kernel serves fp16 and bf16, not fp32"),
        ("resident", torch.float16, Sizes(1, 4, 4, 53, 64, 2, 32), "CarrierAttention has no resident kernel"),
    ],
)
def test_refusals(kernel_library: KernelLibrary, tactic: str, dtype: torch.dtype, sizes: Sizes, reason: str) -> None:
    tensors = operands(sizes, dtype)
    with pytest.raises(UnsupportedError, match="CarrierAttention") as error:
        run(kernel_library, [*tensors], sizes.carriers, tactic)
    assert reason in str(error.value)
