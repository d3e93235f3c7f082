"""Requests nobody would send: each is answered in one line, never with 500, and the server goes on."""

from __future__ import annotations

import http.client
import json
from typing import Any

import numpy as np
import pytest

from tests.deploy.serving.running import Running, some_images

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402  # after the skip
from hypothesis import strategies as st  # noqa: E402

BOUNDED = settings(
    max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["images", "picture", "logits", ""]) | st.text(max_size=6)
sizes = st.sampled_from([-1, 0, 1, 2, 3, 224, 2**31, 2**63]) | anything
shapes = st.lists(sizes, max_size=5) | st.just([1, 3, 224, 224]) | st.just([1, 1])
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification", "timeout", "priority"]),
    st.integers(-2, 40) | anything,
    max_size=3,
)


def with_any(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these members, each as it should be or anything else."""
    return st.fixed_dictionaries({}, optional={name: kind | anything for name, kind in members.items()})


tensors = with_any(
    name=names,
    datatype=st.sampled_from(["FP32", "BYTES", "FP16", "INT8"]),
    shape=shapes,
    data=st.lists(anything, max_size=4),
    parameters=parameters,
)
requests = with_any(
    id=st.text(max_size=5),
    inputs=st.lists(tensors, max_size=3),
    outputs=st.lists(with_any(name=names, parameters=parameters), max_size=3),
    parameters=parameters,
)
bodies = st.tuples(requests.map(lambda content: json.dumps(content).encode()), st.binary(max_size=40))
lengths = st.sampled_from(["exact", "none"]) | st.integers(-5, 300).map(str) | st.text("0123456789 +x", max_size=6)


@pytest.fixture(scope="module")
def connection(served: Running) -> http.client.HTTPConnection:
    host, port = served.address.split(":")
    return http.client.HTTPConnection(host, int(port), timeout=10)


def answer(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, bytes]:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("suffix", ["", "_pictures"])
def test_no_request_breaks_the_server(served: Running, connection: http.client.HTTPConnection, suffix: str) -> None:
    @BOUNDED
    @given(bodies, lengths)
    def ask(parts: tuple[bytes, bytes], length: str) -> None:
        text, binary = parts
        headers = {} if length == "none" else {"Inference-Header-Content-Length": length.strip() or "0"}
        if length == "exact":
            headers = {"Inference-Header-Content-Length": str(len(text))}
        status, content = answer(connection, served.infer_path(suffix), text + binary, headers)
        assert status in (400, 413), content
        assert list(json.loads(content)) == ["error"] and b"Traceback" not in content

    ask()
    assert served.ask("GET", "/v2/health/ready")[0] == 200


def test_no_bytes_break_the_server(served: Running, connection: http.client.HTTPConnection) -> None:
    @BOUNDED
    @given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "identity", "br", "gzip, gzip"]))
    def ask(body: bytes, encoding: str) -> None:
        status, content = answer(connection, served.infer_path(), body, {"Content-Encoding": encoding})
        assert status in (400, 415) and b"Traceback" not in content

    ask()
    assert served.ask("GET", "/v2/health/ready")[0] == 200


def test_a_request_that_was_changed_somewhere_is_answered_or_refused(
    served: Running, connection: http.client.HTTPConnection
) -> None:
    image = some_images(1)
    tensor = {"name": "images", "shape": [1, 3, 224, 224], "datatype": "FP32"}
    tensor |= {"parameters": {"binary_data_size": image.nbytes}}
    text = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]})

    @settings(BOUNDED, max_examples=60)
    @given(st.integers(0, len(text) - 1), st.characters(max_codepoint=126, min_codepoint=32))
    def ask(where: int, character: str) -> None:
        changed = (text[:where] + character + text[where + 1 :]).encode()
        headers = {"Inference-Header-Content-Length": str(len(changed))}
        status, content = answer(connection, served.infer_path(), changed + image.tobytes(), headers)
        assert status in (200, 400), content

    ask()
    assert np.isfinite(image).all()
    assert served.ask("GET", "/v2/health/ready")[0] == 200
