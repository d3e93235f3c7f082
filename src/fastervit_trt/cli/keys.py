"""``key`` and ``trust``: whose engines and bundles this installation takes; the same for every command that asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastervit_trt.artifacts import new_file
from fastervit_trt.console import say
from fastervit_trt.engines.keys import public_key_line, trust_key, trusted_keys

__all__ = ["key_command", "trust_command"]


def key_command(
    output: Annotated[Path | None, typer.Option(help="Write the public key to this file, too.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Print this installation's public key, for others to trust, and the keys trusted here."""
    line = public_key_line()
    if output is not None:
        with new_file(output, overwrite=overwrite) as file:
            file.write_text(f"{line}\n")
    say(line)
    for trusted in trusted_keys():
        say(f"trusted: {trusted.fingerprint} {trusted.comment}")


def trust_command(source: Annotated[str, typer.Argument(help="File with a public key, or its line.")]) -> None:
    """Trust engines and bundles signed with a key from now on. They are executable code: trust who may run programs."""
    path = Path(source)
    trusted = trust_key(path if path.is_file() else source)
    say(f"trusted: {trusted.fingerprint} {trusted.comment}")
