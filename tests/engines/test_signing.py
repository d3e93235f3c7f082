"""Signatures: real keys in real files, made by processes that come at once."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.engines import signing
from fastervit_trt.engines.signing import (
    PublicKey,
    Signed,
    public_key_line,
    sign_record,
    signing_key,
    trust_key,
    trusted_keys,
    verify_record,
)
from fastervit_trt.errors import FasterViTError

RECORD: dict[str, Any] = {
    "file": "model.trt-sm89.engine",
    "profiles": ((1, 8, 32),),
    "plugins": {"sha256": "b" * 64},
    "build_seconds": 0.1 + 0.2,
    "options": {"level": 3, "größe": None},
    "audit": {"kernels": {10: 1, 9: 2}},  # JSON has no such keys
    "stripped": False,
}
FILES: dict[str, dict[str, Any]] = {
    "model.trt-sm89.engine": {"sha256": "a" * 64, "bytes": 12},
    "model.onnx": {"sha256": "c" * 64, "bytes": 34},
    "model.onnx.data": {"sha256": "d" * 64, "bytes": 56},
    "ranges.json": {"sha256": "e" * 64, "bytes": 78},
}
posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for keys that is not the user's own."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def as_read_back(record: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(record))
    return read


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Path) -> tuple[dict[str, Any], str]:
    """A record that somebody else signed, and their public key."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "theirs"))
    signed, line = as_read_back(sign_record(RECORD, FILES)), public_key_line()
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(keys))
    return signed, line


def test_what_is_signed_here_is_known_here() -> None:
    signed = sign_record(RECORD, FILES)
    assert {k: v for k, v in signed.items() if k != "signature"} == RECORD
    assert set(signed["signature"]) == {"key", "value"}
    verdict = verify_record(as_read_back(signed), FILES)
    assert verdict.signed is Signed.OWN
    assert verdict.fingerprint == signed["signature"]["key"] == PublicKey.parse(public_key_line(), "").fingerprint
    again = sign_record(signed, FILES)  # signing what is signed signs the rest
    assert again == signed


def test_looking_makes_no_key(keys: Path) -> None:
    assert verify_record(RECORD, FILES).signed is Signed.UNSIGNED
    assert verify_record({**RECORD, "signature": {"key": "SHA256:x", "value": ""}}, FILES).signed is Signed.UNKNOWN
    assert trusted_keys() == []
    assert not keys.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"file": "model.onnx"},
        {"profiles": [[1, 8, 33]]},
        {"plugins": {"sha256": "f" * 64}},
        {"plugins": None},
        {"build_seconds": 0.3},
        {"options": {"level": 3}},
        {"stripped": True},
        {"version_compatible": True},
        {"signature": None},
    ],
)
def test_a_changed_record_is_noticed(change: dict[str, Any]) -> None:
    signed = as_read_back(sign_record(RECORD, FILES))
    assert verify_record(signed, FILES).signed is Signed.OWN
    expected = Signed.UNSIGNED if "signature" in change else Signed.BAD
    assert verify_record({**signed, **change}, FILES).signed is expected
    missing = {k: v for k, v in signed.items() if k != "options"}
    assert verify_record(missing, FILES).signed is Signed.BAD


@pytest.mark.parametrize("entry", [{"sha256": "0" * 64, "bytes": 12}, {"sha256": "a" * 64, "bytes": 13}, {}, None])
def test_a_changed_engine_file_is_noticed(entry: dict[str, Any] | None) -> None:
    signed = as_read_back(sign_record(RECORD, FILES))
    files = {**FILES, RECORD["file"]: entry} if entry is not None else {}
    assert verify_record(signed, files).signed is Signed.BAD


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_the_graph_belongs_to_a_stripped_engine_only(name: str) -> None:
    changed = {**FILES, name: {"sha256": "0" * 64, "bytes": 1}}
    whole, stripped = (as_read_back(sign_record({**RECORD, "stripped": s}, FILES)) for s in (False, True))
    assert verify_record(whole, changed).signed is Signed.OWN
    assert verify_record(stripped, changed).signed is Signed.BAD
    other = {**FILES, "ranges.json": {"sha256": "0" * 64, "bytes": 1}}
    assert verify_record(stripped, other).signed is Signed.OWN


@pytest.mark.parametrize(
    "broken", ["text", {}, {"key": "x"}, {"key": "x", "value": "not base64"}, {"key": "x", "value": 3}, []]
)
def test_what_is_no_signature_is_a_bad_one(broken: object) -> None:
    assert verify_record({**RECORD, "signature": broken}, FILES).signed is Signed.BAD


def test_every_bit_of_the_signature_counts() -> None:
    signed = as_read_back(sign_record(RECORD, FILES))
    value = base64.b64decode(signed["signature"]["value"])
    assert len(value) == 64
    for position in (0, 31, 32, 63):
        flipped = bytearray(value)
        flipped[position] ^= 1
        signed["signature"]["value"] = base64.b64encode(flipped).decode()
        assert verify_record(signed, FILES).signed is Signed.BAD


def test_a_key_is_unknown_until_trusted(foreign: tuple[dict[str, Any], str], keys: Path, tmp_path: Path) -> None:
    signed, line = foreign
    verdict = verify_record(signed, FILES)
    assert verdict.signed is Signed.UNKNOWN and verdict.fingerprint == signed["signature"]["key"]
    (tmp_path / "theirs.pub").write_text(line.split(" ")[0] + " build server\n")
    key = trust_key(tmp_path / "theirs.pub")
    verdict = verify_record(signed, FILES)
    assert (verdict.signed, verdict.name) == (Signed.TRUSTED, "build server")
    assert str(verdict) == f"trusted key build server {key.fingerprint}"
    assert verify_record({**signed, "stripped": True}, FILES).signed is Signed.BAD
    assert [k.fingerprint for k in trusted_keys()] == [key.fingerprint]
    (path,) = (keys / "trusted").iterdir()
    assert path.suffix == ".pub" and path.read_text() == line.split(" ")[0] + " build server\n"
    path.unlink()
    assert verify_record(signed, FILES).signed is Signed.UNKNOWN


def test_keys_are_trusted_as_text_too(foreign: tuple[dict[str, Any], str]) -> None:
    signed, line = foreign
    trust_key(line)
    trust_key(line)
    assert len(trusted_keys()) == 1 and trusted_keys()[0].line == line
    assert verify_record(signed, FILES).signed is Signed.TRUSTED


def test_another_key_does_not_vouch_under_a_trusted_name(foreign: tuple[dict[str, Any], str]) -> None:
    signed, line = foreign
    mine = sign_record(RECORD, FILES)
    trust_key(line)
    claimed = {**mine, "signature": {**mine["signature"], "key": signed["signature"]["key"]}}
    assert verify_record(claimed, FILES).signed is Signed.BAD


def test_the_fingerprint_is_spelt_as_openssh_spells_it() -> None:
    # of these 32 bytes, by `openssl dgst -sha256 -binary | base64`, without the padding
    assert PublicKey(bytes(range(32)), "").fingerprint == "SHA256:Yw3NKWbEM2aRElRIu7JbT/QSpJxzLbLIq8G4WBvXEN0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me",
        "AAAA short",
        base64.b64encode(b"x" * 33).decode(),
        "\x00\xff",
        "§",
    ],
)
def test_what_is_no_public_key_is_refused(text: str, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "file.pub").write_text(text)
    for source in (text, tmp_path / "file.pub"):
        with pytest.raises(FasterViTError, match=r"is no public key of fastervit-trt; .*fastervit-engine key"):
            trust_key(source)
    assert not (keys / "trusted").exists()


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match=r"cannot read key file '.*none\.pub' \(No such file"):
        trust_key(tmp_path / "none.pub")


def test_comments_cannot_write_to_the_terminal(foreign: tuple[dict[str, Any], str]) -> None:
    trust_key(foreign[1].split(" ")[0] + " build\x1b[2J\r server")
    assert trusted_keys()[0].comment == "build[2J server"


def test_a_damaged_trusted_key_does_not_hide_the_others(
    foreign: tuple[dict[str, Any], str], keys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trust_key(foreign[1])
    (keys / "trusted" / "A.pub").write_bytes(b"\xff\x00")
    assert verify_record(foreign[0], FILES).signed is Signed.TRUSTED
    assert "A.pub' is ignored" in capfd.readouterr().err


@posix
@pytest.mark.parametrize("where", ["keys", "trusted", "file"])
def test_keys_that_others_could_have_put_there_are_ignored(
    foreign: tuple[dict[str, Any], str], keys: Path, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    trust_key(foreign[1])
    (file,) = (keys / "trusted").iterdir()
    {"keys": keys, "trusted": keys / "trusted", "file": file}[where].chmod(0o777)
    assert verify_record(foreign[0], FILES).signed is Signed.UNKNOWN
    assert "is ignored: its file or folder can be written by other users (mode 0777" in capfd.readouterr().err


@posix
def test_the_key_is_for_the_user_alone(keys: Path) -> None:
    old = os.umask(0)
    try:
        signing_key()
    finally:
        os.umask(old)
    assert stat.S_IMODE((keys / "signing-key").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize(("name", "mode"), [("signing-key", 0o644), ("signing-key", 0o620), (".", 0o777)])
def test_a_key_that_others_could_have_read_or_written_is_not_used(keys: Path, name: str, mode: int) -> None:
    signed = sign_record(RECORD, FILES)
    (keys / name).chmod(mode)
    for act in (lambda: sign_record(RECORD, FILES), lambda: verify_record(signed, FILES), public_key_line):
        with pytest.raises(
            FasterViTError, match=r"signing key '.*' or its folder can be (read|written) by other users"
        ):
            act()


@pytest.mark.parametrize("content", [b"", b"\x00", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_said_and_kept(keys: Path, content: bytes) -> None:
    signing_key()
    (keys / "signing-key").write_bytes(content)
    with pytest.raises(FasterViTError, match=r"signing-key' is damaged; remove it and a new one is made"):
        sign_record(RECORD, FILES)
    assert (keys / "signing-key").read_bytes() == content


def test_a_key_of_another_kind_is_refused(keys: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    signing_key()
    other = X25519PrivateKey.generate()
    (keys / "signing-key").write_bytes(
        other.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    with pytest.raises(FasterViTError, match=r"is not of Ed25519"):
        sign_record(RECORD, FILES)


def test_a_folder_that_cannot_be_written_is_named(keys: Path) -> None:
    keys.write_text("a file")
    with pytest.raises(FasterViTError, match=r"cannot make a key .* writable folder in FASTERVIT_TRT_KEYS"):
        sign_record(RECORD, FILES)
    with pytest.raises(FasterViTError, match=r"cannot write to '.*trusted' .* FASTERVIT_TRT_KEYS"):
        trust_key(base64.b64encode(b"x" * 32).decode())


def test_processes_that_come_first_at_once_agree_on_one_key(keys: Path) -> None:
    code = """
import sys, time
from fastervit_trt.engines.signing import public_key_line
import cryptography.hazmat.primitives.serialization, filelock, platformdirs
print("ready", flush=True)
sys.stdin.readline()
print(public_key_line())
"""
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(5)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert [err for _, err in answers] == [""] * 5
    assert {out for out, _ in answers} == {public_key_line() + "\n"}
    assert sorted(path.name for path in keys.iterdir()) == [".lock", "signing-key"]


def test_without_the_variable_keys_lie_in_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FASTERVIT_TRT_KEYS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if sys.platform == "linux":
        assert signing.keys_folder() == tmp_path / "data" / "fastervit-trt"
