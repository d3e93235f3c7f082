"""A purpose and a message in, an Ed25519 signature of the user's own key out; and whose signature one is.

Keys lie in a folder of the user's: the own one, made at its first use, and those of others that were trusted.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastervit_trt.console import warn
from fastervit_trt.engines.private_folder import alone, make_private, why_not_private, write_whole
from fastervit_trt.errors import FasterViTError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "KEYS_VARIABLE",
    "PublicKey",
    "Signed",
    "Verdict",
    "keys_folder",
    "public_key_line",
    "sign",
    "signing_key",
    "trust_key",
    "trusted_keys",
    "verify",
]

KEYS_VARIABLE = "FASTERVIT_TRT_KEYS"

_PRIVATE, _TRUSTED = "signing-key", "trusted"
_RAW_BYTES = 32
_MOST_TEXT = 4096  # characters of a public key file
_MOST_FINGERPRINT = 64  # characters; those we write have 50


class Signed(Enum):
    """By whom."""

    OWN = "own key"
    TRUSTED = "trusted key"
    UNKNOWN = "unknown key"
    BAD = "bad signature"  # what was signed changed, or the signature
    UNSIGNED = "unsigned"


@dataclass(frozen=True)
class PublicKey:
    """Whoever has its private half can sign engines and bundles."""

    raw: bytes  # 32 of them
    comment: str  # whose it is, in the words of whoever wrote the file

    @property
    def fingerprint(self) -> str:
        """As OpenSSH spells it, ``SHA256:…``."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.raw).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """What a key file holds."""
        return f"{base64.b64encode(self.raw).decode()} {self.comment}".strip()

    @classmethod
    def parse(cls, text: str, source: str) -> PublicKey:
        """Base64 and, after a space, a comment.

        Raises:
            FasterViTError: not the text of a public key; ``source`` says where it came from.
        """
        encoded, _, comment = text[:_MOST_TEXT].strip().partition(" ")
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != _RAW_BYTES:
            raise FasterViTError(
                f"{source} is no public key of fastervit-trt; its owner prints one with `fastervit-engine key`"
            )
        return cls(raw, "".join(c for c in comment.strip() if c.isprintable()))  # it is shown on terminals


@dataclass(frozen=True)
class Verdict:
    """By whom something is signed; ``name`` is the comment of a trusted key."""

    signed: Signed
    fingerprint: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        known = " ".join(filter(None, (self.name, self.fingerprint)))
        return f"{self.signed.value} {known}".strip()


def sign(purpose: bytes, message: bytes) -> dict[str, str]:
    """The signature of the user's own key, which is made at its first use: its fingerprint and, in base64, the value.

    Args:
        purpose: a line that no other kind of signed thing has, so that its signatures fit nothing else.

    Raises:
        FasterViTError: the key cannot be read or made, or others could have read it.
    """
    key = signing_key()
    return {"key": _public(key).fingerprint, "value": base64.b64encode(key.sign(purpose + message)).decode()}


def verify(purpose: bytes, message: bytes, signature: Mapping[str, Any] | None) -> Verdict:
    """Whose ``signature`` of ``message`` for ``purpose`` this is; whatever :func:`sign` did not write is a bad one.

    Raises:
        FasterViTError: the user's own key cannot be read.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature is None:
        return Verdict(Signed.UNSIGNED)
    try:
        claimed, value = str(signature["key"]), base64.b64decode(signature["value"], validate=True)
    except (KeyError, TypeError, ValueError):
        return Verdict(Signed.BAD)
    fingerprint = "".join(c for c in claimed[:_MOST_FINGERPRINT] if c.isprintable())  # it is shown on terminals
    known = {key.fingerprint: key for key in trusted_keys()}
    own = _public(_load(_private_path())) if _private_path().is_file() else None
    key = own if own is not None and own.fingerprint == fingerprint else known.get(fingerprint)
    if key is None:
        return Verdict(Signed.UNKNOWN, fingerprint)
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(value, purpose + message)
    except InvalidSignature:
        return Verdict(Signed.BAD, fingerprint, key.comment)
    return Verdict(Signed.OWN if key is own else Signed.TRUSTED, fingerprint, key.comment)


def keys_folder() -> Path:
    """``$FASTERVIT_TRT_KEYS``, else the user's data folder."""
    from platformdirs import user_data_path

    named = os.environ.get(KEYS_VARIABLE)
    return Path(named).expanduser() if named else user_data_path("fastervit-trt", appauthor=False)


def signing_key() -> Ed25519PrivateKey:
    """The user's own key, made once; several processes that come first at once agree on one.

    Raises:
        FasterViTError: it cannot be read or made, or others could have read it.
    """
    path = _private_path()
    if not path.is_file():
        try:
            make_private(path.parent)
            with alone(path.parent):
                if not path.is_file():  # or else another process was faster
                    write_whole(path, _new_key())
        except OSError as error:
            raise FasterViTError(
                f"cannot make a key to sign with in '{path.parent}' ({error.strerror or error}); name a writable "
                f"folder in {KEYS_VARIABLE}"
            ) from error
    return _load(path)


def public_key_line() -> str:
    """The user's public key with a comment, for others to trust.

    Raises:
        FasterViTError: as ``signing_key``.
    """
    return _public(signing_key()).line


def trust_key(source: str | Path) -> PublicKey:
    """From now on, take what this key signs.

    Args:
        source: a file with a public key, or its text.

    Raises:
        FasterViTError: no public key, or it cannot be kept.
    """
    if isinstance(source, Path):
        try:
            key = PublicKey.parse(source.read_bytes()[:_MOST_TEXT].decode(errors="replace"), f"'{source}'")
        except OSError as error:
            raise FasterViTError(f"cannot read key file '{source}' ({error.strerror}); pass an existing one") from error
    else:
        key = PublicKey.parse(source, f"'{source[:80]}'")
    folder = keys_folder() / _TRUSTED
    try:
        make_private(folder.parent)
        make_private(folder)
        write_whole(folder / _file_name(key), f"{key.line}\n".encode())
    except OSError as error:
        raise FasterViTError(
            f"cannot write to '{folder}' ({error.strerror}); name a writable folder in {KEYS_VARIABLE}"
        ) from error
    return key


def trusted_keys() -> list[PublicKey]:
    """Keys that were trusted, by fingerprint; deleting a key's file in ``trusted/`` ends that."""
    keys = []
    for path in sorted((keys_folder() / _TRUSTED).glob("*.pub")):
        try:
            reasons = [why_not_private(p) for p in (keys_folder(), path.parent, path)]
            if reason := next(filter(None, reasons), None):
                warn(f"trusted key '{path}' is ignored: its file or folder {reason}")
                continue
            keys.append(PublicKey.parse(path.read_bytes().decode(errors="replace"), f"'{path}'"))
        except (OSError, FasterViTError) as error:
            warn(f"trusted key '{path}' is ignored: {error}")
    return sorted(keys, key=lambda key: key.fingerprint)


def _private_path() -> Path:
    return keys_folder() / _PRIVATE


def _new_key() -> bytes:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _load(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        reason = why_not_private(path) or why_not_private(path.parent)
        if reason is None and os.name == "posix" and path.stat().st_mode & 0o077:
            reason = "can be read by other users"
        if reason is not None:
            raise FasterViTError(f"signing key '{path}' or its folder {reason}; remove it and a new one is made")
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise FasterViTError(f"cannot read signing key '{path}' ({error.strerror}); see to its owner") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FasterViTError(f"signing key '{path}' is damaged; remove it and a new one is made") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FasterViTError(f"signing key '{path}' is not of Ed25519; remove it and a new one is made")
    return key


def _public(key: Ed25519PrivateKey) -> PublicKey:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "user"  # an account without a name, as containers have them
    return PublicKey(key.public_key().public_bytes_raw(), f"{user}@{platform.node() or 'localhost'}")


def _file_name(key: PublicKey) -> str:
    """The fingerprint, as file systems take it."""
    return key.fingerprint.replace(":", "-").replace("/", "_") + ".pub"
