"""The text of a table's field in, its value out; empty text is None: not stated."""

from __future__ import annotations

__all__ = ["number", "share", "whole"]


def number(text: str) -> float | None:
    """A figure as it stands."""
    return float(text) if text else None


def share(text: str) -> float | None:
    """A percentage as its share."""
    return float(text) / 100 if text else None


def whole(text: str) -> int | None:
    """A count."""
    return int(text) if text else None
