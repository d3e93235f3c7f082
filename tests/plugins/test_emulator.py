"""The emulator runs kernels as a GPU would, and tells what is wrong with those that are: emulator/examples.cu."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastervit_trt.plugins.kernels import Kernels
from tests.plugins.conftest import ORDERS, KernelLibrary, guarded
from tests.plugins.emulator import build

EXAMPLES = Path(build.__file__).parent / "examples.cu"
SECOND_GROUP = r"while thread \d+'s asynchronous copy to offset (1024|2032|1[1-9]\d\d) is under way"
INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE = 1, 9, 719

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))


class Examples:
    """The compiled examples; ``run`` gives what a kernel wrote, ``error`` how it failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.fastervit_emulator_error.restype = ctypes.c_char_p

    def launch(
        self,
        name: str,
        mode: int = 0,
        *,
        given: torch.Tensor | None = None,
        count: int = 64,
        blocks: int = 1,
        threads: int = 64,
        shared: int = 1024,
    ) -> tuple[int, torch.Tensor]:
        out = self.guarded(torch.full((count,), float("nan")))
        given = self.guarded(torch.zeros(16) if given is None else given)
        pointers = ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(given.data_ptr())
        return self.library[f"example_{name}"](*pointers, mode, blocks, threads, shared), out

    def run(self, name: str, mode: int = 0, **how: object) -> torch.Tensor:
        code, out = self.launch(name, mode, **how)  # type: ignore[arg-type]
        assert code == 0, self.message
        return out

    def error(self, name: str, mode: int = 0, **how: object) -> str:
        code, _ = self.launch(name, mode, **how)  # type: ignore[arg-type]
        assert code == LAUNCH_FAILURE, f"{name} in mode {mode} passed"
        assert f"::{name}" in self.message  # the kernel
        assert "\n" not in self.message
        return self.message

    def order(self, name: str) -> None:
        self.library.fastervit_emulator_order(ORDERS[name])

    def guarded(self, tensor: torch.Tensor) -> torch.Tensor:
        return guarded(self.library, tensor)

    @property
    def message(self) -> str:
        return self.library.fastervit_emulator_error().decode()


@pytest.fixture(scope="module")
def compiled() -> Examples:
    return Examples(build.emulated_library([EXAMPLES]))


@pytest.fixture
def examples(compiled: Examples) -> Iterator[Examples]:
    yield compiled
    compiled.order("ascending")


@pytest.fixture(params=ORDERS)
def ordered(examples: Examples, request: pytest.FixtureRequest) -> Examples:
    examples.order(request.param)
    return examples


def marked(text: str) -> str:
    """Where in the examples the comment ``mark: text`` is, as messages spell it."""
    lines = [i for i, line in enumerate(EXAMPLES.read_text().splitlines(), 1) if f"mark: {text}" in line]
    assert len(lines) == 1
    return f"tests/plugins/emulator/examples.cu:{lines[0]}"


# Instructions


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_mma_is_matmul(ordered: Examples, name: str, dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(8, 16).to(dtype)
    given = torch.cat([a, b])
    out = ordered.run(f"matmul_{name}", given=given, count=128, threads=32)
    torch.testing.assert_close(out.view(16, 8).double(), a.double() @ b.double().T + 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(ordered: Examples, transposed: bool) -> None:
    matrices = torch.randperm(4 * 8 * 8).view(4, 8, 8).to(torch.int16)
    out = ordered.run("matrices", int(transposed), given=matrices, count=256, threads=32)
    held = matrices.mT if transposed else matrices  # [matrix][row g][columns 2p, 2p + 1] is lane 4g + p's
    assert torch.equal(out.view(32, 4, 2), held.reshape(4, 32, 2).transpose(0, 1).float())


def test_shuffles_and_votes(ordered: Examples) -> None:
    out = ordered.run("shuffles", count=256, threads=32).view(32, 8).int() - torch.tensor([100] * 5 + [0] * 3)
    for lane, (direct, of_eight, xor, down, up, ballot, some, every) in enumerate(out.tolist()):
        assert (direct, of_eight, xor) == (5, lane // 8 * 8 + (lane + 1) % 8, lane ^ 3)
        assert (down, up) == (lane + 3 if lane % 16 < 13 else lane, lane - 3 if lane % 16 > 2 else lane)
        assert (ballot, some, every) == (sum(1 << i for i in range(0, 10, 3)), 1, 0)


def test_conversions_are_those_of_ieee(examples: Examples) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    wide = torch.cat([torch.randn(10**5) * 10.0**e for e in (-7, -4, 0, 4, 38)])
    every_half = bits.view(torch.float16).float()
    halfway = torch.nextafter(every_half, torch.tensor(1e9)) / 2 + torch.nextafter(every_half, -torch.tensor(1e9)) / 2
    ties = (every_half[:-1] + every_half[1:]) / 2  # between neighbours
    bfloat16_ties = bits.view(torch.bfloat16).float() * (1 + 2.0**-8)
    special = torch.tensor([65519.99, 65520.0, 2.5, 3.5, -2.5, 2.0**31, -3e9, float("inf"), -1e39])
    wide = torch.cat([wide, every_half, halfway, ties, bfloat16_ties, special])

    half, brain = torch.empty(len(wide), dtype=torch.float16), torch.empty(len(wide), dtype=torch.bfloat16)
    rounded = torch.empty(len(wide), dtype=torch.int32)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, half, brain, rounded)]
    examples.library.example_convert(*pointers, len(wide), 1)
    assert torch.equal(half.nan_to_num(123), wide.half().nan_to_num(123))
    assert torch.equal(brain.nan_to_num(123), wide.bfloat16().nan_to_num(123))
    expected = wide.double().nan_to_num(0, 1e30, -1e30).round().clamp(-(2**31), 2**31 - 1)
    assert torch.equal(rounded.double(), expected)

    back = torch.empty(2**16)
    for i, dtype in enumerate([torch.float16, torch.bfloat16]):
        pointers = [ctypes.c_void_p(bits.data_ptr() if i == which else None) for which in range(2)]
        examples.library.example_convert(ctypes.c_void_p(back.data_ptr()), *pointers, None, 2**16, 0)
        assert torch.equal(back.nan_to_num(123), bits.view(dtype).float().nan_to_num(123))


# Asynchronous copies


def test_copies_arrive_when_waited_for(ordered: Examples) -> None:
    given = torch.randn(512)
    assert torch.equal(ordered.run("copies", given=given, count=512, shared=2048), given)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (1, SECOND_GROUP),  # wait<1>
        (2, r"asynchronous copy to offset (\d{1,3}|1008) is under way"),  # no wait
        (3, SECOND_GROUP),  # no commit
        (4, "asynchronous copy of 16 bytes from 0x.*, which is no multiple"),
        (5, r"reads 8 bytes at offset \d+ of a tensor of 2048 bytes"),
        (6, "race: (reads|copies) .*|while thread"),  # the wait is the copying thread's only
        (7, "ends while 1 of its asynchronous copies are under way"),
        (9, "asynchronous copy to offset 0 of a tensor of 2048 bytes"),
    ],
)
def test_wrong_copies(ordered: Examples, mode: int, expected: str) -> None:
    assert re.search(expected, ordered.error("copies", mode, given=torch.randn(512), count=512, shared=2048))


def test_a_copy_from_nowhere(ordered: Examples) -> None:
    error = ordered.error("copies", 8, given=torch.randn(512), count=512, shared=2048)
    assert f"{marked('from nowhere')}: accesses 0x100, where no memory is" in error


def test_copies_that_arrive_too_early(ordered: Examples) -> None:
    given = torch.randn(256)
    out = ordered.run("pipeline", 0, given=given)
    torch.testing.assert_close(out, (3 * given.double().sum()).float().expand(64), rtol=1e-4, atol=1e-4)
    error = ordered.error("pipeline", 1, given=given)
    assert re.search("while thread .* is under way|race: (copies|reads) ", error), error
    assert marked("again") in error


# Order


@pytest.mark.parametrize(
    ("mode", "shared_by"),
    [(0, "all"), (10, "warp"), (11, "warp")],
)
def test_ordered_accesses_are_no_race(ordered: Examples, mode: int, shared_by: str) -> None:
    out = ordered.run("neighbours", mode)
    assert torch.equal(out, (torch.arange(64) ^ (63 if shared_by == "all" else 31)).float())


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        (1, "reads written|writes read"),  # __syncwarp, over two warps
        (2, "reads written|writes read"),  # a shuffle
        (12, "reads written|writes read"),  # a shuffle, within a warp
        (3, "reads written|writes read"),
        (13, "reads written|writes read"),
        (4, "writes written"),
        (14, "writes written"),
        (5, "writes read|reads written"),
        (15, "writes read|reads written"),
        (6, "writes written"),  # memset
        (7, "reads written|writes read"),  # __shared__ variables
        (9, "reads written|writes read"),  # memcpy
        (8, "reads written|writes read"),  # a vector, of which one half is one's own
    ],
)
def test_races(ordered: Examples, mode: int, kinds: str) -> None:
    error = ordered.error("neighbours", mode)
    found = re.search(r"race: (reads|writes) .* has (written|read) .* no barrier in between, (.*)", error)
    assert found, error
    assert f"{found[1]} {found[2]}" in kinds.split("|")
    assert marked("write") in error


def test_a_race_names_both_places(examples: Examples) -> None:
    error = examples.error("neighbours", 3)
    assert re.fullmatch(
        r"fastervit::.*::neighbours\(.*\), block \(0, 0, 0\), thread 32 \(warp 1, lane 0\), (\S+): race: writes 4 "
        r"bytes of shared memory, of which thread 31 \(warp 0, lane 31\) has read the one at offset 128 with no "
        r"barrier in between, (\S+)",
        error,
    ), error
    assert f"{marked('write')}: race" in error and error.endswith(marked("read"))


def test_all_readers_are_remembered(ordered: Examples) -> None:
    ordered.run("readers", 0)
    for mode in (1, 2, 3, 4):
        assert "race" in ordered.error("readers", mode)


def test_results_do_not_depend_on_the_order(ordered: Examples) -> None:
    given = torch.randn(256)
    assert torch.equal(ordered.run("sums", given=given, blocks=3, threads=256)[:3], _tree_sum(given).expand(3))


def test_orders_differ(examples: Examples) -> None:
    """The last lane, warp and block to run."""

    def last(order: str) -> list[int]:
        examples.order(order)
        return [int(examples.run("sums", mode, blocks=5, threads=256)[0]) for mode in (1, 2, 3)]

    assert last("ascending") == [255, 7, 4]
    assert last("descending") == [0, 0, 0]
    shuffled = last("shuffled")
    assert 0 < shuffled[0] < 255 and 0 < shuffled[1] < 7
    assert last("shuffled") == shuffled  # by its seed


def test_an_order_from_outside_and_a_stack_that_overflows(compiled: Examples) -> None:
    """In a process without handlers of signals, which pytest's own has."""
    program = f"""
import ctypes
library, out = ctypes.CDLL({str(compiled.path)!r}), (ctypes.c_float * 64)()
assert library.example_sums(out, out, 1, 1, 64, 0) == 0 and out[0] == 0  # descending
assert library.example_edges(out, out, 20, 1, 1, 64) == {LAUNCH_FAILURE}
assert library.example_sums(out, out, 1, 1, 64, 0) == 0
ctypes.string_at(16)
"""
    environment = {**os.environ, "FASTERVIT_EMULATOR_ORDER": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert done.stderr.startswith("emulator: ") and "where no memory is" in done.stderr and done.stderr.count("\n") == 1
    assert done.returncode == -signal.SIGSEGV  # the last line's: faults are the process's own again


# Memory


def test_shared_memory_starts_undefined(ordered: Examples) -> None:
    ordered.run("uninitialised", 0)
    error = ordered.error("uninitialised", 1)
    assert re.search(r"reads 4 bytes of shared memory, of which the one at offset \d+ was never written", error), error
    assert marked("never written") in error


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (1, "reads 4 bytes at offset 64 of a tensor of 64 bytes"),
        (2, "reads 4 bytes at offset -4 of a tensor of 64 bytes"),
        (3, "writes 4 bytes at offset 64 of a tensor of 64 bytes"),
        (4, "writes 4 bytes at offset -4 of a tensor of 64 bytes"),
        (5, "writes 1 bytes at offset 64 of shared memory of 64 bytes"),
        (6, "writes 1 bytes at offset -1 of shared memory of 64 bytes"),
        (7, "not aligned"),
        (8, "not aligned"),
        (9, "index out of the bounds of an array"),
        (10, "accesses 0x10, where no memory is"),
        (11, "integer overflow in a multiplication"),
        (12, "division by zero"),
        (13, "shift by more bits"),
        (14, "reads 4 bytes at offset 64 of a tensor of 64 bytes"),
        (15, "writes 8 bytes at offset 60 of a tensor of 64 bytes"),  # memcpy
        (16, "reads 12 bytes at offset 60 of a tensor of 64 bytes"),
        (17, "writes 8 bytes at offset 60 of a tensor of 64 bytes"),  # memset
        (18, "writes 28 bytes at offset 48 of a tensor of 64 bytes"),  # a struct
        (19, "reads 28 bytes at offset 48 of a tensor of 64 bytes"),
        (20, "accesses 0x.*, where no memory is"),  # a stack that overflows
    ],
)
def test_edges(examples: Examples, mode: int, expected: str) -> None:
    in_ = torch.arange(16.0)
    assert examples.run("edges", 0, given=in_, count=16, threads=1, shared=64)[15] == 15
    error = examples.error("edges", mode, given=in_, count=16, threads=1, shared=64)
    assert re.search(expected, error), error
    if mode == 10:
        assert marked("nowhere") in error


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (2, "ldmatrix from 0x.*, which is no multiple of 16"),
        (3, "ldmatrix from offset 512 of shared memory"),
        (4, "ldmatrix from offset 0 of a tensor"),
        (5, "reads 16 bytes of shared memory, of which the one at offset 144 was never written"),
        (6, "race: reads 16 bytes"),
    ],
)
def test_wrong_rows_of_ldmatrix(examples: Examples, mode: int, expected: str) -> None:
    given = torch.zeros(256, dtype=torch.int16)
    error = examples.error("matrices", mode, given=given, count=256, threads=32, shared=512)
    assert re.search(expected, error), error


def test_guarded_tensors(examples: Examples) -> None:
    """They are copies, in every layout, at addresses that kernels ask for; memory is given back."""
    for tensor in (torch.randn(5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.ones(0)):
        copy = examples.guarded(tensor)
        assert torch.equal(copy, tensor) and copy.stride() == tensor.stride() and copy.dtype == tensor.dtype
        assert copy.data_ptr() % 16 == 0 and (copy.data_ptr() != tensor.data_ptr() or tensor.numel() == 0)
    assert torch.equal(examples.guarded(torch.arange(10)[::2]), torch.arange(0, 10, 2))
    for _ in range(1000):
        examples.guarded(torch.zeros(4))


# Divergence and launches


def test_all_lanes_together(ordered: Examples) -> None:
    assert torch.equal(ordered.run("diverge", 0), torch.arange(64.0))
    assert torch.equal(ordered.run("diverge", 6), torch.tensor([31.0, 63.0]).repeat_interleave(32))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (1, r"lane 0\).* waits at a shuffle, but .*lane 16\) is at __syncwarp"),
        (2, r"lane 0\).* waits at __syncthreads, but .*lane 7\) is at its end"),
        (3, "thread 32 .* waits at __syncthreads, but thread 0 .* is at its end"),
        (4, r"lane 9\).* waits at mma of fp16, but .*lane 0\) is at its end"),
        (5, r"lane 0\).* waits at a shuffle, but .*lane 16\) is at its end"),
        (7, "thread 32 .* waits at __syncthreads, but thread 0 .* is at its end"),
        (8, r"lane 0\).* waits at mma of fp16, but .*lane 1\) is at mma of bf16"),
        (9, r"a shuffle of some lanes only \(mask 0xffff\)"),
    ],
)
def test_divergence(ordered: Examples, mode: int, expected: str) -> None:
    error = ordered.error("diverge", mode)
    assert re.search(expected, error), error
    if mode == 1:
        assert marked("some") in error


def test_warps_that_are_not_whole(ordered: Examples) -> None:
    """48 threads: barriers and votes among those that are there, but no mma."""
    assert torch.equal(ordered.run("neighbours", 0, threads=64, count=64), torch.arange(63.0, -1, -1))
    assert "mma of fp16 in a warp of 16 threads; it needs 32" in ordered.error("diverge", 0, threads=48)
    assert "a shuffle from lane 31 of 16" in ordered.error("diverge", 6, threads=48)
    ordered.run("uninitialised", 0, threads=17)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"blocks": 0}, INVALID_CONFIGURATION),
        ({"threads": 0}, INVALID_CONFIGURATION),
        ({"threads": 1025}, INVALID_CONFIGURATION),
        ({"shared": 227 * 1024 + 1}, INVALID_VALUE),
        ({"shared": -1}, INVALID_VALUE),
    ],
)
def test_launches_that_cuda_refuses(examples: Examples, how: dict[str, int], code: int) -> None:
    assert examples.launch("sums", 1, **how)[0] == code  # type: ignore[arg-type]
    assert examples.message
    assert examples.launch("sums", 1, threads=1024, shared=227 * 1024)[0] == 0
    assert not examples.message


def test_undefined_behaviour_of_a_launcher(examples: Examples) -> None:
    assert examples.launch("overflow", 1, blocks=1)[0] == 0
    assert examples.launch("overflow", 1, blocks=2)[0] == LAUNCH_FAILURE
    assert f"{marked('overflow')}: integer overflow in a multiplication" in examples.message
    assert examples.launch("overflow", 1, blocks=1)[0] == 0


def test_a_smaller_device(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    values = (ctypes.c_int * 3)()
    assert examples.library.example_device(values) == 0
    assert list(values) == [2, 227 * 1024, 228 * 1024]
    monkeypatch.setenv("FASTERVIT_EMULATOR_SHARED", str(99 * 1024))
    monkeypatch.setenv("FASTERVIT_EMULATOR_MULTIPROCESSORS", "46")
    examples.library.example_device(values)
    assert list(values) == [46, 99 * 1024, 228 * 1024]
    assert examples.launch("sums", 1, shared=100 * 1024)[0] == INVALID_VALUE


def test_it_goes_on_after_errors(ordered: Examples) -> None:
    for _ in range(3):
        ordered.error("diverge", 2)
        ordered.error("edges", 10, count=16, threads=1, shared=64)
        assert torch.equal(ordered.run("diverge", 0), torch.arange(64.0))


# Compilation


def test_only_what_changed_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    compiled: list[str] = []

    def run(*command: str | Path) -> None:
        compiled.extend(word.name for word in command if isinstance(word, Path))
        subprocess.run([*map(str, command)], check=True, capture_output=True)

    monkeypatch.setattr(build, "_run", run)
    header, source, other = tmp_path / "header.h", tmp_path / "source.cu", tmp_path / "other.cu"
    header.write_text("inline int value() { return 1; }\n")
    source.write_text(
        '#include "header.h"\nextern "C" __attribute__((visibility("default"))) int f() { return value(); }'
    )
    other.write_text("int g() { return 0; }")

    def value() -> int:
        compiled.clear()
        return ctypes.CDLL(str(build.emulated_library([source, other]))).f()

    assert value() == 1 and {"source.cu", "other.cu", "engine.cpp"} <= set(compiled)
    assert value() == 1 and not compiled
    header.write_text("inline int value() { return 2; }\n")
    assert value() == 2 and "source.cu" in compiled and not {"other.cu", "engine.cpp"} & set(compiled)
    header.write_text("inline int value() { return 1; }\n")
    assert value() == 1 and "source.cu" not in compiled
    old = tmp_path / "cache" / "old.o"
    old.touch()
    assert value() == 1 and old.exists()
    for path in old.parent.glob("*.*o"):
        os.utime(path, (0, 0))
    assert value() == 1 and not old.exists()  # nor the object of the other header, but those in use:
    assert value() == 1 and not compiled


def test_what_is_edited_meanwhile_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    texts = [f'extern "C" __attribute__((visibility("default"))) int f() {{ return {i}; }}' for i in range(2)]
    source = tmp_path / "source.cu"
    source.write_text(texts[0])

    def run(*command: str | Path) -> None:
        subprocess.run([*map(str, command)], check=True, capture_output=True)
        if source in command and source.read_text() == texts[0]:
            source.write_text(texts[1])

    monkeypatch.setattr(build, "_run", run)
    assert ctypes.CDLL(str(build.emulated_library([source]))).f() == 1
    source.write_text(texts[0])  # no object of these contents may be there: it would be one of others
    monkeypatch.undo()
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    assert ctypes.CDLL(str(build.emulated_library([source]))).f() == 0


def test_what_the_compiler_says_is_the_error(tmp_path: Path) -> None:
    source = tmp_path / "source.cu"
    source.write_text("int f(int unused) { return nothing; }")
    with pytest.raises(RuntimeError, match="nothing") as error:
        build.emulated_library([source])
    assert "unused parameter" in str(error.value)  # warnings are errors


# The fixture of kernel tests


def test_workspaces_are_guarded_too(kernel_library: KernelLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel_library.device.type != "cpu":
        pytest.skip("guards are the emulator's")
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(Kernels, "_launch", lambda self, operator, out, tensors, scalars: seen.update(tensors))
    kernel_library.kernels.carrier_attention(*_carrier_attention(), 4, 1e-5, "staged")
    workspace = seen["workspace"]
    assert workspace.numel() > 0 and bool((workspace == 0xFF).all())
    assert -(-(workspace.data_ptr() + workspace.numel()) // 16) * 16 % mmap.PAGESIZE == 0


def test_results_that_depend_on_the_order_are_found(compiled: Examples) -> None:
    library = KernelLibrary(SimpleNamespace(path=compiled.path), torch.device("cpu"))  # type: ignore[arg-type]
    given = torch.randn(64)
    assert library.in_every_order(lambda: compiled.run("sums", 0, given=given)[:1]) == _tree_sum(given)
    with pytest.raises(AssertionError, match="depend on the order"):
        library.in_every_order(lambda: compiled.run("sums", 1, given=given)[:1])
    assert int(compiled.run("sums", 1)[0]) == 63  # ascending again


@pytest.mark.parametrize("tactic", ["plain", "resident", "streamed"])
def test_window_attention_in_every_order(kernel_library: KernelLibrary, tactic: str) -> None:
    qkv, bias = (kernel_library.guarded(torch.randn(s).half()) for s in [(3 * 53, 3 * 2 * 16), (1, 2, 53, 53)])
    kernel_library.in_every_order(lambda: kernel_library.kernels.window_attention(qkv, bias, tactic))


@pytest.mark.parametrize("tactic", ["plain", "staged", "fused"])
def test_carrier_attention_in_every_order(kernel_library: KernelLibrary, tactic: str) -> None:
    tensors = [kernel_library.guarded(x) for x in _carrier_attention()]
    kernel_library.in_every_order(lambda: kernel_library.kernels.carrier_attention(*tensors, 4, 1e-5, tactic))


def test_partition_and_reverse_in_every_order(kernel_library: KernelLibrary) -> None:
    shapes = [(2, 40, 14, 14), (2, 40, 4, 4), (1, 53, 40), (40,)]
    x, carriers, table, gamma = (kernel_library.guarded(torch.randn(shape)) for shape in shapes)
    kernels = kernel_library.kernels
    tokens = kernel_library.in_every_order(lambda: kernels.window_partition(x, carriers, table, 7))
    kernel_library.in_every_order(lambda: kernels.window_reverse(tokens, gamma, 4, 7, 14, 14))


def _carrier_attention() -> list[torch.Tensor]:
    """Two images of four windows with four carriers each, 64 channels, two heads of 32."""
    shapes = [(8, 53, 64), (1, 16, 64), (64,), (64,), (192, 64), (192,), (1, 2, 16, 16), (64, 64), (64,)]
    return [torch.randn(shape).half() for shape in shapes]


def _tree_sum(x: torch.Tensor) -> torch.Tensor:
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x
