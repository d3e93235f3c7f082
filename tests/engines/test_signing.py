"""Signatures of engines' records: what they cover, with real keys in real files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt.engines.keys import PublicKey, Signed, public_key_line, trusted_keys
from fastervit_trt.engines.signing import sign_record, verify_record

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
# of these, by the key whose seed is 0, 1, …, 31, as version 0.1.0 wrote them
OF_OLD = {
    False: "/VWyCq3BwleGWbOJAEaNzDiavXfHepDcPpsVFl7UDcX+OwPOQhEC/jv5LwrbHGoCzJVxVHo/kxol6WI/KMrzBA==",
    True: "hHgjqTUIOYWaljzEFcdSba07s98pQnYmSrNUhQ/sDgkNxjI7qT9FpzXma98FX2T6eErKD+zSGxo6nrYSAntvBw==",
}


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for keys that is not the user's own."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def as_read_back(record: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(record))
    return read


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


@pytest.mark.parametrize("stripped", [False, True])
def test_signatures_of_old_stay_valid(keys: Path, stripped: bool) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    keys.mkdir(mode=0o700)
    (keys / "signing-key").touch(mode=0o600)
    (keys / "signing-key").write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    record = {**RECORD, "stripped": stripped}
    signature = {"key": "SHA256:Vkdap1RjR0wChd9dvyvKtz2mUTWIOem3dIGy6rEHcIw", "value": OF_OLD[stripped]}
    assert verify_record(as_read_back({**record, "signature": signature}), FILES).signed is Signed.OWN
    assert sign_record(record, FILES)["signature"] == signature
