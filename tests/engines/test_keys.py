"""Keys: real ones in real files, made by processes that come at once; whose signature is taken, and for what."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastervit_trt.engines.keys import (
    PublicKey,
    Signed,
    keys_folder,
    public_key_line,
    sign,
    signing_key,
    trust_key,
    trusted_keys,
    verify,
)
from fastervit_trt.errors import FasterViTError

PURPOSE, MESSAGE = b"fastervit-trt test 1\n", b"what is signed"
posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for keys that is not the user's own."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Path) -> tuple[dict[str, str], str]:
    """What somebody else signed, and their public key."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "theirs"))
    signed, line = sign(PURPOSE, MESSAGE), public_key_line()
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(keys))
    return signed, line


def test_a_signature_holds_for_its_message_and_purpose_alone() -> None:
    signed = sign(PURPOSE, MESSAGE)
    assert verify(PURPOSE, MESSAGE, signed).signed is Signed.OWN
    assert sign(PURPOSE, MESSAGE) == signed
    assert verify(PURPOSE, MESSAGE + b"!", signed).signed is Signed.BAD
    assert verify(b"fastervit-trt engine 1\n", MESSAGE, signed).signed is Signed.BAD
    assert verify(b"", PURPOSE + MESSAGE, {**signed, "value": sign(b"", MESSAGE)["value"]}).signed is Signed.BAD
    assert verify(PURPOSE, MESSAGE, None).signed is Signed.UNSIGNED


def test_fingerprints_cannot_write_to_the_terminal() -> None:
    verdict = verify(PURPOSE, MESSAGE, {"key": "SHA256:\x1b[2J" + "x" * 10_000, "value": ""})
    assert verdict.signed is Signed.UNKNOWN
    assert verdict.fingerprint is not None and verdict.fingerprint.startswith("SHA256:[2Jxxx")
    assert len(verdict.fingerprint) < 80


def test_a_key_is_unknown_until_trusted(foreign: tuple[dict[str, str], str], keys: Path, tmp_path: Path) -> None:
    signed, line = foreign
    verdict = verify(PURPOSE, MESSAGE, signed)
    assert verdict.signed is Signed.UNKNOWN and verdict.fingerprint == signed["key"]
    (tmp_path / "theirs.pub").write_text(line.split(" ")[0] + " build server\n")
    key = trust_key(tmp_path / "theirs.pub")
    verdict = verify(PURPOSE, MESSAGE, signed)
    assert (verdict.signed, verdict.name) == (Signed.TRUSTED, "build server")
    assert str(verdict) == f"trusted key build server {key.fingerprint}"
    assert verify(PURPOSE, MESSAGE + b"!", signed).signed is Signed.BAD
    assert [k.fingerprint for k in trusted_keys()] == [key.fingerprint]
    (path,) = (keys / "trusted").iterdir()
    assert path.suffix == ".pub" and path.read_text() == line.split(" ")[0] + " build server\n"
    path.unlink()
    assert verify(PURPOSE, MESSAGE, signed).signed is Signed.UNKNOWN


def test_keys_are_trusted_as_text_too(foreign: tuple[dict[str, str], str]) -> None:
    signed, line = foreign
    trust_key(line)
    trust_key(line)
    assert len(trusted_keys()) == 1 and trusted_keys()[0].line == line
    assert verify(PURPOSE, MESSAGE, signed).signed is Signed.TRUSTED


def test_another_key_does_not_vouch_under_a_trusted_name(foreign: tuple[dict[str, str], str]) -> None:
    signed, line = foreign
    mine = sign(PURPOSE, MESSAGE)
    trust_key(line)
    claimed = {**mine, "key": signed["key"]}
    assert verify(PURPOSE, MESSAGE, claimed).signed is Signed.BAD


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


def test_comments_cannot_write_to_the_terminal(foreign: tuple[dict[str, str], str]) -> None:
    trust_key(foreign[1].split(" ")[0] + " build\x1b[2J\r server")
    assert trusted_keys()[0].comment == "build[2J server"


def test_a_damaged_trusted_key_does_not_hide_the_others(
    foreign: tuple[dict[str, str], str], keys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trust_key(foreign[1])
    (keys / "trusted" / "A.pub").write_bytes(b"\xff\x00")
    assert verify(PURPOSE, MESSAGE, foreign[0]).signed is Signed.TRUSTED
    assert "A.pub' is ignored" in capfd.readouterr().err


@posix
@pytest.mark.parametrize("where", ["keys", "trusted", "file"])
def test_keys_that_others_could_have_put_there_are_ignored(
    foreign: tuple[dict[str, str], str], keys: Path, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    trust_key(foreign[1])
    (file,) = (keys / "trusted").iterdir()
    {"keys": keys, "trusted": keys / "trusted", "file": file}[where].chmod(0o777)
    assert verify(PURPOSE, MESSAGE, foreign[0]).signed is Signed.UNKNOWN
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
    signed = sign(PURPOSE, MESSAGE)
    (keys / name).chmod(mode)
    for act in (lambda: sign(PURPOSE, MESSAGE), lambda: verify(PURPOSE, MESSAGE, signed), public_key_line):
        with pytest.raises(
            FasterViTError, match=r"signing key '.*' or its folder can be (read|written) by other users"
        ):
            act()


@pytest.mark.parametrize("content", [b"", b"\x00", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_said_and_kept(keys: Path, content: bytes) -> None:
    signing_key()
    (keys / "signing-key").write_bytes(content)
    with pytest.raises(FasterViTError, match=r"signing-key' is damaged; remove it and a new one is made"):
        sign(PURPOSE, MESSAGE)
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
        sign(PURPOSE, MESSAGE)


def test_a_folder_that_cannot_be_written_is_named(keys: Path) -> None:
    keys.write_text("a file")
    with pytest.raises(FasterViTError, match=r"cannot make a key .* writable folder in FASTERVIT_TRT_KEYS"):
        sign(PURPOSE, MESSAGE)
    with pytest.raises(FasterViTError, match=r"cannot write to '.*trusted' .* FASTERVIT_TRT_KEYS"):
        trust_key(base64.b64encode(b"x" * 32).decode())


def test_processes_that_come_first_at_once_agree_on_one_key(keys: Path) -> None:
    code = """
import sys, time
from fastervit_trt.engines.keys import public_key_line
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
        assert keys_folder() == tmp_path / "data" / "fastervit-trt"
