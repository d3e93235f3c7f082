"""Downloads survive what networks and machines do to them; a real server on 127.0.0.1 misbehaves as told."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import download, get_variant, list_models
from fastervit_trt.models.download import OfficialFile, download_checkpoint, official_file

MODEL, FILE = "faster_vit_0_224", "fastervit_0_224_1k.pth.tar"
CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
CUT = 200_000

CHILD = f"""
import sys
from pathlib import Path
from fastervit_trt.models.download import download_checkpoint
print("ready", "requests" in sys.modules, flush=True)
print(download_checkpoint("{MODEL}", Path(sys.argv[1])))
"""


class Hub:
    """Answers as huggingface.co does: a redirect that describes the file, then a storage that sends it."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.sha256: str | None = None  # where it is not the content's
        self.linked_size: int | None = None  # where it is not the content's
        self.redirects = True  # False: a plain file server with an ETag
        self.etag = True
        self.ranges = True
        self.length = True
        self.status: list[int] = []  # answered to the next requests
        self.retry_after: str | None = None
        self.cuts: list[int] = []  # the next transfers end after so many bytes
        self.reset = False  # cut by RST, not FIN
        self.gate: threading.Event | None = None  # a transfer waits for it once CUT bytes are out
        self.asked = 0
        self.transfers: list[SimpleNamespace] = []  # range asked for, bytes sent
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def ranges_seen(self) -> list[str | None]:
        return [transfer.range for transfer in self.transfers]

    @property
    def sent(self) -> int:
        return sum(transfer.sent for transfer in self.transfers)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == f"/nvidia/FasterViT/resolve/main/{FILE}":
            self.hub.asked += 1
            if self.hub.status:
                retry = {"Retry-After": self.hub.retry_after} if self.hub.retry_after else {}
                self._headers(self.hub.status.pop(0), {"Content-Length": "0", **retry})
            elif self.hub.redirects:
                told = {
                    "X-Linked-Etag": f'"{self.hub.sha256 or hashlib.sha256(self.hub.content).hexdigest()}"',
                    "X-Linked-Size": str(self.hub.linked_size or len(self.hub.content)),
                }
                self._headers(302, {"Location": "/storage/file", "Content-Length": "0", **told})
            else:
                self._send()
        elif self.path == "/storage/file":
            self._send()
        else:
            self._headers(404, {"Content-Length": "0"})

    def _send(self) -> None:
        content, asked = self.hub.content, self.headers["Range"]
        transfer = SimpleNamespace(range=asked, sent=0)
        self.hub.transfers.append(transfer)
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.hub.ranges else 0
        mark = f"edge-{len(self.hub.transfers)}" if self.hub.redirects else hashlib.md5(content).hexdigest()
        named = {"ETag": f'"{mark}"'} if self.hub.etag else {}
        if begin >= len(content):
            self._headers(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0", **named})
            return
        if begin:
            named["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if self.hub.length:
            named["Content-Length"] = str(len(content) - begin)
        else:
            named["Connection"] = "close"
        self._headers(206 if begin else 200, named)
        end = min(len(content), begin + self.hub.cuts.pop(0)) if self.hub.cuts else len(content)
        for block in range(begin, end, 50_000):
            if self.hub.gate is not None and transfer.sent >= CUT:
                self.hub.gate.wait(30)
            piece = content[block : min(block + 50_000, end)]
            transfer.sent += len(piece)
            try:
                self.wfile.write(piece)
            except OSError:  # the client is gone
                break
        if end < len(content):
            self.close_connection = True
            if self.hub.reset:
                time.sleep(0.2)  # what RST overtakes is lost
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(CONTENT)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_BACKOFF", 0.001)
    monkeypatch.setitem(download._OFFICIAL, MODEL, OfficialFile(FILE, len(CONTENT)))
    yield hub
    if hub.gate is not None:
        hub.gate.set()
    hub.server.shutdown()
    hub.server.server_close()


def refused(cache: Path, *mentioned: str) -> str:
    """The one line of a download that fails and must leave nothing under the file's name."""
    with pytest.raises(FasterViTError) as caught:
        download_checkpoint(MODEL, cache)
    line = str(caught.value)
    assert "\n" not in line
    for text in mentioned:
        assert text in line
    assert not (cache / FILE).exists()
    return line


def parts(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.part"))


def interrupted(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is left of a download cut after CUT bytes."""
    hub.cuts = [CUT]
    with monkeypatch.context() as patch:
        patch.setattr(download, "_ATTEMPTS", 1)
        refused(cache)
    (part,) = parts(cache)
    assert part.stat().st_size == CUT
    return part


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start_child(cache: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", CHILD, str(cache)], stdout=pipe, stderr=pipe, text=True)


def test_the_whole_file_once_and_then_the_cache(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "new" / "cache"
    path = download_checkpoint(MODEL, cache)
    assert path == cache / FILE
    assert path.read_bytes() == CONTENT
    assert not parts(cache)
    out, err = capfd.readouterr()
    assert out == ""
    assert FILE in err and "300.0/300.0 kB" in err
    assert download_checkpoint("faster_vit_0_any_res", cache) == path
    assert (hub.asked, hub.ranges_seen) == (1, [None])


def test_a_file_put_into_the_cache_by_hand_is_taken(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path))
    (tmp_path / FILE).write_bytes(OTHER)
    assert download_checkpoint(MODEL) == tmp_path / FILE
    assert hub.asked == 0
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]  # the cache may be read-only


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is Linux's")
def test_the_default_cache_is_the_users(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTERVIT_TRT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download_checkpoint(MODEL) == tmp_path / "fastervit-trt" / FILE


@pytest.mark.parametrize("redirects", [True, False], ids=["hub", "plain server"])
@pytest.mark.parametrize("cuts", [[CUT], [100_000, 1, 50_000, 70_000]], ids=["once", "several times"])
def test_a_cut_connection_is_resumed_where_it_stopped(
    hub: Hub, tmp_path: Path, cuts: list[int], redirects: bool
) -> None:
    hub.cuts, hub.redirects = list(cuts), redirects
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, *(f"bytes={sum(cuts[: n + 1])}-" for n in range(len(cuts)))]
    assert hub.sent == len(CONTENT)


def test_a_reset_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.reset = [CUT], True
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, f"bytes={CUT}-"]


def test_a_connection_that_falls_silent_is_given_up_and_resumed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gate = threading.Event()
    monkeypatch.setattr(download, "_TIMEOUT", (5, 0.5))
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, f"bytes={CUT}-"]


def test_a_large_file_may_be_cut_any_number_of_times(hub: Hub, tmp_path: Path) -> None:
    hub.content, cut = CONTENT * 40, download._PROGRESS + 1000
    hub.cuts = [cut] * 9
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == hub.content
    assert len(hub.transfers) == 10 > download._ATTEMPTS
    assert hub.sent == len(hub.content)


def test_cuts_without_progress_end_in_one_line_and_keep_what_arrived(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [1000] * 100
    refused(tmp_path, hub.url, "in 6 attempts", "run again", str(tmp_path / FILE), "--checkpoint FILE")
    assert len(hub.transfers) == download._ATTEMPTS
    assert [part.stat().st_size for part in parts(tmp_path)] == [6000]
    hub.cuts = []
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.sent == len(CONTENT)


def test_a_server_that_ignores_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.ranges, hub.cuts = False, [CUT, 100_000]
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, "bytes=200000-", "bytes=100000-"]


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.content = CONTENT * 10
    hub.ranges, hub.cuts = False, [2_000_000] * 100
    refused(tmp_path, hub.url)
    assert len(hub.transfers) <= download._ATTEMPTS + 1  # the first one counts as progress


def test_a_server_without_an_etag_is_never_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.redirects, hub.etag, hub.cuts = False, False, [CUT]
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, None]
    assert not parts(tmp_path)


def test_a_body_shorter_than_told_is_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.linked_size, hub.length = len(CONTENT) + 10, False
    refused(tmp_path, f"{len(CONTENT)} bytes", f"{len(CONTENT) + 10}")


def test_a_body_longer_than_told_is_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.linked_size, hub.length = len(CONTENT) - 10, False
    refused(tmp_path, f"{len(CONTENT)} bytes", f"{len(CONTENT) - 10}")
    assert not parts(tmp_path)


def test_a_storage_with_a_file_of_another_size_is_refused_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.linked_size = len(CONTENT) + 10
    refused(tmp_path, f"{len(CONTENT)} bytes", f"{len(CONTENT) + 10}")
    assert hub.asked == 1


def test_a_page_in_place_of_the_file_is_refused_and_costs_nothing_begun(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = interrupted(hub, tmp_path, monkeypatch)
    hub.redirects, hub.ranges, hub.content = False, False, b"<html>please log in</html>"
    refused(tmp_path, "26 bytes", str(len(CONTENT)))
    assert part.read_bytes() == CONTENT[:CUT]


def test_a_storage_that_tells_no_length_is_known_to_have_stopped_early(hub: Hub, tmp_path: Path) -> None:
    hub.length, hub.cuts = False, [CUT]
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, f"bytes={CUT}-"]


def test_corrupt_content_of_the_right_size_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.sha256, hub.content = hashlib.sha256(CONTENT).hexdigest(), CONTENT[:-1] + b"\0"
    refused(tmp_path, "sha256", hub.sha256, hashlib.sha256(hub.content).hexdigest(), "--checkpoint FILE")
    assert not parts(tmp_path)
    hub.content = CONTENT
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_refusal_is_waited_out(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.status = [status, status]
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.asked == 3


def test_the_wait_a_server_asks_for_is_kept_within_bounds(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_LONGEST_WAIT", 0.3)
    hub.status, hub.retry_after = [429], "100000"
    begun = time.monotonic()
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert time.monotonic() - begun >= 0.3


def test_a_lasting_refusal_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.status = [500] * 100
    refused(tmp_path, hub.url, "500", "in 6 attempts", str(tmp_path / FILE), "--checkpoint FILE")
    assert hub.asked == download._ATTEMPTS


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_final_refusal_is_not_repeated(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.status = [status] * 100
    refused(tmp_path, hub.url, str(status), str(tmp_path / FILE), "--checkpoint FILE")
    assert hub.asked == 1


def test_offline_is_one_line_that_says_what_to_do(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}/")
    line = refused(tmp_path, "refused", str(tmp_path / FILE), "--checkpoint FILE")
    assert f"/nvidia/FasterViT/resolve/main/{FILE} in 3 attempts" in line
    assert "run again" not in line  # nothing has arrived


def test_an_endpoint_that_is_no_url(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "127.0.0.1/mirror")
    refused(tmp_path, "Invalid URL")


@pytest.mark.parametrize("redirects", [True, False], ids=["hub", "plain server"])
def test_a_file_that_changed_on_the_server_is_begun_anew(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirects: bool
) -> None:
    hub.redirects = redirects
    interrupted(hub, tmp_path, monkeypatch)
    hub.content = OTHER
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == OTHER
    assert hub.ranges_seen == [None, f"bytes={CUT}-", None]
    assert not parts(tmp_path)


def test_a_complete_part_needs_no_byte_more(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(hub, tmp_path, monkeypatch).write_bytes(CONTENT)
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.sent == CUT


def test_a_part_longer_than_the_file_is_begun_anew(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(hub, tmp_path, monkeypatch).write_bytes(CONTENT + b"?")
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen[-1] is None


def test_a_killed_download_is_resumed_by_the_next_process(hub: Hub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    child = start_child(tmp_path)
    wait_for(lambda: sum(part.stat().st_size for part in parts(tmp_path)) >= CUT)
    child.kill()
    child.communicate()
    (part,) = parts(tmp_path)
    assert part.stat().st_size == CUT
    assert not (tmp_path / FILE).exists()
    hub.gate.set()
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_seen == [None, f"bytes={CUT}-"]
    assert hub.transfers[1].sent == len(CONTENT) - CUT
    assert not parts(tmp_path)


def test_two_processes_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    children = [start_child(tmp_path) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready False\n"  # importing loads no HTTP library
    wait_for(lambda: hub.sent >= CUT)
    time.sleep(0.5)  # time for the second one to do harm
    hub.gate.set()
    for child in children:
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out) == (0, f"{tmp_path / FILE}\n"), err
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert hub.ranges_seen == [None]


def test_four_threads_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        paths = [pool.submit(download_checkpoint, MODEL, tmp_path) for _ in range(4)]
        wait_for(lambda: hub.sent >= CUT)
        time.sleep(0.2)  # time for the others to do harm
        hub.gate.set()
        assert {path.result().read_bytes() for path in paths} == {CONTENT}
    assert hub.ranges_seen == [None]


def test_no_room_is_said_before_anything_is_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = interrupted(hub, tmp_path, monkeypatch)
    missing = len(CONTENT) - CUT
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=missing - 1))
    refused(tmp_path, str(tmp_path), "free", "FASTERVIT_TRT_CACHE", "--checkpoint FILE")
    assert part.stat().st_size == CUT
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=missing))
    assert download_checkpoint(MODEL, tmp_path).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FasterViTError, match=r"cannot write to cache '.*file'.*FASTERVIT_TRT_CACHE"):
        download_checkpoint(MODEL, tmp_path / "file")


@pytest.mark.parametrize("name", ["faster_vit_digits_m", "faster_vit_7_224", ""])
def test_no_official_file(hub: Hub, tmp_path: Path, name: str) -> None:
    assert official_file(name) is None
    with pytest.raises(FasterViTError, match=f"no official checkpoint of '{name}'; .*--checkpoint FILE"):
        download_checkpoint(name, tmp_path)
    assert hub.asked == 0


def test_every_registered_model_but_those_that_ship_has_its_file() -> None:
    assert {name for name in list_models() if official_file(name) is None} == {
        name for name in list_models() if get_variant(name).shipped_weights
    }
    assert official_file("faster_vit_3_any_res") == OfficialFile("fastervit_3_224_1k.pth.tar", 1_920_000_000)
    wide = OfficialFile("fastervit_4_21k_384_w24.pth.tar", 3_590_000_000)
    assert official_file("faster_vit_4_21k_384") == official_file("faster_vit_4_21k_384_any_res") == wide
    assert len({official_file(f"faster_vit_{n}_224") for n in range(7)}) == 7
