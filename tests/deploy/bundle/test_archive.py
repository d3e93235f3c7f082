"""Archives of bundles: the same bytes everywhere, and whatever else anybody puts into one is refused."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastervit_trt.deploy.bundle.archive import Admit, is_archive, read_archive, write_archive
from fastervit_trt.deploy.bundle.contents import Declared, check_names, declare
from fastervit_trt.deploy.bundle.manifest import BundleManifest
from fastervit_trt.deploy.bundle.signature import admit_signer, sign_bundle, verify_bundle
from fastervit_trt.errors import FasterViTError

NAME = "faster_vit_digits_s-fp32-cpu"
FILES = {"export/model.onnx": random.Random(1).randbytes(60), "labels.txt": b"zero\none\n" * 60, "plugins/a": b""}
BLOCK = 512
GIB = 1 << 30


@dataclass(frozen=True)
class Packed:
    """A signed bundle and its archive, as bytes: not to be changed."""

    folder: Path
    archive: bytes
    files: dict[str, bytes]

    @property
    def tar(self) -> bytes:
        return zstandard.ZstdDecompressor().decompressobj().decompress(self.archive)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packed]:
    scratch = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTERVIT_TRT_KEYS", str(scratch / "keys"))
        folder = bundle_in(scratch / "bundle", FILES, signed=True)
        write_archive(folder, scratch / "packed.tar.zst")
        yield Packed(folder, (scratch / "packed.tar.zst").read_bytes(), tree(folder))


def bundle_in(folder: Path, files: dict[str, bytes], *, signed: bool = False, name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    text = manifest(declare(folder, lambda _: "document"), name)
    (folder / "bundle.json").write_bytes(text)
    if signed:
        (folder / "bundle.sig").write_bytes(sign_bundle(text))
    return folder


def manifest(declared: Declared, name: str = NAME) -> bytes:
    files = {path: dict(entry) for path, entry in declared.items()}
    record = BundleManifest(
        name=name,
        target={"name": "cpu"},
        files=files,
        plugin=None,
        timing=None,
        labels=None,
        licences=[],
        notices=[],
        packed_with={},
    )
    return record.text().encode()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below; a link or device would be none of the expected."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            assert stat.S_ISREG(mode)
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def listed(text: bytes, signature: bytes | None) -> Declared:
    """Admit whoever signed."""
    files: Declared = json.loads(text)["files"]
    return files


def signed_alone(text: bytes, signature: bytes | None) -> Declared:
    """Admit what was signed with the own key, as an installation does."""
    admit_signer(verify_bundle(text, signature), trust=False, where="bundle")
    return BundleManifest.parse(text.decode(errors="replace"), "bundle.json").files


def zst(tar: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(tar)


def ustar(path: str, size: int = 0, bundle: str = NAME, fields: dict[int, bytes] | None = None) -> bytes:
    """A header as POSIX has it, made by hand; ``fields`` overwrites bytes, by offset."""
    block = bytearray(BLOCK)
    parts = {0: path.encode(), 100: b"0000644", 108: b"0000000", 116: b"0000000", 124: b"%011o" % size, 136: b"0" * 11}
    parts |= {156: b"0", 257: b"ustar", 263: b"00", 329: b"0000000", 337: b"0000000", 345: bundle.encode()}
    for offset, content in {**parts, **(fields or {})}.items():
        block[offset : offset + len(content)] = content
    return with_checksum(block)


def with_checksum(block: bytes | bytearray) -> bytes:
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(path: str, content: bytes, bundle: str = NAME, fields: dict[int, bytes] | None = None) -> bytes:
    return ustar(path, len(content), bundle, fields) + content + bytes(-len(content) % BLOCK)


def entry_of(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "role": "document"}


@contextmanager
def room() -> Iterator[Path]:
    """A folder for a bundle, its archive and what comes out."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read_all(archive: bytes, admit: Admit = listed) -> dict[str, bytes]:
    """What comes out of an archive. On a refusal, that nothing came out anywhere is shown here."""
    place = scratch()
    path, out = place / "a/b/archive", place / "a/b/out"
    path.write_bytes(archive)
    try:
        read_archive(path, out, admit)
    except FasterViTError:
        assert [*place.rglob("*")] == [place / "a", place / "a/b", path]
        raise
    found = tree(out)
    assert set(tree(place)) == {"a/b/archive"} | {f"a/b/out/{name}" for name in found}
    shutil.rmtree(out)
    return found


@cache
def scratch() -> Path:
    """A folder with nothing in it but where an archive will be; one for all, as some file systems are slow to clean."""
    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    (Path(place.name) / "a/b").mkdir(parents=True)
    return Path(place.name)


def refused(archive: bytes, reason: str, admit: Admit = listed) -> None:
    with pytest.raises(FasterViTError, match=reason) as refusal:
        read_all(archive, admit)
    assert str(refusal.value).isprintable()


def frame(*pieces: bytes | int, window: int = 17 << 3) -> bytes:
    """A frame of zstd made by hand (RFC 8878): raw blocks, and an int for as many blocks of 128 KiB of zeros."""
    blocks = []
    for piece in pieces:
        if isinstance(piece, int):
            blocks += [(1, 128 << 10, b"\0")] * piece
        else:
            blocks += [(0, len(part), part) for part in (piece[i : i + 65536] for i in range(0, len(piece), 65536))]
    encoded = [
        (size << 3 | kind << 1 | (number == len(blocks))).to_bytes(3, "little") + content
        for number, (kind, size, content) in enumerate(blocks, 1)
    ]
    return b"\x28\xb5\x2f\xfd" + bytes([0, window]) + b"".join(encoded)


parts = st.text(st.sampled_from("aAbé漢 ._-0"), min_size=1, max_size=6)
contents = st.binary(max_size=40) | st.sampled_from([bytes(511), bytes(512), b"x" * 513, bytes(200_000)])


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.dictionaries(st.lists(parts, min_size=1, max_size=3).map("/".join), contents, max_size=5), st.booleans())
def test_what_goes_in_comes_out(packed: Packed, files: dict[str, bytes], signed: bool) -> None:
    try:
        check_names(files)
    except FasterViTError:
        assume(False)
    with room() as place:
        folder = bundle_in(place / "in", files, signed=signed)
        steps: list[tuple[int, int]] = []
        write_archive(folder, place / "archive", on_progress=lambda *step: steps.append(step))
        written, steps = steps, []
        read_archive(place / "archive", place / "out", listed, on_progress=lambda *step: steps.append(step))
        assert tree(place / "out") == tree(folder)
        total = sum(map(len, files.values()))
        for ends in (written, steps):
            assert ends == sorted(ends) and (not ends if total == 0 else ends[-1] == (total, total))
        tar = zstandard.ZstdDecompressor().decompress((place / "archive").read_bytes())
        head = ["bundle.json", "bundle.sig"] if signed else ["bundle.json"]
        with tarfile.open(fileobj=io.BytesIO(tar)) as others_reader:  # other programs understand it too
            infos = others_reader.getmembers()
        assert [info.name for info in infos] == [f"{NAME}/{name}" for name in head + sorted(files)]
        assert all((i.mode, i.uid, i.gid, i.mtime, i.uname, i.gname) == (0o644, 0, 0, 0, "", "") for i in infos)


def test_the_format_is_this_and_no_other(packed: Packed) -> None:
    names = ["bundle.json", "bundle.sig", "export/model.onnx", "labels.txt", "plugins/a"]
    assert packed.tar == b"".join(member(name, packed.files[name]) for name in names) + bytes(2 * BLOCK)
    frame_is = zstandard.get_frame_parameters(packed.archive)
    assert frame_is.has_checksum and frame_is.content_size == len(packed.tar)


def test_equal_bundles_make_equal_archives(packed: Packed, tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from fastervit_trt.deploy.bundle.archive import write_archive
source, target = map(Path, sys.argv[1:])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
old = os.umask(0o077)
(target / "in").mkdir()
for path in sorted((p for p in source.rglob("*") if p.is_file()), reverse=True):
    copy = target / "in" / path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o755 if "model" in copy.name else 0o400)
    os.utime(copy, (86400, 123456789))
write_archive(target / "in", target / "archive")
"""
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, packed.folder, tmp_path], env=environment, check=True, timeout=60)
    assert (tmp_path / "archive").read_bytes() == packed.archive


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_files_come_out_for_reading_alone(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(packed.archive)
    old = os.umask(0)
    try:
        read_archive(tmp_path / "archive", tmp_path / "out", listed)
    finally:
        os.umask(old)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_every_changed_byte_is_noticed(packed: Packed) -> None:
    rng = random.Random(0)
    taken = 0
    for position in range(len(packed.archive)):
        changed = bytearray(packed.archive)
        changed[position] ^= rng.randrange(1, 256)
        try:
            assert read_all(bytes(changed), signed_alone) == packed.files
            taken += 1
        except FasterViTError:
            pass
    assert taken < 10  # as of a frame's window, which may be larger than needed


def test_a_part_of_an_archive_is_none(packed: Packed) -> None:
    for length in [*range(0, len(packed.archive) - 40, 3), *range(len(packed.archive) - 40, len(packed.archive))]:
        with pytest.raises(FasterViTError):
            read_all(packed.archive[:length], signed_alone)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_inserted_and_lost_bytes_are_noticed(packed: Packed, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(packed.archive)))
    end = data.draw(st.integers(start, min(start + 8, len(packed.archive))))
    changed = packed.archive[:start] + data.draw(st.binary(max_size=8)) + packed.archive[end:]
    assume(changed != packed.archive)
    with suppress(FasterViTError):
        assert read_all(changed, signed_alone) == packed.files


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_every_changed_header_is_refused(packed: Packed, data: st.DataObject) -> None:
    """Checksums are right again: nothing but the reader's strictness refuses."""
    tar = bytearray(packed.tar)
    start = data.draw(
        st.sampled_from([m for m in range(0, len(tar) - 1024, BLOCK) if tar[m + 257 : m + 262] == b"ustar"])
    )
    offset = data.draw(st.sampled_from([*range(148), *range(156, BLOCK)]))
    tar[start + offset] ^= data.draw(st.integers(1, 255))
    tar[start : start + BLOCK] = with_checksum(tar[start : start + BLOCK])
    refused(zst(bytes(tar)), "archive")


FILE_KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.GNUTYPE_SPARSE]
OTHER_KINDS = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
kinds = st.sampled_from([*FILE_KINDS, *OTHER_KINDS])
hostile_names = st.one_of(
    st.sampled_from(
        ["../evil", "/tmp/fastervit-evil", "labels.txt", "LABELS.TXT", "a/../../evil", "C:/evil", "x" * 300]
    ),
    st.text(st.sampled_from("./\\aé\u0301\u202e\0:"), min_size=1, max_size=12),
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(hostile_names, kinds, hostile_names, st.integers(0, 3)), min_size=1, max_size=3),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
    st.integers(2, 5),
)
def test_what_others_put_into_an_archive_is_refused(
    packed: Packed, members: list[tuple[str, bytes, str, int]], form: int, below: bool, place: int
) -> None:
    """Entries made by Python's own tarfile, between those that belong there."""
    foreign = io.BytesIO()
    with tarfile.open(fileobj=foreign, mode="w", format=form, errors="surrogateescape") as tar:
        for name, kind, target, size in members:
            info = tarfile.TarInfo(f"{NAME}/{name}" if below else name)
            info.type, info.linkname, info.size = kind, target, size if kind in (b"0", b"\0") else 0
            try:
                tar.addfile(info, io.BytesIO(b"evil"))
            except ValueError:  # names that this form cannot hold
                assume(False)
    names = ["bundle.json", "bundle.sig", "export/model.onnx", "labels.txt", "plugins/a"]
    ours = [member(name, packed.files[name]) for name in names]
    blocks = b"".join(ours[:place]) + foreign.getvalue()[: foreign.tell()] + b"".join(ours[place:])
    refused(zst(blocks + bytes(2 * BLOCK)), "archive", signed_alone)


@pytest.mark.parametrize(
    "name",
    "../evil a/../../evil /evil a//b ./a a\\..\\b C:evil nul a. A\u0301 BUNDLE.json bundle.json bundle.sig/a".split()
    + "Labels.txt labels.txt/a".split(),
)
def test_names_that_lead_elsewhere_are_refused_though_declared_and_admitted(name: str) -> None:
    """An archive that is right in all else, signed by whoever it may be."""
    files = {"labels.txt": b"zero\n", name: b"evil"}
    text = manifest({path: entry_of(content) for path, content in files.items()})
    tar = member("bundle.json", text) + b"".join(member(path, files[path]) for path in sorted(files))
    refused(zst(tar + bytes(2 * BLOCK)), ".")


@pytest.mark.parametrize(
    "fields",
    [
        {156: b"2", 157: b"/etc/passwd"},
        {156: b"1"},
        {156: b"5"},
        {156: b"x"},
        {156: b"L"},
        {156: b"S"},
        {100: b"0004755"},
        {124: b"\x80" + b"\0" * 10 + b"\x04"},
        {257: b"ustar  \0"},
    ],
)
def test_a_declared_file_is_a_plain_file(fields: dict[int, bytes]) -> None:
    text = manifest({"file": entry_of(b"here")})
    refused(
        zst(member("bundle.json", text) + member("file", b"here", fields=fields) + bytes(2 * BLOCK)),
        "'file', written as",
    )
    assert read_all(zst(member("bundle.json", text) + member("file", b"here") + bytes(2 * BLOCK)))["file"] == b"here"


def assembled(*members: bytes, end: bytes = bytes(2 * BLOCK)) -> bytes:
    text = manifest({"a": entry_of(b"in a"), "b": entry_of(b"in b")})
    return zst(member("bundle.json", text) + b"".join(members) + end)


A, B = member("a", b"in a"), member("b", b"in b")


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (assembled(A), r"holds its end where bundle\.json has 'b' of 4 bytes"),
        (assembled(B, A), r"holds 'b' of 4 bytes where bundle\.json has 'a'"),
        (assembled(A, A, B), r"holds 'a' of 4 bytes where bundle\.json has 'b'"),
        (assembled(A, B, B), r"holds 'b', which its bundle\.json does not list"),
        (assembled(A, B, member("c", b"")), r"holds 'c', which its bundle\.json does not list"),
        (assembled(A, member("b", b"IN B")), r"holds another 'b' than its bundle\.json describes"),
        (assembled(A, member("b", b"in b+")), r"holds 'b' of 5 bytes where bundle\.json has 'b' of 4 bytes"),
        (assembled(A, member("b", b"in b", "another")), r"'b', written as|where bundle\.json has"),
        (assembled(A, B[:-1] + b"x"), r"holds something between 'b' and what follows"),
        (assembled(A, B, end=b""), r"ends too early"),
        (assembled(A[: BLOCK + 2], end=b""), r"ends within 'a'"),
        (assembled(A, B, end=bytes(BLOCK)), r"ends too early"),
        (assembled(A, B, end=bytes(2 * BLOCK + 1)), r"holds something after its end"),
        (assembled(A, B, end=bytes(BLOCK) + b"x" * BLOCK), r"holds something after its end"),
        (assembled(A, B, end=bytes(2 * BLOCK) + A), r"holds something after its end"),
        (assembled(A, B) + b"\0", r"holds something after its end"),
        (assembled(A, B) + assembled(A, B), r"holds something after its end"),
        (assembled(A, B) + zst(b""), r"holds something after its end"),
        (b"\x50\x2a\x4d\x18\x01\0\0\0x" + assembled(A, B), r"is not compressed by zstd"),
        (zst(A + B + bytes(2 * BLOCK)), r"does not begin with bundle\.json, so it is no bundle"),
        (zst(bytes(10240)), r"holds something after its end|does not begin with bundle\.json"),
        (zst(b""), r"ends too early"),
        (b"", r"is not compressed by zstd"),
        (zst(b"PK" * 600), r"written as no file of a bundle is"),
        (zst(member("bundle.json", b"{", bundle="a/b")), r"written as no file"),
        (
            zst(member("bundle.json", manifest({}, "other")) + bytes(2 * BLOCK)),
            r"which is not the name in its bundle\.json",
        ),
        (zst(ustar("bundle.json", (4 << 20) + 1)), r"holds a bundle\.json of 4194305 bytes; no bundle has more"),
        (zst(member("bundle.json", manifest({})) + ustar("bundle.sig", 16385)), r"holds a bundle\.sig of 16385 bytes"),
    ],
)
def test_what_is_not_as_declared_is_named(archive: bytes, reason: str) -> None:
    refused(archive, reason)


def test_who_says_no_is_asked_before_anything_is_written_or_looked_at(packed: Packed) -> None:
    asked: list[tuple[bytes, bytes | None]] = []

    def refuse(text: bytes, signature: bytes | None) -> Declared:
        asked.append((text, signature))
        raise FasterViTError("unknown signer")

    rest_is_nonsense = zst(b"".join(member(n, packed.files[n]) for n in ("bundle.json", "bundle.sig")) + FILES_HEADER)
    for archive in (packed.archive, rest_is_nonsense):
        refused(archive, "^unknown signer$", refuse)
    refused(zst(member("bundle.json", packed.files["bundle.json"]) + FILES_HEADER), "^unknown signer$", refuse)
    signed = (packed.files["bundle.json"], packed.files["bundle.sig"])
    assert asked == [signed, signed, (signed[0], None)]


FILES_HEADER = ustar("export/model.onnx", 60)  # and nothing of the 60 bytes


def test_bombs_are_refused_before_they_go_off() -> None:
    zeros = {"sha256": "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14", "bytes": GIB}
    announced = member("bundle.json", manifest({"zeros": zeros})) + ustar("zeros", GIB)
    bomb = frame(announced, GIB >> 17, bytes(2 * BLOCK))
    assert len(bomb) < 50_000
    with room() as folder:
        (folder / "archive").write_bytes(bomb)
        with pytest.raises(
            FasterViTError, match=r"unpacks to 1\.1 GB, more than the 1\.0 GB of a bundle; pack it again"
        ):
            read_archive(folder / "archive", folder / "out", listed, most_bytes=10**9)
        assert [path.name for path in folder.iterdir()] == ["archive"]
    huge = {f"{n}": {**zeros, "bytes": 1 << 50} for n in range(4)}
    refused(zst(member("bundle.json", manifest(huge)) + bytes(2 * BLOCK)), "unpacks to .* GB, more than the 68.7 GB")
    text = member("bundle.json", manifest(huge)) + bytes(2 * BLOCK)
    with room() as folder:
        (folder / "archive").write_bytes(zst(text))
        with pytest.raises(FasterViTError, match=r"unpacks to .* GB and '.*' has .* GB free; free some room"):
            read_archive(folder / "archive", folder / "out", listed, most_bytes=1 << 60)
    small = member("bundle.json", manifest({"a": entry_of(b"in a")}))
    refused(frame(small, GIB >> 17), "holds its end|after its end")
    refused(frame(small + A + bytes(2 * BLOCK), GIB >> 17), "after its end")
    refused(frame(ustar("bundle.json", GIB), GIB >> 17), r"a bundle\.json of 1073741824 bytes")
    refused(frame(small + A + bytes(2 * BLOCK), window=21 << 3), r"takes 2048 MiB of memory to read, more than 128")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from fastervit_trt.deploy.bundle.archive import read_archive, write_archive
import json, zstandard, tempfile
admit = lambda manifest, signature: json.loads(manifest)["files"]
folder = Path(sys.argv[1])
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (48 << 20),) * 2)
write_archive(folder / "in", folder / "archive")
read_archive(folder / "archive", folder / "out", admit)
print("done")
"""
    (tmp_path / "in").mkdir()
    with (tmp_path / "in/zeros").open("wb") as stream:
        stream.truncate(128 << 20)
    bundle_in(tmp_path / "in", {})
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "done\n", "")
    assert (tmp_path / "archive").stat().st_size < 100_000
    assert (tmp_path / "out/zeros").stat().st_size == 128 << 20


def test_archives_that_were_compressed_again_are_taken(packed: Packed) -> None:
    for level, checksum in ((1, False), (19, True)):
        again = zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(packed.tar)
        assert read_all(again, signed_alone) == packed.files
    assert read_all(frame(packed.tar), signed_alone) == packed.files


def test_what_is_there_stays(packed: Packed, tmp_path: Path) -> None:
    path, out = tmp_path / "archive", tmp_path / "out"
    path.write_bytes(packed.archive)
    out.mkdir()
    read_archive(path, out, listed)  # empty, so there is nothing to lose
    assert tree(out) == packed.files
    (out / "labels.txt").write_text("mine")
    with pytest.raises(FasterViTError, match=r"out' already exists"):
        read_archive(path, out, listed)
    assert (out / "labels.txt").read_text() == "mine"
    with pytest.raises(FasterViTError, match=r"archive' already exists"):
        write_archive(packed.folder, path)
    path.write_bytes(b"old")
    write_archive(packed.folder, path, overwrite=True)
    assert path.read_bytes() == packed.archive
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "out"]


@pytest.mark.parametrize("file", ["out", "archive/b"])
def test_places_that_cannot_be_written_are_named(packed: Packed, tmp_path: Path, file: str) -> None:
    (tmp_path / "archive").write_bytes(packed.archive)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FasterViTError, match=rf"'.*{file}'"):
        read_archive(tmp_path / "archive", tmp_path / file, listed)
    with pytest.raises(FasterViTError, match=r"cannot read archive '.*none' \(No such file"):
        read_archive(tmp_path / "none", tmp_path / "new", listed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "labels.txt").write_bytes(FILES["labels.txt"].replace(b"n", b"m")), "not the file"),
        (lambda folder: (folder / "labels.txt").write_text("short"), "not the file"),
        (lambda folder: (folder / "plugins/a").write_text("long"), "not the file"),
        (lambda folder: (folder / "plugins/a").unlink(), "missing"),
        (lambda folder: (folder / "more").write_text(""), r"is not in its bundle\.json"),
        (lambda folder: (folder / "more").symlink_to("labels.txt"), "is a link"),
        (lambda folder: (folder / "bundle.json").unlink(), r"cannot read '.*bundle\.json'"),
        (lambda folder: (folder / "bundle.json").write_text("{}"), "no manifest of a bundle"),
        (lambda folder: (folder / "bundle.json").write_bytes(manifest({}, "../up")), "cannot be the path"),
        (lambda folder: (folder / "bundle.json").write_bytes(manifest({}, "a/b")), "no folder's name"),
        (lambda folder: (folder / "bundle.json").write_bytes(manifest({"../up": entry_of(b"")})), "cannot be the path"),
        (lambda folder: (folder / "bundle.sig").write_bytes(b" " * 20_000), "more than 16 KiB"),
    ],
)
def test_only_what_a_manifest_says_is_packed(
    packed: Packed, tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    folder = bundle_in(tmp_path / "in", FILES)
    change(folder)
    with pytest.raises(FasterViTError, match=reason):
        write_archive(folder, tmp_path / "archive")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_that_no_archive_takes_is_said_before_packing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/huge").touch()
    (tmp_path / "in/bundle.json").write_bytes(manifest({"huge": {**entry_of(b""), "bytes": 8 * GIB}}))
    with pytest.raises(FasterViTError, match=r"huge' has more than 8 GiB, which no archive takes"):
        write_archive(tmp_path / "in", tmp_path / "archive")


def test_archives_are_told_by_what_they_hold(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(packed.archive)
    (tmp_path / "x.tar.zst").write_bytes(packed.tar)
    (tmp_path / "empty").touch()
    assert is_archive(tmp_path / "bundle.zip")
    assert not any(map(is_archive, (tmp_path / "x.tar.zst", tmp_path / "empty", tmp_path, tmp_path / "none")))
