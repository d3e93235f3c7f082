"""WindowPartition's and WindowReverse's kernels against the reference: every layout and dtype, sizes that bite."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastervit_trt.plugins import reference
from fastervit_trt.plugins.kernels import DTYPES, SIGNATURES, Kernels, UnsupportedError
from tests.plugins.conftest import KernelLibrary
from tests.plugins.emulator import build
from tests.plugins.judgement import assert_as_good_as, poisoned

pytestmark = pytest.mark.usefixtures("one_thread")  # tensors are small: threads cost more than they save

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
LAYOUTS = {"planes": torch.contiguous_format, "channels last": torch.channels_last}
MODES = ["plain", "dropped", "propagated"]
MARGIN = 64  # elements around a result that nobody may write


class Sizes(NamedTuple):
    """``side``: of the square of carriers of a window."""

    batch: int
    channels: int
    height: int
    width: int
    window: int
    side: int

    @property
    def carriers(self) -> int:
        return self.side**2

    @property
    def grid(self) -> tuple[int, int]:
        return self.height // self.window, self.width // self.window

    @property
    def windows(self) -> int:
        return self.batch * math.prod(self.grid)


# 16-bit tensors move by 8 channels or by one, fp32 by 4 or by one; tiles have 64 positions and up to 64 channels.
CASES = {
    "7x7, one window": Sizes(1, 64, 7, 7, 7, 1),
    "7x7, a tile of channels and a tail": Sizes(3, 72, 14, 14, 7, 2),
    "7x7, two tiles of channels and a tail": Sizes(1, 136, 7, 14, 7, 2),
    "8x8, whole tiles": Sizes(2, 128, 8, 8, 8, 2),
    "12x12": Sizes(1, 40, 24, 12, 12, 3),
    "14x14": Sizes(3, 24, 14, 28, 14, 4),
    "any resolution": Sizes(1, 8, 36, 60, 12, 2),
    "21k": Sizes(1, 8, 48, 48, 48, 4),
    "vectors in fp32 only": Sizes(3, 36, 10, 5, 5, 2),
    "no vectors": Sizes(3, 37, 21, 14, 7, 3),
    "no vectors, a channel too many": Sizes(1, 65, 8, 8, 4, 1),
    "one channel": Sizes(5, 1, 4, 6, 2, 1),
    "windows of one": Sizes(2, 16, 3, 5, 1, 1),
    "many images in a tile": Sizes(40, 8, 1, 2, 1, 2),
    "carriers finer than tokens": Sizes(2, 8, 4, 4, 2, 3),
}
every_case = pytest.mark.parametrize("sizes", [pytest.param(sizes, id=name) for name, sizes in CASES.items()])
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_mode = pytest.mark.parametrize("mode", MODES)


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Frame:
    """A result filled with NaN, and NaN around it that must stay."""

    def __init__(self, library: KernelLibrary, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
        self.memory = library.guarded(poisoned((math.prod(shape) + 2 * MARGIN,), dtype))
        memory_format = LAYOUTS[layout] if len(shape) == 4 else torch.contiguous_format
        strides = torch.empty(shape, device="meta", memory_format=memory_format).stride()
        self.result = self.memory[MARGIN:-MARGIN].as_strided(shape, strides)

    def check(self) -> Tensor:
        assert self.memory[:MARGIN].isnan().all(), "written before the result"
        assert self.memory[-MARGIN:].isnan().all(), "written after the result"
        return self.result.cpu()


def check_partition(
    library: KernelLibrary, sizes: Sizes, dtype: torch.dtype, layout: str, with_carriers: bool = True
) -> None:
    """One rounding per value, as in the reference: equal to the bit."""
    batch, channels, height, width, window, side = sizes
    memory_format = LAYOUTS[layout]
    x = noise(batch, channels, height, width, dtype=dtype).contiguous(memory_format=memory_format)
    carriers = None
    if with_carriers:
        shape = (batch, channels, sizes.grid[0] * side, sizes.grid[1] * side)
        carriers = noise(*shape, dtype=dtype, seed=1).contiguous(memory_format=memory_format)
    rows = window**2 + (sizes.carriers if with_carriers else 0)
    table = noise(1, rows, channels, dtype=dtype, seed=2)
    frame = Frame(library, (sizes.windows, rows, channels), dtype, layout)
    ct = None if carriers is None else library.guarded(carriers)
    library.kernels.window_partition(library.guarded(x), ct, library.guarded(table), window, out=frame.result)
    expected = reference.window_partition(x, carriers, table, window)
    torch.testing.assert_close(frame.check(), expected, rtol=0, atol=0)


def check_reverse(library: KernelLibrary, sizes: Sizes, dtype: torch.dtype, layout: str, mode: str) -> None:
    batch, channels, height, width, window, _ = sizes
    carriers = 0 if mode == "plain" else sizes.carriers
    tokens = noise(sizes.windows, carriers + window**2, channels, dtype=dtype)
    if mode == "dropped":
        tokens[:, :carriers] = torch.nan
    gamma = noise(channels, dtype=dtype, seed=1) if mode == "propagated" else None
    frame = Frame(library, (batch, channels, height, width), dtype, layout)
    library.kernels.window_reverse(
        library.guarded(tokens),
        None if gamma is None else library.guarded(gamma),
        carriers,
        window,
        height,
        width,
        channels_last=not frame.result.is_contiguous(),
        out=frame.result,
    )
    result = frame.check()
    expected = reference.window_reverse(tokens, gamma, carriers, window, height, width)
    if gamma is None:
        assert torch.equal(result, expected)
        return
    exact = reference.window_reverse(tokens.double(), gamma.double(), carriers, window, height, width)
    assert_as_good_as(result, expected, exact)


@every_layout
@every_dtype
@every_case
def test_partition(kernel_library: KernelLibrary, sizes: Sizes, dtype: torch.dtype, layout: str) -> None:
    check_partition(kernel_library, sizes, dtype, layout)


@every_layout
@every_dtype
@every_case
def test_partition_without_carriers(
    kernel_library: KernelLibrary, sizes: Sizes, dtype: torch.dtype, layout: str
) -> None:
    check_partition(kernel_library, sizes, dtype, layout, with_carriers=False)


@every_mode
@every_layout
@every_dtype
@every_case
def test_reverse(kernel_library: KernelLibrary, sizes: Sizes, dtype: torch.dtype, layout: str, mode: str) -> None:
    check_reverse(kernel_library, sizes, dtype, layout, mode)


@pytest.fixture(params=[-1, 1, 2, 3])
def shuffled(kernel_library: KernelLibrary, request: pytest.FixtureRequest) -> Iterator[KernelLibrary]:
    """Blocks, warps and lanes in another order than ascending."""
    if kernel_library.device.type != "cpu":
        pytest.skip("a GPU chooses its own order")
    emulator = ctypes.CDLL(str(kernel_library.kernels.path))
    emulator.fastervit_emulator_order(request.param)
    yield kernel_library
    emulator.fastervit_emulator_order(0)


@pytest.mark.parametrize("channels", [72, 37])
@every_layout
def test_no_order_of_threads_matters(shuffled: KernelLibrary, layout: str, channels: int) -> None:
    sizes = CASES["7x7, a tile of channels and a tail"]._replace(channels=channels)
    check_partition(shuffled, sizes, torch.float16, layout)
    check_reverse(shuffled, sizes, torch.float16, layout, "propagated")


@pytest.mark.parametrize("carriers", [3, 5])
def test_dropped_carriers_need_no_square(kernel_library: KernelLibrary, carriers: int) -> None:
    tokens = noise(4, carriers + 49, 16, dtype=torch.float16)
    result = kernel_library.kernels.window_reverse(kernel_library.guarded(tokens), None, carriers, 7, 14, 14)
    assert torch.equal(result.cpu(), reference.window_reverse(tokens, None, carriers, 7, 14, 14))


# What C callers see, TensorRT's plugins among them.

OPERATORS = ["window_partition", "window_reverse"]


def launch(kernels: Kernels, operator: str, **arguments: int) -> int:
    """The bare launcher with null pointers; fp16, batch 1 and windows of 7 x 7 where not said otherwise."""
    defaults = {"dtype": 1, "batch": 1, "channels": 8, "height": 14, "width": 14, "window": 7}
    parameters = SIGNATURES[operator].parameters
    values = dict.fromkeys(parameters, 0) | defaults | arguments
    function = ctypes.CDLL(str(kernels.path))[f"fastervit_{operator}"]
    function.argtypes = list(parameters.values())
    code: int = function(*(values[name] for name in parameters))
    return code


@pytest.mark.parametrize("nothing", [{"batch": 0}, {"height": 0}, {"width": 0}, {"height": 0, "width": 0}], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_do_is_success(kernel_library: KernelLibrary, operator: str, nothing: dict[str, int]) -> None:
    assert launch(kernel_library.kernels, operator, **nothing) == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "int8": ({"dtype": torch.int8}, "tensors of int8; serves fp32, fp16 and bf16"),
    "no channels": ({"channels": 0}, "0 channels; serves 1 to 1048576"),
    "too many channels": ({"channels": 2**20 + 1}, "1048577 channels; serves 1 to 1048576"),
    "height": ({"height": 15}, "windows of 7 x 7 on a 15 x 14 map; serves maps that whole windows cover"),
    "width": ({"width": 13}, "windows of 7 x 7 on a 14 x 13 map"),
    "no window": ({"window": 0}, "windows of 0 x 0 on a 14 x 14 map"),
    "negative": ({"height": -7}, "windows of 7 x 7 on a -7 x 14 map"),
    "negative carriers": ({"carriers_per_window": -1}, "-1 carriers per window"),
    "too many pixels": (
        {"height": 7 * 2**13, "width": 7 * 2**13},
        "a 57344 x 57344 map with 0 carriers per window; serves up to 2147482623 pixels, and carriers, of an image",
    ),
    "too many carriers": (
        {"height": 7 * 2**12, "width": 7 * 2**12, "carriers_per_window": 144},
        "a 28672 x 28672 map with 144 carriers per window",
    ),
}
CASE: dict[str, Any] = {
    "dtype": torch.float16,
    "channels": 8,
    "height": 14,
    "width": 14,
    "window": 7,
    "carriers_per_window": 0,
}


@pytest.mark.parametrize(("wrong", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("operator", OPERATORS)
def test_refusals(kernel_library: KernelLibrary, operator: str, wrong: dict[str, Any], reason: str) -> None:
    """The launcher refuses what the question does, before it looks at a pointer."""
    kernels = kernel_library.kernels
    case = {**CASE, **wrong}
    text = kernels.unsupported(operator, **case, propagates=False, channels_last=False)
    name = {"window_partition": "WindowPartition", "window_reverse": "WindowReverse"}[operator]
    suffix = "WithCarriers" if case["carriers_per_window"] else ""
    assert text is not None
    assert text.startswith(f"{name}{suffix}: {reason}")
    assert len(text) < 250  # a longer one would be cut off
    assert launch(kernels, operator, **{**case, "dtype": DTYPES[case["dtype"]]}) == 1


def test_negative_batch_is_refused(kernel_library: KernelLibrary) -> None:
    assert [launch(kernel_library.kernels, operator, batch=-1) for operator in OPERATORS] == [1, 1]


@pytest.mark.parametrize("carriers", [2, 3, 15, 2**31 - 1])
def test_carriers_that_form_no_square(kernel_library: KernelLibrary, carriers: int) -> None:
    kernels = kernel_library.kernels
    case = {**CASE, "height": 7, "width": 7, "carriers_per_window": carriers, "channels_last": True}
    served = f"{carriers} carriers per window; serves 0, 1, 4, 9 ... side²"
    assert kernels.unsupported("window_partition", **case) == f"WindowPartitionWithCarriers: {served}"
    refusal = kernels.unsupported("window_reverse", **case, propagates=True)
    assert refusal == f"WindowReverseWithPropagation: {served}"
    if carriers < 100:
        assert kernels.unsupported("window_reverse", **case, propagates=False) is None


def test_nothing_to_propagate_is_refused(kernel_library: KernelLibrary) -> None:
    with pytest.raises(UnsupportedError, match="WindowReverseWithPropagation: no carriers to propagate"):
        kernel_library.kernels.window_reverse(
            noise(1, 49, 8, dtype=torch.float16).to(kernel_library.device),
            noise(8, dtype=torch.float16).to(kernel_library.device),
            *(0, 7, 7, 7),
        )


# Numbers of more than 31 bits.

CSRC = build.KERNELS


def absolute_includes(text: str, folder: Path) -> str:
    """Sources that can be compiled elsewhere."""
    return re.sub(r'#include "([^"]+)"', lambda match: f'#include "{(folder / match[1]).resolve()}"', text)


INTEGERS = """
#include <cstdio>
using namespace fastervit;

// The quotients that are wrong, of numerators around multiples of the divisor and of the largest ones.
static long long wrong_quotients(int value) {
  const Divisor divisor = Divisor::of(value);
  long long wrong = 0;
  const auto check = [&](long long n) {
    if (n >= 0 && n <= INT_MAX) wrong += divisor.quotient(static_cast<std::uint32_t>(n)) != n / value;
  };
  for (long long multiple : {0ll, 1ll, 2ll, 3ll, 1000ll, INT_MAX / value - 1ll, 0ll + INT_MAX / value}) {
    for (int near = -1; near <= 1; ++near) check(multiple * value + near);
  }
  for (int n = INT_MAX; n > INT_MAX - 3; --n) check(n);
  for (int i = 0; i < 30; ++i) check((i * 2654435761ll) % INT_MAX);
  return wrong;
}

extern "C" __attribute__((visibility("default"))) long long quotients() {
  long long wrong = 0;
  for (int value = 1; value < 3000; ++value) wrong += wrong_quotients(value) + wrong_quotients(INT_MAX - value + 1);
  for (int bit = 12; bit < 31; ++bit) {
    for (int near = -2; near <= 2; ++near) wrong += wrong_quotients((1 << bit) + near);
  }
  return wrong;
}

// Of pixel 305 of image 1702, in channel 2^19 of 2^20 planes of 37 x 27 pixels.
extern "C" __attribute__((visibility("default"))) long long offset() {
  const WindowGrid grid = WindowGrid::of(1703, 999 / 27, 27, 1);
  return grid.in_planes(1702 * 999 + 305, 1 << 19, 1 << 20);
}

extern "C" __attribute__((visibility("default"))) const char* groups(int batch, int positions_of_image, int fails_at) {
  static char text[200];
  int length = 0;
  text[0] = 0;
  const int code = for_image_groups(batch, positions_of_image, [&](std::int64_t first, int images) {
    length += std::snprintf(text + length, sizeof text - length, "%lld+%d ", static_cast<long long>(first), images);
    return first == fails_at ? 700 : 0;
  });
  std::snprintf(text + length, sizeof text - length, "-> %d", code);
  return text;
}
"""


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The header's arithmetic, on the CPU; signed overflow stops it."""
    if reason := build.unavailable():
        pytest.skip(reason)
    source = tmp_path_factory.mktemp("integers") / "integers.cu"
    header = (CSRC / "common" / "window_tile.h").read_text()
    source.write_text(absolute_includes(header, CSRC / "common") + INTEGERS)  # the text decides what is compiled again
    library = ctypes.CDLL(str(build.emulated_library([source])))
    library.quotients.restype = library.offset.restype = ctypes.c_longlong
    library.groups.restype = ctypes.c_char_p
    return library


def test_division_is_exact(integers: ctypes.CDLL) -> None:
    assert integers.quotients() == 0


def test_offsets_have_64_bits(integers: ctypes.CDLL) -> None:
    assert integers.offset() == (1702 * 2**20 + 2**19) * 999 + 305


def test_groups_of_images(integers: ctypes.CDLL) -> None:
    most = 2**31 - 1 - 1024
    assert integers.groups(10, most // 3, -1) == b"0+3 3+3 6+3 9+1 -> 0"
    assert integers.groups(3, most, -1) == b"0+1 1+1 2+1 -> 0"
    assert integers.groups(3, most // 3, -1) == b"0+3 -> 0"
    assert integers.groups(2**31 - 1, 2, -1) == b"0+1073741311 1073741311+1073741311 2147482622+1025 -> 0"
    assert integers.groups(10, most // 3, 3) == b"0+3 3+3 -> 700"
    assert integers.groups(0, 1, -1) == b"-> 0"


@pytest.fixture(scope="module")
def small_launches(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """Kernels whose launches number 200 positions instead of 2^31: batches take several."""
    if reason := build.unavailable():
        pytest.skip(reason)
    limit = "max_positions = INT_MAX - max_tile_positions;"
    header = (CSRC / "common" / "window_tile.h").read_text()
    assert limit in header
    header = absolute_includes(header.replace(limit, "max_positions = 200;"), CSRC / "common")
    quotient = "(std::uint64_t{2 * n} * multiplier) >> 32"
    assert quotient in header
    header = header.replace(quotient, f"n < 200 ? {quotient} : 0")  # as wrong beyond as the true one is beyond 31 bits
    sources = [path for path in build.kernel_sources() if path.parent.name not in OPERATORS]
    for operator in OPERATORS:
        source = tmp_path_factory.mktemp(operator) / "kernel.cu"
        kernel = (CSRC / operator / "kernel.cu").read_text()
        source.write_text(
            header + absolute_includes(kernel, CSRC / operator)
        )  # whose include of the header is idle then
        sources.append(source)
    return KernelLibrary(Kernels(build.emulated_library(sources)), torch.device("cpu"))


LAUNCHES = [Sizes(5, 8, 14, 7, 7, 2), Sizes(5, 3, 4, 4, 2, 6), Sizes(3, 8, 14, 14, 7, 2)]


@pytest.mark.parametrize("sizes", LAUNCHES, ids=str)
@every_layout
def test_batches_beyond_a_launch(small_launches: KernelLibrary, sizes: Sizes, layout: str) -> None:
    check_partition(small_launches, sizes, torch.float16, layout)
    check_partition(small_launches, sizes, torch.float16, layout, with_carriers=False)
    for mode in MODES:
        check_reverse(small_launches, sizes, torch.float16, layout, mode)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel_library", ["cuda"], indirect=True)
@every_layout
@pytest.mark.parametrize("channels", [1, 8, 1025])
def test_tensors_beyond_31_bits(kernel_library: KernelLibrary, layout: str, channels: int) -> None:
    """The last images of a map of more than 2^31 elements (with one channel: positions)."""
    batch = 2**31 // (64 * channels) + 3
    x = torch.zeros(batch, channels, 8, 8, dtype=torch.float16, device="cuda")
    x = x.contiguous(memory_format=LAYOUTS[layout])
    last = noise(2, channels, 8, 8, dtype=torch.float16)
    x[-2:] = last.cuda()
    table = noise(1, 16, channels, dtype=torch.float16, seed=1)
    tokens = kernel_library.kernels.window_partition(x, None, table.cuda(), 4)
    assert torch.equal(tokens[-8:].cpu(), reference.window_partition(last, None, table, 4))
    del x
    result = kernel_library.kernels.window_reverse(tokens, None, 0, 4, 8, 8, channels_last=layout != "planes")
    assert torch.equal(result[-2:].cpu(), reference.window_reverse(tokens[-8:].cpu(), None, 0, 4, 8, 8))
