"""What every command shares: one console, progress bars, and errors as one line with exit code 2."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fastervit_trt.errors import FasterViTError

__all__ = ["command_app", "console", "progress_bar", "run_command", "say", "step", "track", "warn"]

T = TypeVar("T")

_INTERRUPTED = 130
_UNKNOWN_WIDTH = 120  # columns, where the output is no terminal

console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNKNOWN_WIDTH)
err_console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _UNKNOWN_WIDTH)


def say(text: str) -> None:
    """Print one line of results as it is: no markup, no line breaks of our own."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print one line on stderr that does not stop anything."""
    err_console.print(f"warning: {text}", markup=False, soft_wrap=True)


def command_app(**options: Any) -> typer.Typer:
    """A Typer application with this project's habits: plain help, no completion, no rich tracebacks."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **options)


def run_command(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``app`` and exit; whatever the user can act on becomes one line on stderr and exit code 2.

    Args:
        arguments: the command line without the program's name; the process's own by default.
    """
    signal.signal(signal.SIGTERM, _stop)  # so that temporary folders are removed
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a parent's "ignore" stays
        signal.signal(signal.SIGINT, _stop)
    try:
        code = app(arguments, standalone_mode=False)
    except FasterViTError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_os_error(error))
    except Exception as error:
        message = _usage_message(error)
        if message is None:
            raise
        _fail(message)
    if code == _INTERRUPTED:  # Typer turns KeyboardInterrupt into this
        _fail("interrupted; nothing half-written was kept", code)
    sys.exit(code if isinstance(code, int) else 0)


def progress_bar(*, transient: bool = False) -> Progress:
    """A progress display on stderr; silent bars become plain lines when the output is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err_console,
        transient=transient,
    )


@contextmanager
def step(description: str) -> Iterator[None]:
    """A step of unknown length: a spinner with a clock while it runs."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err_console) as progress:
        task = progress.add_task(description, total=1)
        yield
        progress.update(task, completed=1)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr."""
    with progress_bar() as progress:
        yield from progress.track(items, description=description, total=total)


def _usage_message(error: Exception) -> str | None:
    """The text of a command-line usage error (Typer ships its own click), or None for anything else."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    hint = getattr(getattr(error, "ctx", None), "command_path", "")
    return f"{' '.join(str(format_message()).split())}" + (f" (see '{hint} --help')" if hint else "")


def _os_error(error: OSError) -> str:
    where = f" '{error.filename}'" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing{where}; free some room or choose another --output"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write{where}; choose a writable --output"
    return f"{error.strerror or error}{where}"


class _Interrupted(KeyboardInterrupt):
    """An interrupt whose exit code is ours.

    CPython notes a plain KeyboardInterrupt that passes through ``exec()``, as in an import, and at exit kills the
    process with SIGINT, whatever was caught and returned since. It compares the exact type.
    """


def _stop(signum: int, frame: object) -> NoReturn:
    raise _Interrupted


def _fail(message: str, code: int = 2) -> NoReturn:
    err_console.print(f"error: {message}", markup=False, soft_wrap=True)
    sys.exit(code)
