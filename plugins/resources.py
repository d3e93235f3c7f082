"""Registers, shared memory and spills of every kernel on every GPU: ``python -m fastervit_trt.plugins.resources``.

Compiles ``csrc/*/*.cu`` to machine code, architecture by architecture, and compares what ptxas reports with
``csrc/resources.csv``: one row per kernel and architecture, as of the nvcc that its first line names. Kernels must not
spill, nor use a stack, anywhere; and whoever changes how many registers one takes should know it. Needs nvcc, no GPU.
The table is sealed: while its seal fits, compiling everything would say again what the table says.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from fastervit_trt.artifacts import new_file
from fastervit_trt.console import command_app, run_command, say, track
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import usable_cpus
from fastervit_trt.plugins.library import build_folder
from fastervit_trt.plugins.nvcc import Nvcc, find_nvcc

__all__ = [
    "ARCHITECTURES",
    "TABLE",
    "KernelResources",
    "Table",
    "check_recorded",
    "check_spills",
    "main",
    "measure",
    "parse_ptxas",
    "read_table",
    "seal_of",
    "write_table",
]

ARCHITECTURES = (80, 87, 89, 90, 100, 110, 120)  # FASTERVIT_TRT_CUDA_ARCHITECTURES of CMakeLists.txt
CSRC = Path(__file__).parent / "csrc"
TABLE = CSRC / "resources.csv"

app = command_app()

_SHOWN = 8  # differences in a message
_WRITE = "python -m fastervit_trt.plugins.resources --write"


@dataclass(frozen=True, order=True)
class KernelResources:
    """Of one kernel on one architecture, per thread but for shared memory: per block, what is not asked at launch."""

    operator: str  # folder
    kernel: str
    architecture: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int  # bytes, as spill_loads
    spill_loads: int

    def __str__(self) -> str:
        return f"{self.operator} {self.kernel} sm_{self.architecture}"


class Table(NamedTuple):
    """What is recorded."""

    nvcc: str  # version
    rows: list[KernelResources]
    seal: str  # as of seal_of, when it was written


_COLUMNS = [field.name for field in fields(KernelResources)]
_NUMBERS = _COLUMNS[2:]


def measure(nvcc: Nvcc, architectures: Sequence[int], csrc: Path, cache: Path | None = None) -> list[KernelResources]:
    """Compile all kernels, sorted rows.

    Args:
        csrc: holds a folder per operator.
        cache: as of :meth:`Nvcc.ptxas_report`.

    Raises:
        FasterViTError: a file does not compile, or two kernels of an operator have one name.
    """
    # The largest first: they take longest, and nothing waits for one at the end.
    sources = sorted(csrc.glob("*/*.cu"), key=lambda path: path.stat().st_size, reverse=True)
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    rows: list[KernelResources] = []
    with _pool() as pool:
        tasks = {pool.submit(nvcc.ptxas_report, *job, cache): job for job in jobs}
        for task in track(as_completed(tasks), f"nvcc {nvcc.version}: {len(sources)} files", len(tasks)):
            rows += parse_ptxas(task.result(), tasks[task][0].parent.name)
    names = [astuple(row)[:3] for row in rows]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise FasterViTError(f"kernels of one name cannot be told apart; rename one of each: {sorted(twice)}")
    return sorted(rows)


def parse_ptxas(report: str, operator: str) -> list[KernelResources]:
    """Rows of what ``ptxas -v`` said, with names demangled. A function that was not inlined is a row of 0 registers."""
    rows: list[dict[str, Any]] = []
    architecture = 0
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(.*)' for 'sm_(\d+)\w?'", line):
            architecture = int(found[2])
        elif found := re.search(r"Function properties for (.*)", line):
            rows.append({"kernel": short_name(found[1]), "architecture": architecture} | dict.fromkeys(_NUMBERS[1:], 0))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            rows[-1] |= dict(zip(("stack_bytes", "spill_stores", "spill_loads"), map(int, found.groups()), strict=True))
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows[-1] |= {"registers": int(found[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return [KernelResources(operator=operator, **row) for row in rows]


def short_name(demangled: str) -> str:
    """``void fastervit::(anonymous namespace)::f<(fastervit::E)1, 2>(fastervit::P)`` → ``f<1, 2>``."""
    name = re.sub(r"\(anonymous namespace\)::", "", demangled)
    name = re.sub(r"\((?:\w+::)*\w+\)(?=-?\d)", "", name)  # casts of enumerators
    name = re.sub(r"\b\w+::", "", name)
    name = re.sub(r"^void (?=.*\()", "", name)
    return re.sub(r"\(.*$", "", name)


def check_spills(rows: Iterable[KernelResources]) -> None:
    """Whether all stays in registers and shared memory.

    Raises:
        FasterViTError: some kernel spills, or has a stack.
    """
    found = [
        f"{row}: stack {row.stack_bytes}, spilled out {row.spill_stores} and in {row.spill_loads} bytes"
        for row in rows
        if row.stack_bytes or row.spill_stores or row.spill_loads
    ]
    if found:
        raise FasterViTError(f"{len(found)} kernels spill or use a stack: {_first(found)}; give them less to hold")


def check_recorded(rows: Sequence[KernelResources], recorded: Iterable[KernelResources]) -> None:
    """Whether ``rows`` are the recorded ones of their architectures; only rows of the same nvcc can be.

    Raises:
        FasterViTError: a kernel is new, or gone, or takes more or less than it did.
    """
    architectures = {row.architecture for row in rows}
    before = {str(row): row for row in recorded if row.architecture in architectures}
    now = {str(row): row for row in rows}
    differences = [f"{name}: not recorded" for name in now.keys() - before.keys()]
    differences += [f"{name}: gone" for name in before.keys() - now.keys()]
    differences += [
        f"{name}: {column} {getattr(before[name], column)} -> {getattr(now[name], column)}"
        for name in now.keys() & before.keys()
        for column in _NUMBERS
        if getattr(before[name], column) != getattr(now[name], column)
    ]
    if differences:
        message = f"{len(differences)} differences to {TABLE.name}: {_first(sorted(differences))}"
        raise FasterViTError(f"{message}; where they are meant, `{_WRITE}`")


def seal_of(rows: Iterable[KernelResources], nvcc: Nvcc, csrc: Path) -> str:
    """Hash of rows and of all that they depend on: nvcc and its options, sources, what those include, architectures."""
    sources = sorted(csrc.glob("*/*.cu"))
    made_from = [(path.relative_to(csrc), nvcc.fingerprint(path, a)) for path in sources for a in ARCHITECTURES]
    content = (
        [(path.as_posix(), fingerprint) for path, fingerprint in made_from],
        [astuple(row) for row in sorted(rows)],
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def read_table(path: Path) -> Table:
    """The table that :func:`write_table` wrote.

    Raises:
        FasterViTError: there is no such table.
    """
    try:
        first, *lines = path.read_text().splitlines()
        rows = [
            KernelResources(line["operator"], line["kernel"], *(int(line[column]) for column in _NUMBERS))
            for line in csv.DictReader(lines)
        ]
        version, _, seal = first.removeprefix("# nvcc ").partition(", seal ")
        return Table(version, rows, seal)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FasterViTError(f"{path} is no table of kernels ({error}); write it with `{_WRITE}`") from error


def write_table(table: Table, path: Path) -> None:
    """Rows sorted, under a line that says which nvcc they are of, and the seal."""
    with new_file(path, overwrite=True) as temporary, temporary.open("w", newline="") as stream:
        stream.write(f"# nvcc {table.nvcc}, seal {table.seal}\n")
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(table.rows))


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as CPUs; the first error starts no further job."""
    pool = ThreadPoolExecutor(usable_cpus())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more


@app.command()
def resources_command(
    write: Annotated[bool, typer.Option("--write", help="Record what is found in csrc/resources.csv.")] = False,
    architectures: Annotated[
        str | None, typer.Option(help="As in 80,90; by default all that are served and nvcc knows.")
    ] = None,
) -> None:
    """Compile every kernel for every GPU generation and compare registers, shared memory and spills with the table."""
    nvcc, build = find_nvcc(), build_folder()
    chosen = _known(nvcc) if architectures is None else _parse(architectures)
    if write and set(chosen) != set(ARCHITECTURES):
        known = f", of which nvcc {nvcc.version} knows {', '.join(map(str, chosen))}"
        remedy = known if architectures is None else ": leave out --architectures to write it"
        raise FasterViTError(f"the table has all architectures{remedy}")
    rows = measure(nvcc, chosen, CSRC, cache=build and build / "ptxas")
    check_spills(rows)
    verdict = f"written to {TABLE}" if write else _compare(rows, nvcc.version)
    if write:
        write_table(Table(nvcc.version, rows, seal_of(rows, nvcc, CSRC)), TABLE)
    kernels = len({(row.operator, row.kernel) for row in rows})
    say(f"{kernels} kernels on {len(chosen)} architectures: none spills, {verdict}")


def _known(nvcc: Nvcc) -> tuple[int, ...]:
    left_out = [f"sm_{architecture}" for architecture in ARCHITECTURES if architecture not in nvcc.architectures]
    if left_out:
        say(f"left out {', '.join(left_out)}, which nvcc {nvcc.version} does not know")
    return tuple(architecture for architecture in ARCHITECTURES if architecture in nvcc.architectures)


def _parse(architectures: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(text) for text in architectures.split(",")))
    except ValueError as error:
        raise FasterViTError(f"--architectures {architectures}: write them as in 80,90") from error


def _compare(rows: Sequence[KernelResources], version: str) -> str:
    table = read_table(TABLE)
    if table.nvcc != version:  # other compilers allocate other registers
        return f"registers not compared: this is nvcc {version}, {TABLE.name} is of {table.nvcc}"
    check_recorded(rows, table.rows)
    return f"registers and shared memory are those of {TABLE.name}"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.plugins.resources``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
