"""A server on a free port of this machine, asked over HTTP; images, and how far their logits may be off."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.serving.server import Serving

Direct = Callable[[np.ndarray], np.ndarray]


class Running:
    """A server in a thread; ``address`` is "127.0.0.1:PORT"."""

    def __init__(self, serving: Serving) -> None:
        self.serving, self.address = serving, serving.url.removeprefix("http://")
        self.model = serving.service.bundle.export.model
        ready = threading.Event()
        self._thread = threading.Thread(target=serving.run, args=(lambda url: ready.set(),))
        self._thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        self.serving.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of a response; an iterator is sent in chunks."""
        host, port = self.address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def infer_path(self, suffix: str = "") -> str:
        return f"/v2/models/{self.model}{suffix}/infer"

    def refusal(
        self, status: int, body: bytes | Iterator[bytes], headers: dict[str, str] | None = None, path: str | None = None
    ) -> str:
        """The error line of an inference that must end with ``status``."""
        got, _, answer = self.ask("POST", path or self.infer_path(), body, headers)
        assert got == status, answer
        content = json.loads(answer)
        assert list(content) == ["error"] and "Traceback" not in content["error"] and "\n" not in content["error"]
        return str(content["error"])

    def statistics(self, suffix: str = "") -> dict[str, Any]:
        status, _, body = self.ask("GET", f"/v2/models/{self.model}{suffix}/stats")
        assert status == 200
        (statistics,) = json.loads(body)["model_stats"]
        return dict(statistics)

    def metric(self, line: str) -> int:
        """The value of the metric whose line begins so."""
        text = self.ask("GET", "/metrics")[2].decode()
        (value,) = [got.rsplit(" ", 1)[1] for got in text.splitlines() if got.startswith(line)]
        return int(value)

    def wait_for_waiting(self, count: int) -> None:
        """Until so many requests wait for their answer."""
        wait_for(lambda: self.metric("nv_inference_pending_request_count") == count)


@contextmanager
def running(bundle: Bundle, **options: Any) -> Iterator[Running]:
    server = Running(Serving(bundle, threads=1, **options))
    try:
        yield server
    finally:
        server.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    """To the rounding of float32 sums in another order: what else is in the batch may change no more."""
    assert got.shape == wanted.shape and got.dtype == np.float32
    error = np.abs(got - wanted).max()
    assert error <= 1e-5 * np.abs(wanted).max(), f"{error} of {np.abs(wanted).max()}"


def some_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 224, 224)).astype(np.float32)
