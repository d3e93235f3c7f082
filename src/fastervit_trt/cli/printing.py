"""How commands print engines and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from fastervit_trt.console import console, say
from fastervit_trt.engines.api import NAMES
from fastervit_trt.engines.audit import Audit
from fastervit_trt.engines.explain import Finding

__all__ = ["print_audit", "print_engine"]


def print_engine(engine: Mapping[str, Any], size: int) -> None:
    """What a manifest says of an engine, in a few lines."""
    took = f"{engine['build_seconds']:.1f} s, peak {engine['build_peak_rss_mib']} MiB"
    say(
        f"  engine: {engine['file']}, {size / 1e6:.1f} MB, {NAMES[engine['runtime']]} {engine['version']}, "
        + (f"from the cache (building took {took})" if engine["from_cache"] else f"built in {took}")
    )
    audit = engine["audit"]
    shares = ", ".join(f"{share:.0%} {kind}" for kind, share in audit["multiplications"].items())
    attentions = ", ".join(f"{count} {form}" for form, count in audit["attentions"].items())
    say(
        f"    {'proven' if audit['proven'] else 'not proven'}: multiplications {shares}; attentions: {attentions}; "
        f"{audit['launches']} launches, {audit['reformats']} reformats or casts"
    )
    for retry in engine["retries"]:
        say(f"    {retry}, so it was built with less")
    for finding in engine["against_8_bits"]:
        say(f"    against 8 bits: {Finding(**finding)}")


def print_audit(name: str, audit: Audit, *, blocks: bool = False) -> None:
    """An engine by stage and by attention; if asked for, by block and with TensorRT's own names."""
    say(f"{name}{f', for {chr(32).join(audit.targets)}' if audit.targets else ''}: {audit.launches} launches")
    stages = _table("stage", "launches", "multiplications", "tensors written")
    for stage in audit.stages:
        stages.add_row(stage.stage, str(stage.launches), _shares(stage.macs), _counts(stage.tensors))
    console.print(stages)
    attentions = _table("attention", "form", "launches", *(["kernels"] if blocks else []))
    for attention in audit.attentions:
        names = [", ".join(attention.kernels)] if blocks else []
        attentions.add_row(attention.block, attention.form, str(len(attention.kernels)), *names)
    console.print(attentions)
    if blocks:
        table = _table("block", "launches", "alone", "kinds", "only moves")
        for block in audit.blocks:
            moved = ", ".join(block.moved)
            table.add_row(block.block, str(block.launches), str(block.alone), _counts(block.kinds), moved)
        console.print(table)
    for place, kernel in audit.reformats:
        say(f"reformat or cast in {place}: {kernel}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("launches", "alone") else "left", overflow="fold")
    return table


def _shares(amounts: Mapping[str, int]) -> str:
    total = sum(amounts.values())
    return ", ".join(f"{amount / total:.0%} {kind}" for kind, amount in amounts.items())


def _counts(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{amount} {kind}" for kind, amount in amounts.items())
