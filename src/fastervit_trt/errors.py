"""The one error a user sees: one line that says what is wrong, where, and what to do next."""

from __future__ import annotations

__all__ = ["FasterViTError"]


class FasterViTError(Exception):
    """A failure the user can act on. Commands print it as one line and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
