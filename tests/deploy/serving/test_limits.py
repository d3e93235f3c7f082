"""What is too large, too much, too slow or gone away is refused, and nobody else notices."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.serving import listening
from fastervit_trt.deploy.serving.limits import MOST_JSON_BYTES
from tests.deploy.serving.running import Direct, Running, assert_close, running, some_images, wait_for

MIB = 1 << 20
AGES_MS = 60_000  # a request alone waits for company so long, unless the server stops: longer than anybody waits here


@pytest.fixture(scope="module")
def small(bundle: Bundle) -> Iterator[Running]:
    """Takes 2 MiB, and has patience for a second."""
    with running(bundle, max_body_mib=2, timeout_s=1) as server:
        yield server


def connected(server: Running) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(server: Running, *lines: str) -> bytes:
    return "\r\n".join([f"POST {server.infer_path()} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def one_image(seed: int = 0) -> tuple[bytes, dict[str, str]]:
    image = some_images(1, seed)
    parameters = {"binary_data_size": image.nbytes}
    tensor = {"name": "images", "shape": list(image.shape), "datatype": "FP32", "parameters": parameters}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return text + image.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def received(connection: socket.socket) -> bytes:
    """Until the other side closes, or a response is complete."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
        text, separator, body = got.partition(b"\r\n\r\n")
        lengths = [line for line in text.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if separator and lengths and len(body) >= int(lengths[0].partition(b":")[2]):
            break
    return got


def test_a_failure_inside_is_one_line_for_the_client_and_one_for_the_operator(
    small: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(images: np.ndarray) -> tuple[np.ndarray, ...]:
        raise MemoryError("no room for a secret")

    body, headers = one_image()
    monkeypatch.setattr(small.serving.service._batcher, "_run", out_of_memory)
    assert "secret" not in small.refusal(500, body, headers)
    assert f"warning: a request for '{small.model}' failed: MemoryError: no room for a secret" in capfd.readouterr().err
    monkeypatch.undo()
    assert small.ask("POST", small.infer_path(), body, headers)[0] == 200


def test_an_upload_without_end_is_refused_at_the_limit(small: Running) -> None:
    with connected(small) as connection:
        connection.sendall(head(small, "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sent = 0
        connection.setblocking(False)
        deadline, answer = time.monotonic() + 20, b""
        while not answer and time.monotonic() < deadline:
            try:
                sent += connection.send(chunk)
            except BlockingIOError:
                time.sleep(0.001)
            try:
                answer = connection.recv(65536)
            except BlockingIOError:
                continue
    assert answer.startswith(b"HTTP/1.1 413")
    assert 2 * MIB <= sent < 32 * MIB  # what fits the buffers of the system comes on top


def test_what_follows_a_refused_body_ends_the_connection_quietly(
    small: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(small) as connection:
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        connection.sendall(head(small, "Transfer-Encoding: chunked") + chunk * 33)
        assert received(connection).startswith(b"HTTP/1.1 413")
        connection.sendall(b"no chunk\r\n")
        assert connection.recv(1) == b""
    assert small.ask("GET", "/v2/health/ready")[0] == 200
    assert caplog.text == ""


def test_nothing_of_an_answered_request_stays_behind(small: Running) -> None:
    body, headers = one_image()
    host, port = small.address.split(":")
    keeping = http.client.HTTPConnection(host, int(port), timeout=20)
    for _ in range(8):
        keeping.request("POST", small.infer_path(), body, headers)
        assert len(keeping.getresponse().read()) > 40
    server: Any = small.serving._server
    wait_for(lambda: len(asyncio.all_tasks(server.servers[0].get_loop())) == 1)  # the server's own
    keeping.close()
    admission = small.serving.service.admission
    assert (admission.waiting, admission.held) == (0, 0)
    with admission.lease() as lease:
        lease.grow(100)
        assert admission.held == 100
    lease.grow(100)  # a thread that decodes for a client who has gone away
    assert admission.held == 0


def test_a_length_that_is_too_large_is_refused_before_a_byte_of_it_arrives(small: Running) -> None:
    with connected(small) as connection:
        connection.sendall(head(small, f"Content-Length: {2 * MIB + 1}"))
        assert received(connection).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_bomb_is_refused_and_not_even_unpacked(small: Running, algorithm: str) -> None:
    bomb = (gzip if algorithm == "gzip" else zlib).compress(bytes(64 * MIB))
    assert len(bomb) < MIB
    tracemalloc.start()
    try:
        assert "larger than" in small.refusal(413, bomb, {"Content-Encoding": algorithm})
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    assert small.serving.service.admission.held == 0


def test_damaged_compression_is_the_clients_fault(small: Running) -> None:
    whole = gzip.compress(b'{"inputs":[]}')
    for body, says in (
        (whole[:-4], "ends before"),
        (b"", "ends before"),
        (b"no gzip", "no gzip data"),
        (whole + b"more", "something follows"),
        (whole, "names 0 tensors"),
    ):
        assert says in small.refusal(400, body, {"Content-Encoding": "gzip"})


def test_compressed_nothing_is_limited_like_everything_else(small: Running) -> None:
    empty_blocks = gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * (2 * MIB // 5 + 1)
    assert "larger than" in small.refusal(413, iter([empty_blocks]), {"Content-Encoding": "gzip"})


def test_json_beyond_its_limit_is_not_parsed(served: Running) -> None:
    assert "no JSON" in served.refusal(400, b" " * MOST_JSON_BYTES)
    assert "as binary data" in served.refusal(413, b" " * (MOST_JSON_BYTES + 1))


def test_a_half_request_blocks_nobody_and_is_given_up(small: Running, direct: Direct) -> None:
    body, headers = one_image()
    lines = [f"{name}: {value}" for name, value in headers.items()]
    with connected(small) as stuck, connected(small) as silent:
        silent.sendall(b"POST /v2/mod")
        stuck.sendall(head(small, f"Content-Length: {len(body)}", *lines) + body[: len(body) // 2])
        status, _, answer = small.ask("POST", small.infer_path(), body, headers)
        assert status == 200
        assert_close(np.frombuffer(answer[-40:], "<f4")[None], direct(some_images(1)))
        assert received(stuck).startswith(b"HTTP/1.1 408")
    assert small.serving.service.admission.held == 0


def test_a_connection_that_does_not_finish_its_head_is_closed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_HEAD_S", 0.3)
    with running(bundle, max_body_mib=2) as server:
        with connected(server) as silent, connected(server) as slow, connected(server) as endless:
            slow.sendall(b"GET /v2 HTTP/1.1\r\n")
            endless.sendall(head(server, "Content-Length: 99999999"))
            assert received(endless).startswith(b"HTTP/1.1 413")
            endless.sendall(b" ")
            for connection in (silent, slow, endless):
                assert connection.recv(1) == b""
        body, headers = one_image()
        assert server.ask("POST", server.infer_path(), body, headers)[0] == 200


def test_a_head_without_end_is_refused(small: Running) -> None:
    with connected(small) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert received(connection).startswith(b"HTTP/1.1 400")


def test_a_full_queue_refuses_and_loses_nothing(bundle: Bundle, direct: Direct) -> None:
    answers: dict[int, bytes] = {}

    def ask(server: Running, seed: int) -> None:
        body, headers = one_image(seed)
        status, _, answers[seed] = server.ask("POST", server.infer_path(), body, headers)
        assert status == 200

    with running(bundle, queue=3, delay_ms=AGES_MS) as server:
        threads = [threading.Thread(target=ask, args=(server, seed)) for seed in range(3)]
        for thread in threads:
            thread.start()
        server.wait_for_waiting(3)
        body, headers = one_image()
        status, answered, _ = server.ask("POST", server.infer_path(), body, headers)
        assert status == 429 and answered["retry-after"] == "1"
        assert server.metric(f'nv_inference_request_failure{{model="{server.model}",version="1",reason="REJECTED"') == 1
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        server.stop()
    for thread in threads:
        thread.join()
    for seed in range(3):
        assert_close(np.frombuffer(answers[seed][-40:], "<f4")[None], direct(some_images(1, seed)))


def test_memory_that_all_requests_hold_is_limited(bundle: Bundle) -> None:
    with running(bundle, max_body_mib=1, delay_ms=AGES_MS) as server:
        body, headers = one_image()  # 0.57 MiB, and as much again as an array, of 4 MiB
        threads = [
            threading.Thread(target=server.ask, args=("POST", server.infer_path(), body, headers)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.serving.service.admission.held >= 3 * 2 * some_images(1).nbytes)
        assert "bytes" in server.refusal(429, body, headers)
        server.stop()
        assert server.serving.service.admission.held == 0
    for thread in threads:
        thread.join()


def test_a_client_that_goes_away_is_dropped_before_it_costs_anything(bundle: Bundle) -> None:
    body, headers = one_image()
    lines = [f"{name}: {value}" for name, value in headers.items()]
    with running(bundle, delay_ms=AGES_MS) as server:
        with connected(server) as connection:
            connection.sendall(head(server, f"Content-Length: {len(body)}", *lines) + body)
            server.wait_for_waiting(1)
        server.wait_for_waiting(0)
        with connected(server) as connection:
            connection.sendall(head(server, f"Content-Length: {len(body)}", *lines) + body[:1000])
        failures = f'nv_inference_request_failure{{model="{server.model}",version="1",reason="CANCELED"'
        wait_for(lambda: server.metric(failures) == 2)
        server.stop()
        statistics = server.serving.service.statistics.json(server.model)
    assert statistics["execution_count"] == 0
    assert server.serving.service.admission.held == 0


@pytest.mark.parametrize("microseconds", [None, 100_000])
def test_an_answer_that_takes_too_long_is_given_up(bundle: Bundle, microseconds: int | None) -> None:
    with running(bundle, delay_ms=AGES_MS, timeout_s=20 if microseconds else 0.3) as server:
        image = some_images(1)
        parameters = {"timeout": microseconds} if microseconds else {}
        tensor = {"name": "images", "shape": list(image.shape), "datatype": "FP32"}
        tensor["parameters"] = {"binary_data_size": image.nbytes}  # type: ignore[assignment]
        text = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        assert "no answer within" in server.refusal(503, text + image.tobytes(), headers)
        server.stop()
        assert server.serving.service.statistics.json(server.model)["execution_count"] == 0
