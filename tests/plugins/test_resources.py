"""What ptxas says of the kernels: no spills, and what is recorded. All are compiled, for every GPU if they changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins import nvcc as nvcc_module
from fastervit_trt.plugins import resources
from fastervit_trt.plugins.nvcc import Nvcc, find_nvcc
from fastervit_trt.plugins.resources import (
    ARCHITECTURES,
    TABLE,
    KernelResources,
    Table,
    check_recorded,
    check_spills,
    measure,
    parse_ptxas,
    read_table,
    seal_of,
    short_name,
    write_table,
)
from tests.conftest import ROOT
from tests.plugins.plugin_driver import CSRC

SHIPPED_FOR = "90"  # the one architecture that is compiled in any case
ROW = KernelResources("window_reverse", "f<1>", 80, 32, 0, 0, 0, 0)

# As nvcc 13.0 writes it, names demangled: a kernel with shared memory, one that spills, one with a function of its own.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void fastervit::(anonymous namespace)::f<__half, 4, (E)1>(P)' for 'sm_80'
ptxas info    : Function properties for void fastervit::(anonymous namespace)::f<__half, 4, (E)1>(P)
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 256 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 3.487 ms
ptxas info    : Compiling entry function 'void fastervit::g<float>(fastervit::P)' for 'sm_90a'
ptxas info    : Function properties for void fastervit::g<float>(fastervit::P)
    48 bytes stack frame, 44 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 48 bytes cumulative stack size
ptxas info    : Compile time = 9.331 ms
ptxas info    : Compiling entry function 'h' for 'sm_120'
ptxas info    : Function properties for h
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Function properties for helper(float*, int)
    1200 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def cuda_compiler() -> Nvcc:
    try:
        nvcc = find_nvcc()
    except FasterViTError as error:
        pytest.skip(str(error))
    if shutil.which("g++") is None:
        pytest.skip("nvcc needs g++")
    return nvcc


# The real ones.


def test_no_kernel_spills_and_all_are_as_recorded(capfd: pytest.CaptureFixture[str]) -> None:
    """Minutes for all architectures: one shows that it works here, while nothing can be different on the others."""
    nvcc, table = cuda_compiler(), read_table(TABLE)
    sealed = table.seal == seal_of(table.rows, nvcc, CSRC)
    with pytest.raises(SystemExit) as stop:
        resources.main(["--architectures", SHIPPED_FOR] if sealed else [])
    out, err = capfd.readouterr()
    assert stop.value.code == 0, err
    if nvcc.version == table.nvcc:
        assert out.endswith("none spills, registers and shared memory are those of resources.csv\n")
    else:
        assert f"registers not compared: this is nvcc {nvcc.version}" in out


def test_every_operator_is_recorded_on_every_architecture() -> None:
    version, rows, seal = read_table(TABLE)
    assert re.fullmatch(r"[0-9a-f]{16}", seal)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert {row.architecture for row in rows} == set(ARCHITECTURES)
    assert {row.operator for row in rows} == {path.parent.name for path in TABLE.parent.glob("*/kernel.cu")}
    of_each = [{(row.operator, row.kernel) for row in rows if row.architecture == a} for a in ARCHITECTURES]
    assert all(kernels == of_each[0] for kernels in of_each)
    assert rows == sorted(rows)
    assert all(0 < row.registers <= 255 for row in rows)
    check_spills(rows)


def test_the_architectures_are_those_of_the_build() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "plugins" / "cmake").glob("*.cmake")))
    (listed,) = re.findall(r'FASTERVIT_TRT_CUDA_ARCHITECTURES "([\d;]+)" CACHE', text)
    assert tuple(map(int, listed.split(";"))) == ARCHITECTURES


SPILLING = """
__global__ void __launch_bounds__(512, 3) hungry(float* x, int steps) {  // 42 registers, and 64 values to keep
  x += threadIdx.x;  // what all threads have in common would find other registers
  float held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = x[i];
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < 64; ++i) held[i] += held[(i + 1) % 64] * x[step];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = held[i];
}
"""
FRUGAL = """
template <int N>
__global__ void frugal(float* x) { __shared__ float y[N]; y[threadIdx.x] = 1; __syncthreads(); *x = y[N - 1]; }
template __global__ void frugal<40>(float*);
"""


def folder_of(tmp_path: Path, **sources: str) -> Path:
    for name, source in sources.items():
        path = tmp_path / "csrc" / name / "kernel.cu"
        path.parent.mkdir(parents=True)
        path.write_text(source)
    return tmp_path / "csrc"


def test_a_kernel_that_spills_is_found(tmp_path: Path) -> None:
    nvcc = cuda_compiler()
    rows = measure(nvcc, (80, 120), folder_of(tmp_path, first=SPILLING, second=FRUGAL))
    assert [str(row) for row in rows] == [
        "first hungry sm_80",
        "first hungry sm_120",
        "second frugal<40> sm_80",
        "second frugal<40> sm_120",
    ]
    assert [row.shared_bytes for row in rows] == [0, 0, 160, 160]
    assert all(row.registers <= 42 and row.spill_stores >= 32 and row.spill_loads >= 32 for row in rows[:2])
    check_spills(rows[2:])
    with pytest.raises(FasterViTError, match=r"^2 kernels spill or use a stack: first hungry sm_80: stack"):
        check_spills(rows)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("__global__ void f() { int unused; }", "unused"),  # warnings are errors
        ("__global__ void f() { undeclared = 1; }", "undeclared"),
    ],
)
def test_what_does_not_compile_is_named(source: str, reason: str, tmp_path: Path) -> None:
    nvcc = cuda_compiler()
    with pytest.raises(FasterViTError, match=reason) as error:
        measure(nvcc, (80,), folder_of(tmp_path, broken=source))
    assert f"broken/kernel.cu does not compile for sm_80: {tmp_path}" in str(error.value)


def test_an_architecture_that_nvcc_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match=r"does not compile for sm_13: .*[Uu]nsupported gpu architecture"):
        measure(cuda_compiler(), (13,), folder_of(tmp_path, first=FRUGAL))


# Reading.


def test_the_report_of_ptxas_is_read() -> None:
    assert parse_ptxas(REPORT, "attention") == [
        KernelResources("attention", "f<__half, 4, 1>", 80, 24, 256, 0, 0, 0),
        KernelResources("attention", "g<float>", 90, 40, 0, 48, 44, 52),
        KernelResources("attention", "h", 120, 8, 0, 0, 0, 0),
        KernelResources("attention", "helper", 120, 0, 0, 1200, 0, 0),
    ]
    assert parse_ptxas("ptxas info    : 0 bytes gmem\n", "attention") == []  # of a file without kernels


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("void fastervit::a::(anonymous namespace)::f<float, 2>(fastervit::a::P)", "f<float, 2>"),
        ("void f<(fastervit::Layout)1, (bool)0, -3>(P)", "f<1, 0, -3>"),
        ("void fastervit::f<fastervit::Tile<__half, 8>, true>(void const*, int)", "f<Tile<__half, 8>, true>"),
        ("fastervit::f(float*)", "f"),
        ("f", "f"),
    ],
)
def test_names_are_short(demangled: str, short: str) -> None:
    assert short_name(demangled) == short


# Comparing.


def test_rows_that_are_recorded_pass_and_architectures_not_compiled_do_not_count() -> None:
    recorded = [ROW, replace(ROW, kernel="f<2>"), replace(ROW, architecture=90, registers=50)]
    check_recorded(recorded, recorded)
    check_recorded(recorded[:2], recorded)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([replace(ROW, registers=33)], "window_reverse f<1> sm_80: registers 32 -> 33;"),
        ([replace(ROW, shared_bytes=16)], "window_reverse f<1> sm_80: shared_bytes 0 -> 16;"),
        ([ROW, replace(ROW, kernel="f<2>")], "window_reverse f<2> sm_80: not recorded;"),
        ([replace(ROW, operator="window_partition")], "window_partition f<1> sm_80: not recorded; window_reverse f<1>"),
    ],
)
def test_differences_are_told(rows: Sequence[KernelResources], message: str) -> None:
    with pytest.raises(FasterViTError, match=re.escape(message)) as error:
        check_recorded(rows, [ROW])
    assert str(error.value).endswith("where they are meant, `python -m fastervit_trt.plugins.resources --write`")


def test_of_many_differences_the_first_are_told() -> None:
    recorded = [replace(ROW, kernel=f"f<{i}>") for i in range(10, 30)]
    with pytest.raises(FasterViTError, match=r"^20 differences to resources.csv: .*f<10>.*f<17>.*and 12 more") as error:
        check_recorded([replace(row, registers=1) for row in recorded], recorded)
    assert "f<18>" not in str(error.value)


@pytest.mark.parametrize("field", ["stack_bytes", "spill_stores", "spill_loads"])
def test_each_sort_of_spill_counts(field: str) -> None:
    with pytest.raises(FasterViTError, match=r"^1 kernels spill or use a stack: window_reverse f<1> sm_80"):
        check_spills([replace(ROW, kernel="f<2>"), replace(ROW, **{field: 4})])


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [replace(ROW, kernel='f<Tile<1, 2>, "x">'), ROW, replace(ROW, architecture=9), replace(ROW, operator="a")]
    write_table(Table("1.2.3", rows, "0a1b"), tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == ("1.2.3", sorted(rows), "0a1b")
    text = (tmp_path / "table.csv").read_text()
    assert text.startswith("# nvcc 1.2.3, seal 0a1b\noperator,kernel,architecture,registers,")


@pytest.mark.parametrize("text", [None, "", "# nvcc 1\noperator\nx\n", "# nvcc 1\n" + "a,b,c\n1,2,3\n"])
def test_what_is_no_table_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "table.csv").write_text(text)
    with pytest.raises(FasterViTError, match=r"table.csv is no table of kernels .*resources --write"):
        read_table(tmp_path / "table.csv")


# A compiler that only says what it would, to see when it is asked.


class FakeNvcc:
    """Reports one kernel named after the file, and keeps a log of calls."""

    def __init__(self, folder: Path) -> None:
        self.log, self.path = folder / "log", folder / "bin" / "nvcc"
        self.known: tuple[int, ...] = (75, *ARCHITECTURES)
        self.path.parent.mkdir()
        self.become("1.2.3")

    def become(self, version: str, kernel: str = "") -> None:
        name = kernel or '$(basename "$(dirname "$last")")'
        self.path.write_text(f"""#!/bin/sh
            if [ "$1" = --version ]; then echo "Cuda compilation tools, release 1.2, V{version}"; exit; fi
            if [ "$1" = --list-gpu-code ]; then printf 'sm_%s\\n' {" ".join(map(str, self.known))}; exit; fi
            echo "$@" >> {self.log}
            for last; do arch=${{arch:-$(expr "$last" : '-arch=sm_\\(.*\\)')}}; done
            echo "ptxas info    : Compiling entry function '{name}' for 'sm_$arch'"
            echo "ptxas info    : Function properties for {name}"
            echo "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
            echo "ptxas info    : Used 7 registers, used 0 barriers"
        """)
        self.path.chmod(0o755)

    def asked(self) -> int:
        """Files compiled since the last time."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return len(calls)


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvcc:
    return FakeNvcc(tmp_path)


def test_a_report_is_kept_until_source_headers_or_compiler_change(fake: FakeNvcc, tmp_path: Path) -> None:
    csrc = folder_of(tmp_path, a='#include "direct.h"\n', b='# include  "../a/indirect.h"\n')
    (csrc / "a" / "direct.h").write_text(
        '// once\n#include "indirect.h"\n#include "direct.h"\n#include "elsewhere.h"\n'
    )
    (csrc / "a" / "indirect.h").write_text("1")
    (csrc / "a" / "other.h").write_text("1")

    def compiled() -> int:
        rows = measure(Nvcc(fake.path), (80, 90), csrc, tmp_path / "cache")
        assert rows == [KernelResources(name, name, a, 7, 0, 0, 0, 0) for name in "ab" for a in (80, 90)]
        return fake.asked()

    def changed(file: str) -> int:
        (csrc / file).write_text((csrc / file).read_text() + "// changed\n")
        return compiled()

    assert compiled() == 4
    assert compiled() == 0
    assert changed("b/kernel.cu") == 2
    assert changed("a/direct.h") == 2
    assert changed("a/indirect.h") == 4
    assert changed("a/other.h") == 0
    fake.become("1.2.4")
    assert compiled() == 4
    measure(Nvcc(fake.path), (80, 90), csrc)  # keeps nothing
    assert fake.asked() == 4


def test_a_seal_is_broken_by_whatever_could_change_the_rows_and_by_changed_rows(
    fake: FakeNvcc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csrc = folder_of(tmp_path, a='#include "direct.h"\n', b="1")
    (csrc / "a" / "direct.h").write_text('#include "indirect.h"\n')
    (csrc / "a" / "indirect.h").write_text("1")
    rows = [ROW, replace(ROW, architecture=90)]
    seen: list[str] = []

    def broken() -> bool:
        seen.append(seal_of(rows, Nvcc(fake.path), csrc))
        return seen[-1] not in seen[:-1]

    assert broken()
    assert not broken()
    (csrc / "a" / "unused.h").write_text("1")
    rows.reverse()
    assert not broken()
    for file in ("b/kernel.cu", "a/direct.h", "a/indirect.h"):
        (csrc / file).write_text((csrc / file).read_text() + "// changed\n")
        assert broken()
    (csrc / "a" / "added.cu").write_text("1")
    assert broken()
    fake.become("1.2.4")
    assert broken()
    monkeypatch.setattr(nvcc_module, "_FLAGS", (*nvcc_module._FLAGS, "-G"))
    assert broken()
    monkeypatch.setattr(resources, "ARCHITECTURES", (*ARCHITECTURES, 121))
    assert broken()
    rows[0] = replace(rows[0], registers=7)
    assert broken()
    assert fake.asked() == 0  # nothing was compiled


def test_kernels_of_one_name_are_refused(fake: FakeNvcc, tmp_path: Path) -> None:
    csrc = folder_of(tmp_path, a="1")
    (csrc / "a" / "other.cu").write_text("2")
    with pytest.raises(FasterViTError, match=r"cannot be told apart.*\('a', 'a', 80\)"):
        measure(Nvcc(fake.path), (80,), csrc)


@pytest.fixture
def table(fake: FakeNvcc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command sees the fake compiler, one operator "a", and the table that is returned."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(resources, "CSRC", folder_of(tmp_path, a="1"))
    monkeypatch.setattr(resources, "TABLE", tmp_path / "resources.csv")
    monkeypatch.setattr(resources, "build_folder", lambda: None)
    return tmp_path / "resources.csv"


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        resources.main(arguments)
    return stop.value.code


def test_the_command_writes_and_compares(table: Path, fake: FakeNvcc, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--write") == 0
    assert f"1 kernels on 7 architectures: none spills, written to {table}" in capfd.readouterr().out
    written = read_table(table)
    assert written.rows == [KernelResources("a", "a", a, 7, 0, 0, 0, 0) for a in ARCHITECTURES]
    assert written.seal == seal_of(written.rows, Nvcc(fake.path), resources.CSRC)
    assert run() == run("--architectures", "80,90") == 0
    assert "1 kernels on 2 architectures: none spills, registers and shared memory are" in capfd.readouterr().out
    table.write_text(table.read_text().replace("a,a,89,7,", "a,a,89,8,"))
    assert run() == 2
    assert "error: 1 differences to resources.csv: a a sm_89: registers 8 -> 7;" in capfd.readouterr().err
    assert run("--architectures", "80,90") == 0
    fake.become("1.3.0")
    assert run() == 0
    verdict = "none spills, registers not compared: this is nvcc 1.3.0, resources.csv is of 1.2.3"
    assert verdict in capfd.readouterr().out


def test_a_compiler_that_does_not_know_all_gpus_compiles_for_those_it_knows(
    table: Path, fake: FakeNvcc, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--write") == 0
    fake.known = (75, 80, 87, 89, 90)
    fake.become("1.1.0")
    capfd.readouterr()
    assert run() == 0
    out = capfd.readouterr().out
    assert "left out sm_100, sm_110, sm_120, which nvcc 1.1.0 does not know\n1 kernels on 4 architectures: none" in out
    assert run("--write") == 2
    assert "the table has all architectures, of which nvcc 1.1.0 knows 80, 87, 89, 90" in capfd.readouterr().err


def test_the_command_records_no_spills(table: Path, fake: FakeNvcc, capfd: pytest.CaptureFixture[str]) -> None:
    fake.path.write_text(fake.path.read_text().replace("0 bytes spill stores", "8 bytes spill stores"))
    assert run("--write") == 2
    assert "error: 7 kernels spill or use a stack: a a sm_80" in capfd.readouterr().err
    assert not table.exists()


def test_the_command_refuses_what_it_cannot_do(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--architectures", "80;x") == 2
    assert "error: --architectures 80;x: write them as in 80,90" in capfd.readouterr().err
    assert run("--write", "--architectures", "80") == 2
    assert "error: the table has all architectures: leave out --architectures to write it" in capfd.readouterr().err
    assert run() == 2
    assert "resources.csv is no table of kernels" in capfd.readouterr().err


# Finding nvcc.


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without nvcc; the default place is the folder returned."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(nvcc_module, "DEFAULT_HOME", tmp_path / "cuda")
    monkeypatch.setattr("sys.path", [str(tmp_path / "site-packages")])
    return tmp_path / "cuda"


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.touch(0o755)
    return path


def test_places_of_nvcc_in_order(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FasterViTError, match=r"^nvcc not found in .*; pip install 'fastervit-trt\[cuda-compiler\]'"):
        find_nvcc()
    of_package = executable(tmp_path / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc")
    record = tmp_path / "site-packages" / "nvidia_cuda_nvcc-13.0.88.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Name: nvidia-cuda-nvcc\nVersion: 13.0.88\n")
    (record / "RECORD").write_text("nvidia/cu13/bin/nvcc,,\nnvidia/cu13/bin/nvcc.profile,,\n")
    assert find_nvcc().path == of_package
    default = executable(nowhere / "bin" / "nvcc")
    assert find_nvcc().path == default
    in_path = executable(tmp_path / "path" / "nvcc")
    assert find_nvcc().path == in_path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find_nvcc().path == in_path
    assert executable(tmp_path / "home" / "bin" / "nvcc") == find_nvcc().path


def test_an_nvcc_that_is_none_is_told(tmp_path: Path) -> None:
    path = executable(tmp_path / "bin" / "nvcc")
    path.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(FasterViTError, match=r"does not say which nvcc it is: hello"):
        _ = Nvcc(path).version
