"""Signatures of bundles: real keys; whatever is not exactly what was signed is bad, and bad is never taken."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervit_trt.deploy.bundle.signature import admit_signer, sign_bundle, verify_bundle
from fastervit_trt.engines.keys import Signed, Verdict, public_key_line, trust_key
from fastervit_trt.engines.signing import sign_record
from fastervit_trt.errors import FasterViTError

MANIFEST = b'{"name": "a bundle"}\n'


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for keys that is not the user's own."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_what_is_signed_here_is_known_here() -> None:
    signature = sign_bundle(MANIFEST)
    assert verify_bundle(MANIFEST, signature).signed is Signed.OWN
    assert sign_bundle(MANIFEST) == signature and signature.endswith(b"}\n")
    assert verify_bundle(MANIFEST, None).signed is Signed.UNSIGNED
    for other in (b"", MANIFEST[:-1], MANIFEST + b"\n", MANIFEST.replace(b"a", b"b")):
        assert verify_bundle(other, signature).signed is Signed.BAD


def test_a_key_is_unknown_until_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "theirs"))
    signature, line = sign_bundle(MANIFEST), public_key_line()
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(keys))
    verdict = verify_bundle(MANIFEST, signature)
    assert verdict.signed is Signed.UNKNOWN
    with pytest.raises(FasterViTError, match=r"^bundle 'b' is signed by unknown key 'SHA256:.*deploy trust FILE`"):
        admit_signer(verdict, trust=False, where="bundle 'b'")
    admit_signer(verdict, trust=True, where="bundle 'b'")
    trust_key(line)
    assert verify_bundle(MANIFEST, signature).signed is Signed.TRUSTED
    assert verify_bundle(MANIFEST + b" ", signature).signed is Signed.BAD
    admit_signer(verify_bundle(MANIFEST, signature), trust=False, where="bundle 'b'")


def test_no_signature_of_an_engine_fits_a_bundle() -> None:
    record, files = {"file": "e", "stripped": False}, {"e": {"sha256": "a" * 64, "bytes": 1}}
    signature = sign_record(record, files)["signature"]
    covered = {"record": record, "files": files}
    message = json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()  # what sign_record signs
    for manifest in (message, b"fastervit-trt engine 1\n" + message):
        assert verify_bundle(manifest, json.dumps(signature).encode()).signed is Signed.BAD


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"null", b"[]", b"3", b"{}", b'{"key": "x"}', b'{"key": "x", "value": 3}', b"\xff", b"[" * 16_000),
        b'{"key": "SHA256:x", "value": "%s"}' % (b"A" * 20_000),
    ],
)
def test_what_is_no_signature_is_a_bad_one(text: bytes) -> None:
    assert verify_bundle(MANIFEST, text).signed is Signed.BAD


def test_whoever_damages_a_signature_gets_nothing_admitted() -> None:
    signature = sign_bundle(MANIFEST)

    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(st.integers(0, len(signature) - 1), st.integers(1, 255), st.binary(max_size=3))
    def damaged(position: int, flip: int, inserted: bytes) -> None:
        flipped = bytes([signature[position] ^ flip])
        text = signature[:position] + inserted + flipped + signature[position + 1 :]
        verdict = verify_bundle(MANIFEST, text)
        assert verdict.signed in (Signed.BAD, Signed.UNKNOWN) or _same(text, signature)

    damaged()


def _same(text: bytes, signature: bytes) -> bool:
    """Whether only what JSON and base64 ignore was changed."""
    read, signed = json.loads(text), json.loads(signature)
    return bool(read["key"] == signed["key"] and base64.b64decode(read["value"]) == base64.b64decode(signed["value"]))


@pytest.mark.parametrize("trust", [False, True])
def test_a_bad_signature_is_refused_whoever_is_trusted(trust: bool) -> None:
    with pytest.raises(FasterViTError, match=r"^bundle 'b' was changed after it was signed; copy it again"):
        admit_signer(Verdict(Signed.BAD, "SHA256:x"), trust=trust, where="bundle 'b'")


def test_unsigned_is_taken_when_told_so_alone() -> None:
    with pytest.raises(FasterViTError, match=r"^bundle 'b' is not signed; .*--trust"):
        admit_signer(Verdict(Signed.UNSIGNED), trust=False, where="bundle 'b'")
    admit_signer(Verdict(Signed.UNSIGNED), trust=True, where="bundle 'b'")
    admit_signer(Verdict(Signed.OWN), trust=False, where="bundle 'b'")
