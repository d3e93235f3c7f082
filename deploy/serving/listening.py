"""A :class:`Service` in, the uvicorn server that speaks HTTP for it out: patient up to a limit, stopped in order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from fastervit_trt.deploy.serving.app import build_app
from fastervit_trt.deploy.serving.service import Service

if TYPE_CHECKING:
    import socket

__all__ = ["HttpServer", "make_server"]

_HEAD_BYTES = 1 << 15  # of a request line with its headers
_HEAD_S = 10.0  # seconds for them to arrive, after a connection is made or their first byte
_IDLE_S = 30  # a connection without requests is kept
_STOPPING_S = 5  # beyond what a body and its answer may take


class HttpServer(Protocol):
    """What is used of uvicorn's server."""

    on_started: Callable[[], None]

    def run(self, sockets: list[socket.socket]) -> None:
        """Answer until told to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; the second time at once."""


def make_server(service: Service) -> HttpServer:
    """A server for sockets that are bound already.

    Raises:
        ImportError: Starlette or uvicorn is not installed.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Tells when it answers; on a signal readiness goes first, and the signal is not raised again afterwards."""

        on_started: Callable[[], None]

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            service.ready = True
            self.on_started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.hurry()
            await super().shutdown(sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.ready = False
            self.force_exit = self.should_exit
            self.should_exit = True

    config = uvicorn.Config(
        build_app(service),
        loop="asyncio",
        http=_patient_protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what a client may do wrong is told the client
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=math.ceil(2 * service.limits.timeout_s) + _STOPPING_S,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return Server(config)


def _patient_protocol() -> type[asyncio.Protocol]:
    """HTTP/1.1 over h11, which limits heads in bytes, with a limit in seconds, too.

    Uvicorn waits for a head for ever, and for ever reads the rest of a body that was refused: both keep a connection,
    of which there are not many.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        _overdue: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except h11.LocalProtocolError:  # uvicorn answers what follows a refused body, and is no HTTP, once more
                self.transport.close()
                return
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()  # a request is under way, and its body has a limit of its own
            elif self._overdue is None:
                self._overdue = self.loop.call_later(_HEAD_S, self.transport.close)

        def _forget(self) -> None:
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None

    return PatientProtocol
