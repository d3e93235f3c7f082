"""The engine cache: real files, real processes that race or are killed, real damage."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastervit_trt.engines import cache as cache_module
from fastervit_trt.engines.cache import CacheKey, EngineCache, graph_sha256, parse_size
from fastervit_trt.engines.private_folder import alone
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import cache_folder

KEY = CacheKey(
    onnx_sha256="a" * 64,
    runtime="tensorrt",
    version="11.4.0.106",
    target="8.9",
    gpu="NVIDIA L4",
    driver="580.65.06",
    precision="fp16",
    profiles=((1, 8, 32),),
    options={"level": 3, "workspace_mib": None, "hardware_compatibility": "none"},
    plugins=("0.1.0", "b" * 64),
)
RECORD = {"file": "model.trt-sm89.engine", "profiles": [[1, 8, 32]], "plugins": None, "build_seconds": 1.25}
ENGINE = bytes(range(256)) * 300  # larger than one byte flipped could be missed in
posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")


@pytest.fixture(autouse=True)
def _not_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTERVIT_TRT_CACHE_LIMIT", raising=False)


@pytest.fixture
def cache() -> EngineCache:
    return EngineCache.default()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "built.engine"
    path.write_bytes(ENGINE)
    return path


def keys(count: int) -> list[CacheKey]:
    return [replace(KEY, onnx_sha256=f"{n:064x}") for n in range(count)]


def use_at(cache: EngineCache, key: CacheKey, seconds: float) -> None:
    """Pretend that the entry was used last at ``seconds``."""
    os.utime(cache.folder / key.digest / "SHA256SUMS", (seconds, seconds))


# --- the key ---


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "c" * 64},
        {"runtime": "tensorrt-rtx"},
        {"version": "11.4.1.1"},
        {"target": "9.0"},
        {"gpu": "NVIDIA L40S"},
        {"gpu": None},
        {"driver": "580.95.05"},
        {"precision": "bf16"},
        {"profiles": ((1, 8, 64),)},
        {"profiles": ((1, 8, 32), (1, 1, 1))},
        {"options": {"level": 4, "workspace_mib": None, "hardware_compatibility": "none"}},
        {"options": {"level": 3, "workspace_mib": None}},
        {"plugins": ("0.1.0", "c" * 64)},
        {"plugins": None},
        {"builder_schema": KEY.builder_schema + 1},
        {"platform": "linux-other"},
    ],
)
def test_whatever_changes_the_engine_is_another_entry(cache: EngineCache, engine: Path, change: dict[str, Any]) -> None:
    cache.put(KEY, engine, RECORD)
    assert cache.get(KEY) is not None
    assert cache.get(replace(KEY, **change)) is None


def test_the_order_of_options_and_the_process_do_not_change_the_key() -> None:
    again = replace(KEY, options=tuple(reversed(tuple(dict(KEY.options).items()))))
    assert again == KEY and again.digest == KEY.digest
    command = "import sys; sys.path.insert(0, ''); from tests.engines.test_cache import KEY; print(KEY.digest)"
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=root)
    assert told.stdout.strip() == KEY.digest


def test_weights_beside_the_graph_count(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    onnx.save(model, inside)
    onnx.save(model, outside, save_as_external_data=True, location="weights.data", size_threshold=0)
    assert graph_sha256(inside) == cache_module.sha256_file(inside)
    first = graph_sha256(outside)
    assert first == graph_sha256(outside) != cache_module.sha256_file(outside)
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert graph_sha256(outside) != first
    data.unlink()
    with pytest.raises(FasterViTError, match=r"weights\.data', which holds weights of .*outside\.onnx', is missing"):
        graph_sha256(outside)


# --- what is put is what is got ---


def test_an_engine_comes_back_with_its_record_and_a_readable_key(
    cache: EngineCache, engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cache.get(KEY) is None
    assert not cache.folder.exists()  # looking leaves nothing behind
    cache.put(KEY, engine, RECORD)
    engine.unlink()
    found = EngineCache.default().get(KEY)
    assert found is not None and found.path.read_bytes() == ENGINE and found.record == RECORD
    assert found.copy_to(tmp_path / "copy") and (tmp_path / "copy").read_bytes() == ENGINE
    key = json.loads((found.path.parent / "key.json").read_text())
    assert (key["version"], key["gpu"], key["profiles"]) == ("11.4.0.106", "NVIDIA L4", [[1, 8, 32]])
    assert capfd.readouterr().err == ""


def test_an_intact_entry_stays_as_it_is(cache: EngineCache, engine: Path) -> None:
    cache.put(KEY, engine, RECORD)
    engine.write_bytes(b"built once more, with other timings")
    cache.put(KEY, engine, {"file": "other"})
    found = cache.get(KEY)
    assert found is not None and found.path.read_bytes() == ENGINE and found.record == RECORD


def test_a_copy_of_what_vanished_or_changed_is_none(cache: EngineCache, engine: Path, tmp_path: Path) -> None:
    cache.put(KEY, engine, RECORD)
    found = cache.get(KEY)
    assert found is not None
    found.path.write_bytes(ENGINE[:-1] + b"?")
    assert not found.copy_to(tmp_path / "copy")
    cache.clear()
    assert not found.copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["engine", "record.json", "key.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["first", "middle", "last", "shorter", "longer", "missing", "binary"])
def test_damage_is_noticed_and_built_anew(
    cache: EngineCache, engine: Path, capfd: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    cache.put(KEY, engine, RECORD)
    path = cache.folder / KEY.digest / name
    size = path.stat().st_size
    if damage in ("first", "middle", "last"):
        flip(path, {"first": 0, "middle": size // 2, "last": size - 2}[damage])  # the last is a line break
    elif damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"shorter": content[:-3], "longer": content + b"x", "binary": b"\xff\xfe\x00"}[damage])
    assert cache.get(KEY) is None
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and KEY.digest in lines[0] and "damaged" in lines[0]
    assert not path.parent.exists()
    cache.put(KEY, engine, RECORD)
    found = cache.get(KEY)
    assert found is not None and found.path.read_bytes() == ENGINE


@pytest.mark.parametrize("name", ["engine", "record.json", "key.json"])
def test_a_file_without_checksum_is_not_believed(cache: EngineCache, engine: Path, name: str) -> None:
    cache.put(KEY, engine, RECORD)
    sums = cache.folder / KEY.digest / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if not line.endswith(f"  {name}\n")))
    assert cache.get(KEY) is None


def test_put_replaces_a_damaged_entry(cache: EngineCache, engine: Path) -> None:
    cache.put(KEY, engine, RECORD)
    flip(cache.folder / KEY.digest / "engine", 5)
    cache.put(KEY, engine, RECORD)
    found = cache.get(KEY)
    assert found is not None and found.path.read_bytes() == ENGINE


def test_an_entry_under_another_name_is_not_believed(cache: EngineCache, engine: Path) -> None:
    cache.put(KEY, engine, RECORD)
    other = replace(KEY, target="9.0")
    (cache.folder / KEY.digest).rename(cache.folder / other.digest)
    assert cache.get(other) is None


# --- the limit ---


def test_those_unused_for_longest_make_room(engine: Path) -> None:
    cache = EngineCache(cache_folder() / "engines", 3 * len(ENGINE) + 10_000)
    a, b, c, d = keys(4)
    for age, key in enumerate((a, b, c)):
        cache.put(key, engine, RECORD)
        use_at(cache, key, 1000 + age)
    assert cache.get(a) is not None  # now the freshest
    cache.put(d, engine, RECORD)
    assert [cache.get(key) is not None for key in (a, b, c, d)] == [True, False, True, True]
    assert 3 * len(ENGINE) < cache.size_bytes() <= cache.limit_bytes
    assert [entry.key["onnx_sha256"] for entry in cache.entries()][-1] == d.onnx_sha256


def test_what_was_just_put_stays_though_it_fills_the_cache_alone(engine: Path) -> None:
    cache = EngineCache(cache_folder() / "engines", len(ENGINE))
    first, second = keys(2)
    cache.put(first, engine, RECORD)
    use_at(cache, first, 4e9)  # a clock that was wrong once
    cache.put(second, engine, RECORD)
    assert cache.get(first) is None and cache.get(second) is not None


def test_an_engine_beyond_the_limit_is_not_kept_and_costs_no_other(
    engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = EngineCache(cache_folder() / "engines", len(ENGINE) + 10_000)
    cache.put(KEY, engine, RECORD)
    engine.write_bytes(ENGINE * 2)
    other = replace(KEY, target="9.0")
    cache.put(other, engine, RECORD)
    assert cache.get(other) is None and cache.get(KEY) is not None
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "warning: engine 'built.engine' of 0.2 MB is not cached: the limit of the cache is 0.1 MB "
        "(FASTERVIT_TRT_CACHE_LIMIT)"
    ]


def test_timing_caches_count_and_make_room(engine: Path) -> None:
    cache = EngineCache(cache_folder() / "engines", 2 * len(ENGINE))
    cache.put(KEY, engine, RECORD)
    use_at(cache, KEY, 1000)
    before = cache.size_bytes()
    cache.store_timing_cache("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", b"t" * 1000)
    assert cache.size_bytes() == before + 1000 + 64 and cache.get(KEY) is not None  # with its checksum
    use_at(cache, KEY, 1000)
    cache.store_timing_cache("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", b"t" * len(ENGINE))
    assert cache.get(KEY) is None
    timing = cache.timing_cache("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9")
    assert timing is not None
    os.utime(timing, (1000, 1000))
    cache.put(KEY, engine, RECORD)
    assert not timing.exists() and cache.get(KEY) is not None
    assert cache.clear() > len(ENGINE)
    assert cache.entries() == [] and cache.size_bytes() == 0 and cache.get(KEY) is None


def test_clear_and_the_limit_reach_damaged_entries(cache: EngineCache, engine: Path) -> None:
    cache.put(KEY, engine, RECORD)
    (cache.folder / KEY.digest / "SHA256SUMS").unlink()
    (cache.folder / KEY.digest / "key.json").write_bytes(b"\xff")
    assert cache.size_bytes() >= len(ENGINE)
    cache.clear()
    assert not (cache.folder / KEY.digest).exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("2T", 2 * 10**12), ("1234", 1234), ("0", 0)],
)
def test_limits_as_people_write_them(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    assert parse_size(text) == size
    monkeypatch.setenv("FASTERVIT_TRT_CACHE_LIMIT", text)
    assert EngineCache.default().limit_bytes == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "20 XB", "1e9", "20IB", "unlimited"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(FasterViTError, match=r"is no size for the engine cache; FASTERVIT_TRT_CACHE_LIMIT takes 20GB"):
        parse_size(text)


def test_the_default_is_20_gb_in_the_folder_asked_for(tmp_path: Path) -> None:
    assert EngineCache.default().limit_bytes == 20 * 10**9
    assert EngineCache.default().folder == tmp_path / "cache" / "engines"


# --- timing caches ---


def test_timing_caches_belong_to_version_gpu_and_target(cache: EngineCache) -> None:
    of = ("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9")
    assert cache.timing_cache(*of) is None
    cache.store_timing_cache(*of, b"first")
    cache.store_timing_cache(*of, b"second")
    path = cache.timing_cache(*of)
    assert path is not None and path.read_bytes() == b"second"
    for other in (
        ("tensorrt", "11.4.1.1", "NVIDIA L4", "8.9"),
        ("tensorrt", "11.4.0.106", "NVIDIA_L4", "8.9"),  # reads the same in a file name
        ("tensorrt", "11.4.0.106", "NVIDIA L4", "9.0"),
        ("tensorrt", "11.4.0.106", None, "8.9"),
        ("tensorrt-rtx", "1.7.1.116", "NVIDIA L4", "8.9"),
    ):
        assert cache.timing_cache(*other) is None
    cache.store_timing_cache("tensorrt-rtx", "1.7.1.116", "NVIDIA L4", "8.9", b"deprecated")
    assert [entry.path for entry in cache.entries()] == [path]


@pytest.mark.parametrize("damage", ["data", "checksum", "no checksum"])
def test_a_damaged_timing_cache_is_ignored(cache: EngineCache, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    of = ("tensorrt", "10.3.0", "Orin", "8.7")
    cache.store_timing_cache(*of, b"times of kernels")
    path = cache.timing_cache(*of)
    assert path is not None
    if damage == "data":
        flip(path, 3)
    elif damage == "checksum":
        path.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    else:
        path.with_suffix(".sha256").unlink()
    assert cache.timing_cache(*of) is None
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "damaged" in lines[0]
    cache.store_timing_cache(*of, b"anew")
    assert cache.timing_cache(*of) == path and path.read_bytes() == b"anew"


# --- whose folder it is ---


@posix
def test_the_folder_is_for_the_user_alone(cache: EngineCache, engine: Path) -> None:
    old = os.umask(0)
    try:
        cache.put(KEY, engine, RECORD)
        cache.store_timing_cache("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", b"t")
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    found = cache.get(KEY)
    assert found is not None


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: EngineCache, engine: Path, capfd: pytest.CaptureFixture[str], mode: int
) -> None:
    cache.put(KEY, engine, RECORD)
    cache.folder.chmod(mode)
    before = sorted(cache.folder.rglob("*"))
    other = replace(KEY, target="9.0")
    assert cache.get(KEY) is None and cache.get(KEY) is None
    cache.put(other, engine, RECORD)
    cache.store_timing_cache("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", b"t")
    assert cache.clear() == 0
    assert sorted(cache.folder.rglob("*")) == before
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"engine cache '{cache.folder}' is not used: it can be written by other users (mode {mode:04o}" in lines[0]
    cache.folder.chmod(0o755)  # others may read
    assert EngineCache.default().get(KEY) is not None


@posix
def test_a_folder_of_another_user_is_not_used(
    cache: EngineCache, engine: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(KEY, engine, RECORD)
    if os.geteuid() == 0:
        os.chown(cache.folder, 4242, -1)
    else:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert cache.get(KEY) is None
    assert "is not used: it belongs to another user (uid " in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_warning(
    engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = EngineCache.default()
    cache.put(KEY, engine, RECORD)
    cache.put(KEY, engine, RECORD)
    assert cache.get(KEY) is None and cache.clear() == 0 and cache.entries() == []
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "is not used: " in lines[0] and "FASTERVIT_TRT_CACHE" in lines[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_half_entry(
    cache: EngineCache, engine: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        disk = Path("/dev/full") if mode == "wb" and path.name == "engine" else path
        return real(disk, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    cache.put(KEY, engine, RECORD)
    assert "No space left on device" in capfd.readouterr().err
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


# --- processes ---

PUTTER = """
import sys
sys.path.insert(0, "")
from pathlib import Path
from fastervit_trt.engines.cache import EngineCache
from tests.engines.test_cache import KEY, RECORD
cache = EngineCache.default()
"""


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUTTER + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=pipe, stderr=pipe, text=True)


@posix
def test_a_killed_writer_leaves_only_rubbish_that_is_cleaned(
    cache: EngineCache, engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "endless.engine"
    os.mkfifo(pipe)  # the writer waits for its end, in the middle of copying
    with run("cache.put(KEY, Path(sys.argv[1]), RECORD)", pipe) as writer, pipe.open("wb") as source:
        source.write(ENGINE * 20)  # more than is copied at once
        source.flush()
        while not (left := list(cache.folder.glob(".tmp-*/engine"))) or not left[0].stat().st_size:
            assert writer.poll() is None
        assert cache.get(KEY) is None  # neither half an engine nor a wait
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
    assert left[0].exists()
    assert cache.get(KEY) is None and cache.entries() == []
    cache.put(replace(KEY, target="9.0"), engine, RECORD)  # the lock died with its holder
    assert list(cache.folder.glob(".tmp-*")) == []
    assert capfd.readouterr().err == ""


def test_many_writers_and_readers_of_one_key(cache: EngineCache, tmp_path: Path) -> None:
    code = """
path, copy = Path(sys.argv[1]), Path(sys.argv[1] + ".copy")
for turn in range(30):
    path.write_bytes(bytes([int(sys.argv[2])]) * (100_000 + turn))  # no two builds yield the same bytes
    cache.put(KEY, path, {"by": [sys.argv[2], turn]})
    found = cache.get(KEY)
    if found is not None and found.copy_to(copy):
        by, turn_of = found.record["by"]
        assert copy.read_bytes() == bytes([int(by)]) * (100_000 + turn_of), found
        print("hit")
    if turn % 10 == 9 and sys.argv[2] == "1":
        cache.clear()
"""
    workers = [run(code, tmp_path / f"engine-{n}", n) for n in range(1, 4)]
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0 and err == ""
        assert out.count("hit") > 0
    assert list(cache.folder.glob(".tmp-*")) == []


def test_a_reader_waits_for_the_checksum_of_a_new_timing_cache(
    cache: EngineCache, capfd: pytest.CaptureFixture[str]
) -> None:
    of = ("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9")
    cache.store_timing_cache(*of, b"old")
    path, found = cache.timing_cache(*of), []
    assert path is not None
    reader = threading.Thread(target=lambda: found.append(cache.timing_cache(*of)))
    with alone(cache.folder):  # as a writer is between its two files
        path.write_bytes(b"new")
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        path.with_suffix(".sha256").write_text(hashlib.sha256(b"new").hexdigest())
    reader.join(30)
    assert found == [path] and capfd.readouterr().err == ""


def test_threads_take_turns_at_the_timing_cache(cache: EngineCache) -> None:
    of = ("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9")
    failures = []

    def work(letter: bytes) -> None:
        for length in range(1, 30):
            cache.store_timing_cache(*of, letter * length * 1000)
            path = cache.timing_cache(*of)
            if path is None or len(set(path.read_bytes())) != 1:
                failures.append((letter, length))

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
