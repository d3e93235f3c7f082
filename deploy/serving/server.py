"""A bundle and an address in, a server that answers until it is told to stop out."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fastervit_trt.console import warn
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.serving.limits import Limits
from fastervit_trt.deploy.serving.listening import make_server
from fastervit_trt.deploy.serving.service import Service
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

if TYPE_CHECKING:
    from fastervit_trt.engines.runtime.engine import Engine

__all__ = ["Serving", "serve"]

_INSTALL = "pip install 'fastervit-trt[serve]'"
_LAST_PORT = 65535
_BACKLOG = 1024


def serve(
    bundle: Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch: int | None = None,
    queue: int = 64,
    max_body_mib: float = 64,
    delay_ms: float = 2.0,
    threads: int | None = None,
    timeout_s: float = 30,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a bundle on ONNX Runtime's CPU provider until SIGINT or SIGTERM; then finish what is under way.

    Args:
        host: address to listen on. There is no encryption and no authentication: other than loopback is warned of.
        port: 0 for a free one.
        batch: images put together for one execution; the largest of the export by default.
        queue: requests that may wait for their answer; more are refused with status 429.
        max_body_mib: MiB of a request, compressed and not.
        delay_ms: milliseconds a request may wait for others to share its execution.
        threads: of ONNX Runtime; its own choice by default.
        timeout_s: seconds a request's body may take to arrive, and again its answer to come about.
        on_ready: gets "http://HOST:PORT" when requests are answered.

    Raises:
        FasterViTError: an option makes no sense, the port is in use, the export does not load, or something is not
            installed.
    """
    serving = Serving(
        bundle,
        host=host,
        port=port,
        batch=batch,
        queue=queue,
        max_body_mib=max_body_mib,
        delay_ms=delay_ms,
        threads=threads,
        timeout_s=timeout_s,
    )
    serving.run(on_ready)


class Serving:
    """A server that is bound to its port and has loaded its model; arguments as of :func:`serve`.

    Attributes:
        url: where it answers once it runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        batch: int | None = None,
        queue: int = 64,
        max_body_mib: float = 64,
        delay_ms: float = 2.0,
        threads: int | None = None,
        timeout_s: float = 30,
    ) -> None:
        _check_installed()
        largest = BatchRange.parse(bundle.export.batch).maximum
        limits = Limits.checked(
            batch=largest if batch is None else batch,
            queue=queue,
            max_body_mib=max_body_mib,
            delay_ms=delay_ms,
            timeout_s=timeout_s,
            largest=largest,
        )
        if threads is not None and threads < 1:
            raise FasterViTError(f"--threads {threads} leaves none to compute with; pass 1 or more")
        self._socket = _listening(host, port)  # first: a port in use is found out before a model is loaded
        self.url = _url(self._socket)
        try:
            self.service = Service(bundle, _warm_engine(bundle, limits.batch, threads), limits)
        except BaseException:
            self._socket.close()
            raise
        self._server = make_server(self.service)

    def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Answer until :meth:`stop` or, in the main thread, SIGINT or SIGTERM."""
        self._server.on_started = lambda: on_ready(self.url) if on_ready is not None else None
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def close(self) -> None:
        """Give port and engine back; :meth:`run` does so itself."""
        self.service.close()
        self._socket.close()

    def stop(self) -> None:
        """As SIGTERM does: not ready any more, no new requests, those under way are finished."""
        self._server.handle_exit(signal.SIGTERM, None)


def _check_installed() -> None:
    for module in ("starlette", "uvicorn", "h11"):
        if importlib.util.find_spec(module) is None:
            raise FasterViTError(f"serving needs {module}: {_INSTALL}")


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections; they wait until the server runs."""
    if not 0 <= port <= _LAST_PORT:
        raise FasterViTError(f"--port {port} is not between 0 and {_LAST_PORT}")
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FasterViTError(f"--host '{host}' is no address of this machine ({error})") from error
    # With its protocol by name: asyncio sends small answers at once (TCP_NODELAY) on such sockets only, and 40 ms later
    # on others.
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # take the port of a server that has just ended; elsewhere it means something else
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise FasterViTError(
                f"port {port} of {host} is in use; choose another --port, or 0 for a free one"
            ) from error
        raise FasterViTError(f"cannot listen on port {port} of '{host}' ({error.strerror or error})") from error
    if not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        warn(f"{host} is reachable from other machines, and there is neither encryption (TLS) nor authentication")
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warm_engine(bundle: Bundle, batch: int, threads: int | None) -> Engine:
    """The export on ONNX Runtime's CPU provider, run once, so that the first request does not pay for it."""
    from fastervit_trt.engines.runtime.engine import Engine  # which needs onnx_ir

    engine = Engine.load(bundle.export_folder, backend="ort-cpu", threads=threads)
    engine(np.zeros((batch, *bundle.export.input["shape"][1:]), np.float32))
    return engine
