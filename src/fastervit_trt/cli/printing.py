"""How commands print engines and what they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fastervit_trt.benchmarks.pareto import Standing, standings
from fastervit_trt.benchmarks.rows import BenchmarkRow, several_exports, several_sizes
from fastervit_trt.console import console, say
from fastervit_trt.engines.api import NAMES
from fastervit_trt.engines.audit import Audit
from fastervit_trt.engines.explain import Finding

__all__ = ["print_audit", "print_engine", "print_rows"]

_EXPORT_WIDTH = 13  # characters at least, over several lines where names are longer


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


def print_rows(rows: Sequence[BenchmarkRow]) -> None:
    """The result table, most accurate first, and what there is to say about single rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    several, exports = bool(several_sizes(rows)), several_exports(rows)
    for column in ("model", *(["size"] if several else []), "precision", *(["export"] if exports else []), "backend"):
        foldable = column == "export"
        table.add_column(column, no_wrap=not foldable, overflow="fold", min_width=_EXPORT_WIDTH if foldable else None)
    metrics = list(dict.fromkeys(row.metric for row in rows))
    accuracy_column = f"{metrics[0]} %" if len(metrics) == 1 else "accuracy %"
    for column in ("batch", accuracy_column, "95 % interval", "= fp32 %", "img/s", "p50 ms", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("front")
    measured = [standing for standing in standings(rows) if standing.row.measured]
    for standing in sorted(measured, key=_accurate_and_fast_first):
        row = standing.row
        streams = f" x{row.streams}" if row.streams > 1 else ""
        speed = "(emulated)" if not row.speed_is_meaningful else _number(row.throughput_img_per_s)
        times = (_number(t) for t in (row.latency_p50_ms, row.latency_p99_ms))
        interval = "" if row.score_low is None else f"{100 * row.score_low:.1f}-{100 * (row.score_high or 0):.1f}"
        metric = f"{row.metric} " if len(metrics) > 1 and row.score is not None else ""
        accuracy = (metric + _percent(row.score), interval, _percent(row.agreement_fp32))
        where = _front(standing)
        names = (*([row.resolution] if several else []), row.precision, *([row.export] if exports else []), row.backend)
        table.add_row(row.model, *names, f"{row.batch}{streams}", *accuracy, speed, *times, where)
    console.print(table)
    for (status, backend, reason), count in _unmeasured(rows).items():
        say(f"{status} on {backend}, {count} cell{'s' if count > 1 else ''}: {reason}")
    for row in rows:
        reason = row.reason if row.measured else ""
        for text in (f"{row.status}: {reason}" if reason else "", row.flags, row.slower_because):
            if text:
                export = f" ({row.export})" if row.variant in exports else ""
                say(f"{row.label}{export} on {row.backend} at batch {row.batch}: {text}")


def _unmeasured(rows: Sequence[BenchmarkRow]) -> Counter[tuple[str, str, str]]:
    return Counter((row.status, row.backend, row.reason) for row in rows if not row.measured)


def _accurate_and_fast_first(standing: Standing) -> tuple[int, float, float]:
    row = standing.row
    return row.batch, -(row.score or 0), -(row.throughput_img_per_s or 0)


def _front(standing: Standing) -> str:
    if standing.on_front is None:
        return "–"  # not compared
    if standing.on_front:
        return "yes"
    return "no" if standing.clearly else "unsure"  # dominated, but within uncertainty


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


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
