"""A bundle's manifest in, the text of its signature out; and a manifest and such a text in, whose signature it is out.

The manifest holds the SHA-256 of every file of the bundle, so its signature vouches for all of them.
"""

from __future__ import annotations

import json

from fastervit_trt.engines.keys import Signed, Verdict, sign, verify
from fastervit_trt.errors import FasterViTError

__all__ = ["MOST_SIGNATURE", "admit_signer", "sign_bundle", "verify_bundle"]

MOST_SIGNATURE = 16 << 10  # bytes; what sign_bundle writes has fewer than 200

_PURPOSE = b"fastervit-trt bundle 1\n"  # so that no engine's signature fits a bundle, nor the other way round


def sign_bundle(manifest: bytes) -> bytes:
    """The text of ``bundle.sig``: the same for the same manifest and key.

    Args:
        manifest: ``bundle.json``, byte for byte.

    Raises:
        FasterViTError: the user's own key, which is made at its first use, cannot be read or made.
    """
    return json.dumps(sign(_PURPOSE, manifest), indent=2, sort_keys=True).encode() + b"\n"


def verify_bundle(manifest: bytes, signature: bytes | None) -> Verdict:
    """Whose signature of ``manifest`` this is.

    Args:
        manifest: ``bundle.json``, byte for byte.
        signature: ``bundle.sig``; None where there is none. Whatever :func:`sign_bundle` cannot have written is bad.

    Raises:
        FasterViTError: the user's own key cannot be read.
    """
    if signature is None:
        return Verdict(Signed.UNSIGNED)
    if len(signature) > MOST_SIGNATURE:
        return Verdict(Signed.BAD)
    try:
        content = json.loads(signature)
    except (ValueError, RecursionError):
        return Verdict(Signed.BAD)
    return verify(_PURPOSE, manifest, content) if isinstance(content, dict) else Verdict(Signed.BAD)


def admit_signer(verdict: Verdict, *, trust: bool, where: str) -> None:
    """Nothing, where what was signed may be taken: by the user's own key or a trusted one, or any other with ``trust``.

    Args:
        trust: take unsigned bundles and unknown keys too; a bad signature never.
        where: the bundle, as errors begin with it: "bundle 'x.tar.zst'".

    Raises:
        FasterViTError: it may not be taken.
    """
    once = "where you know its origin, --trust takes it as it is"
    if verdict.signed is Signed.BAD:
        raise FasterViTError(f"{where} was changed after it was signed; copy it again from its origin")
    if verdict.signed is Signed.UNSIGNED and not trust:
        raise FasterViTError(f"{where} is not signed; {once}, or pack it where there is a key to sign with")
    if verdict.signed is Signed.UNKNOWN and not trust:
        raise FasterViTError(
            f"{where} is signed by unknown key {verdict.fingerprint!r}; `fastervit-deploy trust FILE` trusts "
            f"its owner's public key for good, or {once}"
        )
