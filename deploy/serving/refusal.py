"""Why a request is not answered: an HTTP status and one line for the client."""

from __future__ import annotations

from typing import Literal

__all__ = ["FailureReason", "RefusedError"]

# Triton's words for the label "reason" of its metric of failures, so that the same dashboards read both.
# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
FailureReason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]

_TRY_AGAIN = (429, 503)


class RefusedError(Exception):
    """A request that gets an error body ``{"error": message}`` with ``status``.

    Attributes:
        reason: what the metrics count it as.
    """

    def __init__(self, status: int, message: str, reason: FailureReason | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
        self.reason: FailureReason = reason or ("REJECTED" if status in _TRY_AGAIN else "OTHER")

    @property
    def message(self) -> str:
        return str(self)

    @property
    def headers(self) -> dict[str, str]:
        """Of the response: a client that may come again is told when, in seconds."""
        return {"Retry-After": "1"} if self.status in _TRY_AGAIN else {}
