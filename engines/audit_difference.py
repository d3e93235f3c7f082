"""Two audits in, what differs between the engines out: in the model's words, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastervit_trt.engines.audit import Audit

__all__ = ["Difference", "differences"]


@dataclass(frozen=True)
class Difference:
    """One fact that is not the same."""

    where: str  # block, stage or "engine"
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.before} → {self.after}"


def differences(before: Audit, after: Audit) -> list[Difference]:
    """What changes from one engine to the other: the engine as a whole, then types, attentions, launches of blocks."""
    return [
        *_changed("engine", "launches", str(before.launches), str(after.launches)),
        *_changed("engine", "built for", " ".join(before.targets) or "–", " ".join(after.targets) or "–"),
        *_by_name("runs in", _types(before), _types(after)),
        *_by_name("attention", _forms(before), _forms(after)),
        *_by_name("launches", _launches(before), _launches(after)),
        *_by_name("reformats and casts", _reformats(before), _reformats(after)),
    ]


def _types(audit: Audit) -> dict[str, str]:
    """Block → what its products run in: several types where they do not agree."""
    of_block: dict[str, list[str]] = {}
    for product in audit.products:
        of_block.setdefault(product.block, []).append(product.ran or "not shown")
    return {block: " and ".join(dict.fromkeys(types)) for block, types in of_block.items()}


def _forms(audit: Audit) -> dict[str, str]:
    return {a.block: a.form if a.form != "in parts" else f"in {len(a.kernels)} parts" for a in audit.attentions}


def _launches(audit: Audit) -> dict[str, str]:
    return {block.block: str(block.launches) for block in audit.blocks}


def _reformats(audit: Audit) -> dict[str, str]:
    counts: dict[str, int] = {}
    for block, _ in audit.reformats:
        counts[block] = counts.get(block, 0) + 1
    return {block: str(count) for block, count in counts.items()}


def _by_name(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    for name in dict.fromkeys((*before, *after)):
        yield from _changed(name, what, before.get(name, "–"), after.get(name, "–"))


def _changed(where: str, what: str, before: str, after: str) -> Iterator[Difference]:
    if before != after:
        yield Difference(where, what, before, after)
