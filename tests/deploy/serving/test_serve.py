"""The server as a process: it says where it answers, stops in order, and refuses what makes no sense."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.serving import serve
from fastervit_trt.deploy.serving.limits import Limits
from fastervit_trt.deploy.serving.models import models_of
from fastervit_trt.deploy.serving.server import Serving
from fastervit_trt.errors import FasterViTError
from tests.deploy.serving.running import Direct, Running, assert_close, some_images

PROCESS = """
import sys
from pathlib import Path
from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, Bundle, BundleManifest
from fastervit_trt.deploy.serving import serve
assert not {"starlette", "fastapi", "uvicorn", "onnx_ir"} & set(sys.modules), "needed before anything is served"
folder = Path(sys.argv[1])
manifest = BundleManifest.parse((folder / BUNDLE_FILE).read_text(), "bundle")
bundle = Bundle(folder, manifest, Manifest.read(folder / EXPORT_FOLDER))
serve(bundle, port=0, delay_ms=60_000, threads=1, on_ready=lambda url: print(url, flush=True))
assert not {"torch", "tensorrt", "pycuda", "tritonclient"} & set(sys.modules), "a target has none of them"
"""


def test_sigterm_under_load_loses_no_request(bundle: Bundle, direct: Direct) -> None:
    """Five requests wait for company that will not come when the signal does."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(bundle.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.communicate()[1]
        server = object.__new__(Running)  # asks another process instead of its own
        server.address, server.model = url.removeprefix("http://"), bundle.export.model
        images, answers = some_images(5), dict[int, tuple[int, bytes]]()

        def ask(number: int) -> None:
            tensor = {"name": "images", "shape": [1, 3, 224, 224], "datatype": "FP32"}
            tensor |= {"parameters": {"binary_data_size": images[number].nbytes}}
            text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            headers = {"Inference-Header-Content-Length": str(len(text))}
            status, _, body = server.ask("POST", server.infer_path(), text + images[number].tobytes(), headers)
            answers[number] = status, body

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        server.wait_for_waiting(5)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0, process.communicate()[1]
    finally:
        process.kill()
        process.communicate()
    wanted = direct(images)
    for number, (status, body) in answers.items():
        assert status == 200
        assert_close(np.frombuffer(body[-40:], "<f4"), wanted[number])


def test_a_server_that_stops_says_so_first(served: Running) -> None:
    served.serving.service.ready = False
    try:
        assert served.ask("GET", "/v2/health/live")[0] == 200
        assert served.ask("GET", "/v2/health/ready")[0] == 503
        assert served.ask("GET", f"/v2/models/{served.model}/ready")[0] == 503
        assert "stopping" in served.refusal(503, b"{}")
        status, _, listed = served.ask("POST", "/v2/repository/index", b'{"ready": true}')
        assert status == 200 and json.loads(listed) == []
    finally:
        served.serving.service.ready = True


def test_small_answers_leave_at_once(bundle: Bundle) -> None:
    """asyncio switches Nagle's algorithm off on sockets that say they are TCP; else each answer takes 40 ms more."""
    serving = Serving(bundle, threads=1)
    assert serving._socket.proto == socket.IPPROTO_TCP
    serving.close()


def test_a_port_in_use_is_one_line(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(FasterViTError, match=f"port {port} of 127.0.0.1 is in use; choose another --port"):
            serve(bundle, port=port)


def test_other_machines_are_warned_of(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    Serving(bundle, host="0.0.0.0", threads=1).close()
    assert "neither encryption (TLS) nor authentication" in capfd.readouterr().err
    Serving(bundle, host="127.0.0.1", threads=1).close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 0}, "--batch 0 is not between 1 and 8"),
        ({"batch": 9}, "--batch 9 is not between 1 and 8"),
        ({"queue": 0}, "--queue 0"),
        ({"max_body_mib": 0}, "--max-body 0 MiB"),
        ({"delay_ms": -1}, "--delay -1 ms"),
        ({"timeout_s": 0}, "--timeout 0 s"),
        ({"threads": 0}, "--threads 0"),
        ({"port": 65536}, "--port 65536"),
        ({"host": "no.such.host.invalid"}, "no address of this machine"),
        ({"host": "192.0.2.1", "port": 0}, "cannot listen"),  # an address for documentation: nobody has it
    ],
)
def test_options_that_make_no_sense_are_named(bundle: Bundle, options: dict[str, int], says: str) -> None:
    with pytest.raises(FasterViTError, match=says):
        serve(bundle, **options)  # type: ignore[arg-type]


def test_without_a_web_server_it_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(FasterViTError, match=r"pip install 'fastervit-trt\[serve\]'"):
        serve(bundle)


def test_a_bundle_without_labels_is_served_without_them(bundle: Bundle) -> None:
    unlabelled = replace(bundle, manifest=replace(bundle.manifest, labels=None))
    for model in models_of(unlabelled, Limits(8, 64, 1 << 20, 0.0, 30.0)).values():
        assert model.labels == {} and "label_filename" not in model.config()["output"][0]
